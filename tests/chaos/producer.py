"""The producer of a chaos run: `python -m tests.chaos.producer ORDER`.

Publishes to each topic at its rate, a publication in five an order book and the others prices. Each
carries its number within its topic. The end of stdin ends it; its last line on stdout has the
number of the last publication of each topic, from which another producer continues.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import cattrs
import trio

from streamer.broker.connect import Command, RedisConnectionError
from streamer.broker.requests import RedisClient
from streamer.publisher.publisher import open_publisher

HOLD_SECONDS: Final = 300.0
"""Longer than any fault: a producer that gave up would make holes of its own."""
HOLD_MESSAGES: Final = 1_000_000
"""More than is due after any pause, so that a call waits and does not fail for want of room."""
_PACE_SECONDS: Final = 0.05
_BOOK_EVERY: Final = 5

_NUMBER: Final = "number"
_PUBLISH_ONCE: Final = """
for at = 1, #ARGV, 3 do
  if tonumber(redis.call('GET', KEYS[1]) or 0) < tonumber(ARGV[at + 2]) then
    redis.call('PUBLISH', ARGV[at], ARGV[at + 1])
    redis.call('SET', KEYS[1], ARGV[at + 2])
  end
end
"""
"""PUBLISHes of one topic that can be sent again when their answer was lost. With PUBLISH alone the
producer itself would not know which of its publications there were.

All that are due go in one script: of several commands, Redis would refuse the first ones where it
is still loading its data and carry out those after them, and the stream would have a hole that the
producer itself made."""

Publications = list[tuple[str, bytes]]
Publish = Callable[[Publications], Awaitable[object]]


@attrs.frozen
class Order:
    """The topics to publish to, and how fast."""

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
    head = f'"stock_code":"{code}","number":{number},"timestamp":"2024-08-09T05:00:00.123456Z"'
    if number % _BOOK_EVERY:
        return f"{topic}:price", (
            f'{{"type":"price_update",{head},"price":{70_000 + number % 500},"change":-120,'
            f'"change_percent":-0.17,"volume":{number}}}'
        ).encode()
    level = f'{{"price":{70_000 + number % 500},"quantity":{number}}}'
    return f"{topic}:orderbook", (
        f'{{"type":"orderbook_update",{head},"bids":[{level}],"asks":[{level}]}}'
    ).encode()


def plain_commands(publications: Publications) -> list[Command]:
    """Return one command for each topic, which publishes all of its publications."""
    arguments: dict[str, list[str | bytes | int]] = {}
    for channel, text in publications:
        topic = channel.rpartition(":")[0]
        arguments.setdefault(topic, []).extend((channel, text, json.loads(text)[_NUMBER]))
    return [
        ("EVAL", _PUBLISH_ONCE, 1, f"published:{topic}", *of_topic)
        for topic, of_topic in arguments.items()
    ]


async def produce(order: Order) -> None:
    """Publish until stdin ends."""
    numbers = order.positioned | order.plain
    first = dict(numbers)
    began_seconds = trio.current_time()
    ending = trio.Event()
    client = RedisClient(order.redis_url, client_name="producer")

    def due(topics: dict[str, int]) -> Publications:
        count = int((trio.current_time() - began_seconds) * order.rate)
        return [
            publication(topic, number)
            for topic in topics
            for number in range(numbers[topic] + 1, first[topic] + count + 1)
        ]

    async def run(topics: dict[str, int], publish: Publish) -> None:
        while topics and not ending.is_set():
            publications = due(topics)
            await publish(publications)
            for topic in topics:
                numbers[topic] += sum(sent[0].startswith(f"{topic}:") for sent in publications)
            with trio.move_on_after(_PACE_SECONDS):
                await ending.wait()

    async def publish_plain(publications: Publications) -> None:
        commands = plain_commands(publications)
        while commands:
            try:
                replies = await client.execute_many(commands)
            except RedisConnectionError:
                await trio.sleep(_PACE_SECONDS)
            else:
                # Where Redis still loads its data, say, or was emptied in between.
                commands = [
                    command
                    for command, reply in zip(commands, replies, strict=True)
                    if isinstance(reply, Exception)
                ]

    async with (
        open_publisher(
            order.redis_url,
            history_length=order.history_length,
            hold_seconds=HOLD_SECONDS,
            hold_messages=HOLD_MESSAGES,
        ) as publisher,
        trio.open_nursery() as outer,
        trio.lowlevel.FdStream(sys.stdin.fileno()) as stdin,
    ):
        outer.start_soon(client.run)
        async with trio.open_nursery() as flows:
            flows.start_soon(run, order.positioned, publisher.publish_many)
            flows.start_soon(run, order.plain, publish_plain)
            while await stdin.receive_some():
                pass
            ending.set()
        outer.cancel_scope.cancel()
    sys.stdout.write(json.dumps(numbers) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    trio.run(produce, cattrs.structure(json.loads(sys.argv[1]), Order))
