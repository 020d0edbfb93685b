"""From a channel to the hub: what is routed, and what is rejected.

Covers streamer.source.report and streamer.source.validation.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog
import trio
from trio.testing import MockClock

from streamer.hub.flush import FlushLoop
from streamer.hub.hub import Hub
from streamer.hub.streams import TopicStream
from streamer.hub.wakeup import Wakeup
from streamer.protocol.topics import Topic
from streamer.source.demand import TopicDemand
from streamer.source.reads import NoReads
from streamer.source.report import SourceReport
from streamer.source.router import Router
from streamer.source.topics import TopicSource
from tests.helpers.publications import orderbook, price

STOCK = Topic.parse("stock:A")
SECTOR = Topic.parse("sector:tech")


class ScriptedBus:
    """A bus that knows which channels are wanted."""

    connected = True

    def __init__(self) -> None:
        self.channels: set[str] = set()

    def subscribe(self, channels: Iterable[str]) -> None:
        """Want these channels."""
        self.channels.update(channels)

    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Want them no more."""
        self.channels.difference_update(channels)

    def is_settled(self, channels: Iterable[str]) -> bool:
        """Whether they are wanted."""
        return self.channels.issuperset(channels)

    async def wait_answer(self) -> None:
        """Return at once."""

    @property
    def refuses_some(self) -> bool:
        """No channel is refused."""
        return False

    def is_refused(self, channel: str) -> bool:
        """No channel is refused."""
        del channel
        return False


class House:
    """A router between a scripted bus and a hub, without stored positions."""

    def __init__(self) -> None:
        self.now = 0.0
        self.bus = ScriptedBus()
        demand = TopicDemand()
        wakeup = Wakeup()
        self.hub = Hub(
            epoch="e",
            upstream=demand,
            wakeup=wakeup,
            clock=lambda: self.now,
            timestamp=lambda: "2026-01-02T03:04:05.678Z",
            linger_seconds=5,
            history_length=10,
            max_history_bytes=1 << 20,
        )
        self.flush_loop = FlushLoop(
            self.hub.fanout, wakeup, interval_seconds=0, stretch_limit_seconds=1
        )
        reads = NoReads()
        self.router = Router(
            self.hub.publishing, self.flush_loop, reads, SourceReport(), max_publication_bytes=1000
        )
        self.source = TopicSource(
            self.hub.publishing,
            demand,
            self.router,
            self.bus,
            reads=reads,
            positions=None,
            subscribe_timeout_seconds=5,
        )

    def want(self, topic: Topic) -> TopicStream:
        """A topic is wanted, and opened."""
        stream = self.hub.stream(topic)
        self.source.follow_demand()
        return stream

    async def hear(self, channel: bytes, payload: bytes) -> None:
        """One message comes over the bus; others have a turn before the next."""
        self.router.on_messages([(channel, payload)])
        await trio.lowlevel.checkpoint()

    def publications(self) -> int:
        """How many the hub has had."""
        return self.hub.statistics().publications


async def test_a_topic_is_routed_while_somebody_wants_it() -> None:
    """Its channels are asked for once and given back; what comes after that is counted."""
    house = House()
    house.want(STOCK)
    assert house.bus.channels == {"stock:A:price", "stock:A:orderbook"}
    await house.hear(b"stock:A:price", price("A", 1))
    await house.hear(b"stock:A:orderbook", orderbook("A", 1))
    assert house.publications() == 2
    house.now = 5.0
    house.hub.release_unused()
    house.source.follow_demand()
    assert house.bus.channels == set()
    await house.hear(b"stock:A:price", price("A", 1))
    statistics = house.router.statistics()
    assert (statistics.received, statistics.unrouted) == (2, 1)


async def test_what_comes_at_once_is_flushed_at_once_and_together() -> None:
    """Before the call returns: no task has to wake up for it."""
    house = House()
    house.want(STOCK)
    house.want(SECTOR)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.flush_loop.run)
        await trio.testing.wait_all_tasks_blocked()
        house.router.on_messages(
            [(b"stock:A:price", price("A", 1)), (b"sector:tech:price", price("B", 1))]
        )
        statistics = house.flush_loop.statistics(updates_conflated=0)
        assert (statistics.flushes, statistics.publications_per_flush) == (1, 2)
        nursery.cancel_scope.cancel()


async def test_a_stocks_channel_tells_of_itself_and_a_sectors_of_many() -> None:
    """Another stock's price on a stock's channel is refused; a sector's may be of any stock."""
    house = House()
    house.want(STOCK)
    house.want(SECTOR)
    await house.hear(b"stock:A:price", price("B", 1))
    assert house.publications() == 0
    await house.hear(b"sector:tech:price", price("B", 1))
    await house.hear(b"sector:tech:price", price("C", 1))
    assert house.publications() == 2


async def test_what_is_refused_is_logged_at_a_bounded_rate(autojump_clock: MockClock) -> None:
    """A line a second, which says how many there were since the last."""
    house = House()
    house.want(STOCK)
    with structlog.testing.capture_logs() as logs:
        for _ in range(1000):
            await house.hear(b"stock:A:price", b"{")
        await trio.sleep(1)
        await house.hear(b"stock:A:price", price("A", 1, pad="x" * 1000))
    assert [line.get("unlogged") for line in logs] == [None, 999]
    statistics = house.router.statistics()
    assert statistics.rejected == 1001
    assert "more than 1000" in (statistics.last_rejection or "")


async def test_a_placed_publication_counts_from_one() -> None:
    """One at 0 would follow nothing; it is refused as anything else that does not fit."""
    house = House()
    house.want(STOCK)
    await house.hear(b"stock:A:price", price("A", 1, epoch="e", sequence=0))
    assert house.router.statistics().rejected == 1
    await house.hear(b"stock:A:price", price("A", 1, epoch="e", sequence=1))
    assert house.publications() == 1
