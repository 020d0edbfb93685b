"""The producer of a chaos run: `python -m tests.chaos.producer ORDER`.

Publishes to each topic at its rate, a publication in five an order book and the others prices. Each
carries its number within its topic. The end of stdin ends it; its last line on stdout has the
number of the last publication of each topic, from which another producer goes on.
"""

from __future__ import annotations

import json
import sys
from typing import Final

import attrs
import cattrs
import trio

from streamer.publisher.publisher import Publisher, open_publisher

HOLD_SECONDS: Final = 300.0
"""Longer than any fault: a producer that gave up would make holes of its own."""
_PACE_SECONDS: Final = 0.05
_BOOK_EVERY: Final = 5

Publications = list[tuple[str, bytes]]


@attrs.frozen
class Order:
    """What to publish."""

    redis_url: str
    positioned: dict[str, int]
    """The number of the last publication of each topic that gets positions."""
    plain: dict[str, int]
    """The same for topics that are published without positions."""
    rate: float
    """Publications per second of each topic."""
    history_length: int


def publication(topic: str, number: int) -> tuple[str, bytes]:
    """The channel and the text of one publication."""
    code = topic.partition(":")[2]
    head = f'"stock_code":"{code}","timestamp":"2024-08-09T05:00:00.123456Z"'
    if number % _BOOK_EVERY:
        return f"{topic}:price", (
            f'{{"type":"price_update",{head},"price":{70_000 + number % 500},"change":-120,'
            f'"change_percent":-0.17,"volume":{number}}}'
        ).encode()
    level = f'{{"price":{70_000 + number % 500},"quantity":{number}}}'
    return f"{topic}:orderbook", (
        f'{{"type":"orderbook_update",{head},"bids":[{level}],"asks":[{level}]}}'
    ).encode()


async def produce(order: Order) -> None:
    """Publish until stdin ends."""
    numbers = order.positioned | order.plain
    first = dict(numbers)
    began_seconds = trio.current_time()
    ending = trio.Event()

    def due(topics: dict[str, int]) -> Publications:
        count = int((trio.current_time() - began_seconds) * order.rate)
        return [
            publication(topic, number)
            for topic in topics
            for number in range(numbers[topic] + 1, first[topic] + count + 1)
        ]

    async def run(topics: dict[str, int], *, positioned: bool) -> None:
        # A publisher even for what gets no positions: a PUBLISH whose answer is lost may have
        # arrived or not, and then the producer itself would not know what is true.
        async with open_publisher(
            order.redis_url,
            positioned=positioned,
            history_length=order.history_length,
            hold_seconds=HOLD_SECONDS,
        ) as publisher:
            await publish(publisher, topics)

    async def publish(publisher: Publisher, topics: dict[str, int]) -> None:
        while topics and not ending.is_set():
            publications = due(topics)
            await publisher.publish_many(publications)
            for topic in topics:
                numbers[topic] += sum(sent[0].startswith(f"{topic}:") for sent in publications)
            with trio.move_on_after(_PACE_SECONDS):
                await ending.wait()

    async with trio.lowlevel.FdStream(sys.stdin.fileno()) as stdin:
        async with trio.open_nursery() as flows:
            flows.start_soon(lambda: run(order.positioned, positioned=True))
            flows.start_soon(lambda: run(order.plain, positioned=False))
            while await stdin.receive_some():
                pass
            ending.set()
        sys.stdout.write(json.dumps(numbers) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    trio.run(produce, cattrs.structure(json.loads(sys.argv[1]), Order))
