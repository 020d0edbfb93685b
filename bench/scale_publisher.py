"""Publish to many topics in turn at a steady rate, with positions; a process of `bench.scale`.

    python -m bench.scale_publisher --redis URL --topics 2500 --rate 1000

Publishes once to each topic and says so on stdout, then waits for a line on stdin to begin, and for
another one to stop. Prints how much it published, over all topics.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial

import click
import trio

from bench.measure import price_topics
from streamer.publisher import Publisher, open_publisher

STEP_SECONDS = 0.01
"""How often what is due is published."""
PAYLOAD_BYTES = 165


class Feed:
    """The publications: each topic's have the marker that clients read the latency from."""

    def __init__(self, topics: int) -> None:
        self._topics = price_topics(topics)
        self.published = 0

    def take(self, count: int) -> list[tuple[str, bytes]]:
        """Return the next publications."""
        first, self.published = self.published, self.published + count
        return [self._publication(number) for number in range(first, first + count)]

    def _publication(self, number: int) -> tuple[str, bytes]:
        topic = number % len(self._topics)
        counter = number // len(self._topics)
        one = self._topics[topic]
        text = f'{one.head},"~":[{topic},{counter},{time.monotonic_ns()}]}}'
        missing = PAYLOAD_BYTES - len(text)
        if missing > 0:
            text = f'{text[:-1]},"pad":"{"0" * max(0, missing - 9)}"}}'
        return one.channel, text.encode()


async def run(url: str, topics: int, rate: float, history_seconds: float) -> None:
    """Publish as asked on stdin."""
    feed = Feed(topics)
    async with open_publisher(url, history_seconds=history_seconds) as publisher:
        await publisher.publish_many(feed.take(topics))
        _say("ready", feed)
        await trio.to_thread.run_sync(sys.stdin.readline)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_publish, publisher, feed, rate)
            await trio.to_thread.run_sync(sys.stdin.readline)
            # The one under way must end, or it would be unknown how much was published.
            nursery.cancel_scope.cancel()
        _say("stopped", feed)


async def _publish(publisher: Publisher, feed: Feed, rate: float) -> None:
    started = trio.current_time()
    published = 0
    while True:
        await trio.sleep(STEP_SECONDS)
        due = int(rate * (trio.current_time() - started)) - published
        if due <= 0:
            continue
        published += due
        with trio.CancelScope(shield=True):
            await publisher.publish_many(feed.take(due))


def _say(event: str, feed: Feed) -> None:
    sys.stdout.write(json.dumps({"event": event, "published": feed.published}) + "\n")
    sys.stdout.flush()


@click.command()
@click.option("--redis", "url", required=True)
@click.option("--topics", default=2500, type=click.IntRange(1))
@click.option("--rate", default=1000.0, type=click.FloatRange(min=0, min_open=True))
@click.option("--history-seconds", default=300.0, type=click.FloatRange(1))
def main(url: str, topics: int, rate: float, history_seconds: float) -> None:
    """Publish to many topics in turn at a steady rate, with positions."""
    trio.run(partial(run, url, topics, rate, history_seconds))


if __name__ == "__main__":
    main()
