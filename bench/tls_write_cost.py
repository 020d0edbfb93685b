"""The cost of one write under TLS: how much is encryption, and how much its way to the socket.

    python -m bench.tls_write_cost --clients 100 --bytes 224

The same frame is written to all clients in each way in turn: `os.write` without TLS; the server's
own way (`TlsWriter`), in which OpenSSL writes to the socket; into memory and from there to the
socket, as `trio.SSLStream` and asyncio do; and into memory alone, which is the encryption. The
figures are medians of this thread's processor time. Nothing is decrypted: the receiving sockets
are emptied between the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import trustme

from bench.tls import write_certificate
from streamer.edge.tls import TlsWriter, server_context

READ_BYTES = 1 << 16

Way = Callable[[bytes], object]
"""Writes a frame to all clients."""


@attrs.frozen
class Memory:
    """A server's side of TLS that writes into memory, and the socket that takes it from there."""

    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    socket: socket.socket

    def encrypt(self, frame: bytes) -> bytes:
        """Return the record."""
        self.tls.write(frame)
        return self.outgoing.read()

    def do_handshake(self) -> None:
        """Go on with it as far as what the client has sent allows."""
        with contextlib.suppress(BlockingIOError):
            self.incoming.write(self.socket.recv(READ_BYTES))
        try:
            self.tls.do_handshake()
        finally:
            self.socket.send(self.outgoing.read())


class Rig:
    """Connections of each kind, to this process itself."""

    def __init__(self, stack: contextlib.ExitStack, clients: int) -> None:
        self._stack = stack
        self._listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client_context.check_hostname = False
        self._client_context.verify_mode = ssl.CERT_NONE
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tls-")))
        files = write_certificate(directory, trustme.KeyType.ECDSA)
        self._context = server_context(files.certificate, files.key)
        self._receiving: list[socket.socket] = []
        self._writer = TlsWriter()
        self._plain = [self._connect()[0].fileno() for _ in range(clients)]
        self._secured = [self._secure().fileno() for _ in range(clients)]
        self._memory = [self._secure_in_memory() for _ in range(clients)]

    def _connect(self) -> tuple[socket.socket, socket.socket]:
        client = self._stack.enter_context(socket.create_connection(self._listening.getsockname()))
        server = self._stack.enter_context(self._listening.accept()[0])
        for one in (client, server):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._receiving.append(client)
        return server, client

    def _wrap_client(self, client: socket.socket) -> ssl.SSLSocket:
        wrapped = self._client_context.wrap_socket(client, do_handshake_on_connect=False)
        self._receiving[-1] = self._stack.enter_context(wrapped)
        return wrapped

    def _secure(self) -> ssl.SSLSocket:
        server, client = self._connect()
        secured = self._stack.enter_context(
            self._context.wrap_socket(server, server_side=True, do_handshake_on_connect=False)
        )
        agree(secured, self._wrap_client(client))
        self._writer.add(secured)
        return secured

    def _secure_in_memory(self) -> Memory:
        server, client = self._connect()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._context.wrap_bio(incoming, outgoing, server_side=True)
        memory = Memory(tls, incoming, outgoing, server)
        agree(memory, self._wrap_client(client))
        return memory

    def ways(self) -> dict[str, Way]:
        """Return the ways to write a frame to all clients, by name."""
        plain, secured, memory, write = self._plain, self._secured, self._memory, self._writer.write
        return {
            "without TLS": lambda frame: [os.write(one, frame) for one in plain],
            "TLS, OpenSSL writes": lambda frame: [write(one, frame) for one in secured],
            "TLS, through memory": lambda frame: [
                one.socket.send(one.encrypt(frame)) for one in memory
            ],
            "encryption alone": lambda frame: [one.encrypt(frame) for one in memory],
        }

    def empty(self) -> None:
        """Read what has been written."""
        for client in self._receiving:
            with contextlib.suppress(BlockingIOError):
                while os.read(client.fileno(), READ_BYTES):
                    pass


def agree(server: ssl.SSLSocket | Memory, client: ssl.SSLSocket) -> None:
    """Make the handshake of two sides in one thread."""
    unfinished: list[ssl.SSLSocket | Memory] = [client, server]
    while unfinished:
        for side in tuple(unfinished):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
                unfinished.remove(side)


def measure(clients: int, size: int, rounds: int) -> dict[str, float]:
    """Return the median processor time of a write in microseconds, by way."""
    frame = os.urandom(size)
    costs: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        rig = Rig(stack, clients)
        for _ in range(rounds):
            for name, way in rig.ways().items():
                began = time.thread_time()
                way(frame)
                costs.setdefault(name, []).append(1e6 * (time.thread_time() - began) / clients)
                rig.empty()
    return {name: statistics.median(of) for name, of in costs.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--bytes", type=int, default=224, dest="size", help="of the frame")
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    costs = measure(arguments.clients, arguments.size, arguments.rounds)
    fastest = next(iter(costs.values()))
    print("                      us/write    ratio")
    for name, cost in costs.items():
        print(f"{name:21} {cost:8.2f} {cost / fastest:8.2f}")


if __name__ == "__main__":
    main()
