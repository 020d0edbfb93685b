"""The cost of a subscribe with many topics, without its connection.

    python -m bench.subscribe_cost --topics 30 --clients 5000

One client after another subscribes in this process, with the parts of a whole server, and leaves.
Nothing waits and nothing is sent. The figures are microseconds of this thread's time, the first
percentile of all clients: other programs on the machine hardly change it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from streamer.config import Settings
from streamer.edge.requests import Requests
from streamer.edge.session_ids import new_session_id
from streamer.hub.outbox import Outbox
from streamer.hub.sessions import encode_session
from streamer.protocol import messages
from streamer.protocol.codec import decode_client
from streamer.server import Server, serve

STOCKS = 500
WARM_UP = 100
"""The first clients are not measured; half of them stay, so that the topics stay live."""


class Nobody:
    """The owner of an outbox whose socket, /dev/null, is never full."""

    def on_blocked(self) -> None:
        """Never called."""

    on_broken = on_overflow = on_blocked


def request(targets: Sequence[str]) -> str:
    """Return a subscribe to the prices of these stocks."""
    message = {"type": "subscribe", "subscription_type": "stock", "targets": targets}
    return json.dumps(message | {"kinds": ["price"]})


def connected(server: Server, descriptor: int) -> tuple[Outbox, Requests]:
    """Return a client of the server, and what takes its requests; `descriptor` takes its bytes."""
    services = server._services  # noqa: SLF001 - no other way to the parts without a connection
    outbox = Outbox(new_session_id(), descriptor, Nobody(), services.wire, max_queued_bytes=1 << 20)
    services.hub.add(outbox)
    return outbox, Requests(None, outbox, services)


def connect_and_leave(server: Server, descriptor: int, text: str, *, stays: bool) -> list[float]:
    """Return the seconds at the beginning, and after each of the stages."""
    outbox, requests = connected(server, descriptor)
    at = [time.thread_time()]
    message = decode_client(text)
    at.append(time.thread_time())
    assert isinstance(message, messages.Subscribe)
    rest = requests.subscribe(message)
    assert rest is None
    at.append(time.thread_time())
    encode_session(outbox)
    at.append(time.thread_time())
    if not stays:
        services = server._services  # noqa: SLF001
        services.sessions.ended(outbox)
        services.hub.remove(outbox)
    at.append(time.thread_time())
    return at


async def measure(topics: int, clients: int, sink: int) -> dict[str, float]:
    """Return the microseconds of each stage, and of all together.

    `sink` is a descriptor that takes all that is written.
    """
    taken: list[list[float]] = []
    async with trio.open_nursery() as nursery:
        settings = Settings(port=0, http_port=0, memory=True)
        server: Server = await nursery.start(partial(serve, settings))
        for number in range(WARM_UP + clients):
            stays = number < WARM_UP // 2
            # Its list overlaps with those of others.
            targets = [f"T{(number * topics + i) % STOCKS:05}" for i in range(topics)]
            at = connect_and_leave(server, sink, request(targets), stays=stays)
            if number >= WARM_UP:
                stages = [after - before for before, after in itertools.pairwise(at)]
                taken.append([*stages, at[-1] - at[0]])
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    names = ("decode", "subscribe", "record", "leave, with a record", "together")
    return {
        name: 1e6 * sorted(column)[len(column) // 100]
        for name, column in zip(names, zip(*taken, strict=True), strict=True)
    }


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--topics", type=int, default=30, help="at most 50: more may have to wait")
    parser.add_argument("--clients", type=int, default=5000)
    arguments = parser.parse_args()
    with Path(os.devnull).open("wb") as sink:
        costs = trio.run(measure, arguments.topics, arguments.clients, sink.fileno())
    for name, microseconds in costs.items():
        print(f"{name:20} {microseconds:8.1f} us")


if __name__ == "__main__":
    main()
