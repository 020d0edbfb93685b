"""The cost of a publication to a few clients, without its sockets.

    python -m bench.publication_cost --clients 200 --topics 500 --each 20

One publication after another is validated, placed and flushed in this process, with the parts of a
whole server; the clients' sockets are /dev/null. Their lists are alike (each list has the same
clients for all of its topics, which so are one group) or chosen at random (each client is alone in
its group). The figures are microseconds of this thread's time for a publication, the first decile
of all: other programs on the machine hardly change it. What it does not show is that between two
publications of a real feed the caches of the processor forget: then the same code takes longer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from functools import partial
from pathlib import Path

import trio

from bench.subscribe_cost import Nobody
from streamer.config import Settings
from streamer.edge.requests import Requests
from streamer.edge.session_ids import new_session_id
from streamer.hub.outbox import Outbox
from streamer.protocol import messages
from streamer.protocol.codec import decode_client
from streamer.server import Server, serve

PUBLICATIONS = 20_000
OTHERS_EVERY = 64
"""Publications before the server's other tasks run."""

Lists = list[list[str]]
"""The targets of each client."""


def lists_alike(clients: int, topics: int, each: int) -> Lists:
    """Return lists of which a client has all topics of one, or none."""
    return [[f"T{(i * each + k) % topics:05}" for k in range(each)] for i in range(clients)]


def lists_of_their_own(clients: int, topics: int, each: int) -> Lists:
    """Return lists that differ from each other, the same ones in each run."""
    generator = random.Random(1)
    return [
        [f"T{topic:05}" for topic in generator.sample(range(topics), each)] for _ in range(clients)
    ]


def subscribe(server: Server, lists: Lists, descriptor: int) -> None:
    """Subscribe a client to each of the lists."""
    services = server._services  # noqa: SLF001 - no other way to the parts without a connection
    for targets in lists:
        outbox = Outbox(
            new_session_id(), descriptor, Nobody(), services.wire, max_queued_bytes=1 << 20
        )
        services.hub.add(outbox)
        message = {"type": "subscribe", "subscription_type": "stock", "targets": targets}
        wanted = decode_client(json.dumps(message | {"kinds": ["price"]}))
        assert isinstance(wanted, messages.Subscribe)
        assert Requests(None, outbox, services).subscribe(wanted) is None


async def measure(lists: Lists, sink: int) -> float:
    """Return the microseconds of a publication. `sink` is a descriptor that takes all bytes."""
    taken: list[float] = []
    async with trio.open_nursery() as nursery:
        settings = Settings(port=0, http_port=0, memory=True, flush_interval_ms=0)
        server: Server = await nursery.start(partial(serve, settings))
        subscribe(server, lists, sink)
        router = server._router  # noqa: SLF001
        targets = sorted({target for those in lists for target in those})
        generator = random.Random(1)
        for number in range(PUBLICATIONS):
            if not number % OTHERS_EVERY:
                await trio.lowlevel.checkpoint()
            target = generator.choice(targets)
            text = (
                f'{{"type":"price_update","stock_code":"{target}","price":{number},"change":0,'
                '"change_percent":0,"volume":1,"timestamp":"2024-08-09T00:00:00Z"}'
            )
            message = (f"stock:{target}:price".encode(), text.encode())
            before = time.thread_time()
            router.on_messages([message])
            taken.append(time.thread_time() - before)
        flushes = server._flush_loop.statistics(updates_conflated=0)  # noqa: SLF001
        due = PUBLICATIONS * sum(map(len, lists)) / len(targets)
        assert flushes.messages > 0.9 * due, (
            f"{flushes.messages} messages written, where about {due:.0f} are due"
        )
        nursery.cancel_scope.cancel()
    return 1e6 * sorted(taken)[len(taken) // 10]


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--topics", type=int, default=500)
    parser.add_argument("--each", type=int, default=20, help="topics of a client, at most 50")
    arguments = parser.parse_args()
    size = arguments.clients, arguments.topics, arguments.each
    with Path(os.devnull).open("wb") as sink:
        for name, lists in (("alike", lists_alike), ("their own", lists_of_their_own)):
            microseconds = trio.run(measure, lists(*size), sink.fileno())
            print(f"lists {name:10} {microseconds:6.1f} us")


if __name__ == "__main__":
    main()
