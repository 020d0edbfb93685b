"""A producer of both kinds, as a process of its own: `python -m tests.faults.producer ORDER`.

Each publication carries its number within its topic as `volume`, so that whoever receives some can
tell which are missing. Time decides how many are due: what could not be published during a fault
follows after it. Only the slowest client stops time: on a machine that cannot keep up, the flow is
slower and still a flow. So each line on stdin is how many seconds of flow all clients have had, and
is answered by a line on stdout with the counts so far; the end of stdin ends the flow, and the last
line has the final counts.
"""

import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Final

import attrs
import cattrs
import trio

from streamer.broker.connect import RedisConnectionError
from streamer.broker.requests import RedisClient
from streamer.publisher import open_publisher
from tests.helpers.timing import PACE_SECONDS

LEAD_SECONDS: Final = 15.0
"""How far the flow may be ahead of the slowest client: longer than any silence here."""

HOLD_SECONDS: Final = 60.0
"""Longer than any fault here: a producer that gave up would make holes of its own."""

HISTORY_SECONDS: Final = 3600.0
"""Longer than any test: on a busy machine, a minute of the flow may take many minutes."""

HOLD_MESSAGES: Final = 1_000_000
"""More than is due after any pause: a call waits while Redis is away, and does not fail for want of
room."""

Publications = list[tuple[str, bytes]]
"""Channel and text of each."""


@attrs.frozen
class Order:
    """The publications to make, and where."""

    redis_url: str
    positioned: dict[str, float]
    """Publications per second of the topics whose publications get a position from Redis."""
    plain: dict[str, float]
    """The same for those that are published as any program does, with PUBLISH."""
    history_length: int


class Clock:
    """The time of the flow, in seconds."""

    def __init__(self) -> None:
        self._read_seconds = trio.current_time()
        self._now_seconds = 0.0
        self.received_seconds = 0.0
        """The time that the slowest client is at."""

    def read(self) -> float:
        """The time now."""
        read_seconds, self._read_seconds = self._read_seconds, trio.current_time()
        limit = max(self._now_seconds, self.received_seconds + LEAD_SECONDS)
        self._now_seconds = min(self._now_seconds + self._read_seconds - read_seconds, limit)
        return self._now_seconds


class Flow:
    """Publishes to some topics at their rates."""

    def __init__(self, rates: dict[str, float], clock: Clock) -> None:
        self._rates = rates
        self._clock = clock
        self._stopped = False
        self.counts = dict.fromkeys(rates, 0)

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped = True

    async def run(self, publish: Callable[[Publications], Awaitable[object]]) -> None:
        """Publish what is due, until stopped."""
        while not self._stopped:
            now_seconds = self._clock.read()
            due = {topic: int(now_seconds * rate) for topic, rate in self._rates.items()}
            await publish([*self._publications(due)])
            self.counts = due
            await trio.sleep(PACE_SECONDS)

    def _publications(self, due: dict[str, int]) -> Iterator[tuple[str, bytes]]:
        """Up to these counts, the topics in turn."""
        remaining = {
            topic: range(self.counts[topic] + 1, count + 1) for topic, count in due.items()
        }
        for index in range(max(map(len, remaining.values()), default=0)):
            for topic, numbers in remaining.items():
                if index < len(numbers):
                    yield f"{topic}:price", _text(topic, numbers[index])


def _text(topic: str, number: int) -> bytes:
    code = topic.partition(":")[2]
    return (
        b'{"type":"price_update","stock_code":"%b","price":%d.50,"change":-120,'
        b'"change_percent":-0.17,"volume":%d,"timestamp":"2024-08-09T05:00:00.123456Z"}'
    ) % (code.encode(), 70_000 + number % 500, number)


async def produce(order: Order) -> None:
    """Publish, and answer stdin, until that ends."""
    clock = Clock()
    positioned, plain = Flow(order.positioned, clock), Flow(order.plain, clock)
    commands = RedisClient(order.redis_url, client_name="producer", timeout_seconds=HOLD_SECONDS)

    async def publish_plain(publications: Publications) -> None:
        with suppress(RedisConnectionError):  # gone, as it is with PUBLISH
            await commands.execute_many([("PUBLISH", *sent) for sent in publications])

    def answer() -> None:
        sys.stdout.write(json.dumps(positioned.counts | plain.counts) + "\n")
        sys.stdout.flush()

    async with (
        # The test sees that it is closed, so it is closed after all that may fail.
        trio.lowlevel.FdStream(sys.stdin.fileno()) as stdin,
        open_publisher(
            order.redis_url,
            history_length=order.history_length,
            history_seconds=HISTORY_SECONDS,
            hold_seconds=HOLD_SECONDS,
            hold_messages=HOLD_MESSAGES,
        ) as publisher,
        trio.open_nursery() as outer,
    ):
        outer.start_soon(commands.run)
        async with trio.open_nursery() as flows:
            flows.start_soon(positioned.run, publisher.publish_many)
            flows.start_soon(plain.run, publish_plain)
            while line := await stdin.receive_some():
                clock.received_seconds = float(line)
                answer()
            positioned.stop()
            plain.stop()
        answer()
        outer.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(produce, cattrs.structure(json.loads(sys.argv[1]), Order))
