"""The cost of a publication to a few clients, without its sockets.

    python -m bench.publication_cost --clients 200 --topics 500 --each 20

One publication after another is validated, placed and flushed in this process, with the parts of a
whole server; the clients' sockets are /dev/null. Their lists are alike (as in the scenario of many
topics: those who have one topic of a list have all, and so are one group) or chosen at random (each
client is alone in its group). The figures are microseconds of this thread's time for a publication,
the first decile of all: other programs on the machine hardly change it. Between two publications of
a real feed the caches of the processor forget, and the same code takes longer.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from functools import partial
from pathlib import Path

import trio

from bench.measure import price_topics, spread_subscriptions
from bench.subscribe_cost import connected, request
from streamer.config import Settings
from streamer.protocol import messages
from streamer.protocol.codec import decode_client
from streamer.server import Server, serve

PUBLICATIONS = 20_000
OTHERS_EVERY = 64
"""Publications before the server's other tasks run."""

Lists = list[list[int]]
"""The topics of each client, by number."""


def lists_at_random(clients: int, topics: int, each: int) -> Lists:
    """Return lists that hardly overlap, the same ones in each run."""
    generator = random.Random(1)
    return [generator.sample(range(topics), each) for _ in range(clients)]


def subscribe(server: Server, lists: Lists, sink: int) -> None:
    """Subscribe a client to each of the lists."""
    for topics in lists:
        _, requests = connected(server, sink)
        message = decode_client(request([f"T{topic:05}" for topic in topics]))
        assert isinstance(message, messages.Subscribe)
        assert requests.subscribe(message) is None


async def measure(lists: Lists, sink: int, publications: int = PUBLICATIONS) -> float:
    """Return the microseconds of a publication. `sink` is a descriptor that takes all bytes."""
    topics = sorted({topic for those in lists for topic in those})
    prices = price_topics(topics[-1] + 1)
    generator = random.Random(1)
    taken: list[float] = []
    async with trio.open_nursery() as nursery:
        settings = Settings(port=0, http_port=0, memory=True, flush_interval_ms=0)
        server: Server = await nursery.start(partial(serve, settings))
        subscribe(server, lists, sink)
        router = server._router  # noqa: SLF001 - no other way to the parts without Redis
        for number in range(publications):
            if not number % OTHERS_EVERY:
                await trio.lowlevel.checkpoint()
            price = prices[generator.choice(topics)]
            message = price.channel.encode(), f"{price.head}}}".encode()
            before = time.thread_time()
            router.on_messages([message])
            taken.append(time.thread_time() - before)
        flushes = server._flush_loop.statistics(updates_conflated=0)  # noqa: SLF001
        due = publications * sum(map(len, lists)) / len(topics)
        assert 0.9 * due < flushes.messages < 1.1 * due, f"{flushes.messages} writes, not {due:.0f}"
        nursery.cancel_scope.cancel()
    return 1e6 * sorted(taken)[len(taken) // 10]


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--topics", type=int, default=500)
    parser.add_argument("--each", type=int, default=20, help="at most 50: more may have to wait")
    arguments = parser.parse_args()
    size = arguments.clients, arguments.topics, arguments.each
    with Path(os.devnull).open("wb") as sink:
        for name, lists in (("alike", spread_subscriptions), ("at random", lists_at_random)):
            microseconds = trio.run(measure, lists(*size), sink.fileno())
            print(f"lists {name:10} {microseconds:6.1f} us")


if __name__ == "__main__":
    main()
