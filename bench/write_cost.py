"""The cost of writing one frame to one of many clients, and the share of Python in it.

    python -m bench.write_cost --clients 1000 --bytes 170

The same frame is written to all clients, 20 ms apart as with 50 publications per second, in each
way in turn: a C loop over send(2), one over write(2), `os.write` mapped over the descriptors (as in
`FanOut`), `os.write` in a Python loop, and `socket.send` mapped over the sockets. The figures are
medians of processor time; another process, on another core, reads.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import multiprocessing
import os
import select
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.rig import Cores, compiled

SWEEP_SECONDS = 0.002
READ_BYTES = 1 << 18

Way = Callable[[], int]
"""Writes to all clients; returns how many sockets took all of it."""


def drain(port: int, clients: int, core: int) -> None:
    """Open `clients` connections and read, in sweeps, until the other side closes."""
    os.sched_setaffinity(0, {core})
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(clients)]
    with select.epoll() as poll:
        for connection in connections:
            poll.register(connection, select.EPOLLIN)
        while True:
            time.sleep(SWEEP_SECONDS)
            for descriptor, _ in poll.poll():
                if not os.read(descriptor, READ_BYTES):
                    return


def ways(connections: Sequence[socket.socket], frame: bytes) -> dict[str, Way]:
    """The ways to write the frame to all connections, by name."""
    source = Path(__file__).with_suffix(".c")
    library = ctypes.CDLL(str(compiled("write_cost.so", [source], flags=["-shared", "-fPIC"])))
    descriptors = tuple(connection.fileno() for connection in connections)
    count, size = len(descriptors), len(frame)
    in_c = (ctypes.c_int * count)(*descriptors)

    def mapped_write() -> int:
        return list(map(os.write, descriptors, itertools.repeat(frame))).count(size)

    def looped_write() -> int:
        whole = 0
        for descriptor in descriptors:
            try:
                sent = os.write(descriptor, frame)
            except BlockingIOError:
                sent = 0
            if sent == size:
                whole += 1
        return whole

    def mapped_send() -> int:
        return list(map(socket.socket.send, connections, itertools.repeat(frame))).count(size)

    return {
        "C, send(2)": lambda: int(library.send_to_all(in_c, count, frame, size)),
        "C, write(2)": lambda: int(library.write_to_all(in_c, count, frame, size)),
        "Python, os.write mapped": mapped_write,
        "Python, os.write in a loop": looped_write,
        "Python, socket.send mapped": mapped_send,
    }


def measure(clients: int, size: int, rounds: int, pause_seconds: float) -> dict[str, float]:
    """Return the median processor time of a write in microseconds, by way."""
    cores = Cores.available()
    os.sched_setaffinity(0, {cores.server.number})
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        reader = multiprocessing.get_context("spawn").Process(
            target=drain, args=(listening.getsockname()[1], clients, cores.client.number)
        )
        reader.start()
        stack.callback(reader.join)
        connections = [stack.enter_context(listening.accept()[0]) for _ in range(clients)]
        for connection in connections:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        costs: dict[str, list[float]] = {}
        by_name = ways(connections, b"x" * size)
        for _ in range(rounds):
            for name, way in by_name.items():
                time.sleep(pause_seconds)
                began = time.process_time()
                whole = way()
                costs.setdefault(name, []).append(1e6 * (time.process_time() - began) / clients)
                if whole != clients:
                    raise SystemExit(f"{name}: {clients - whole} sockets were full")
    return {name: statistics.median(of) for name, of in costs.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--bytes", type=int, default=170, dest="size", help="of the frame")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--pause-ms", type=float, default=20.0)
    arguments = parser.parse_args()
    costs = measure(arguments.clients, arguments.size, arguments.rounds, arguments.pause_ms / 1000)
    fastest = next(iter(costs.values()))
    print("                             us/write    ratio")
    for name, cost in costs.items():
        print(f"{name:28} {cost:8.2f} {cost / fastest:8.2f}")


if __name__ == "__main__":
    main()
