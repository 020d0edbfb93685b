"""From a channel to the hub: what is routed, what is refused, and what a lost source means."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import structlog
import trio
from trio.testing import MockClock

from streamer.hub.hub import Hub
from streamer.protocol.topics import Topic
from streamer.source.ingest import Ingest
from tests.running import orderbook, price

STOCK = Topic.parse("stock:A")
SECTOR = Topic.parse("sector:tech")


class ScriptedBus:
    """A bus that is connected, and confirms, when the test says so."""

    def __init__(self) -> None:
        self.connected = True
        self.channels: set[str] = set()
        self.confirmed = trio.Event()

    def subscribe(self, channels: Iterable[str]) -> None:
        """Want these channels."""
        self.channels.update(channels)

    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Want them no more."""
        self.channels.difference_update(channels)

    async def wait_subscribed(self, channels: Iterable[str]) -> None:
        """Until the test confirms."""
        assert self.channels.issuperset(channels)
        await self.confirmed.wait()


class House:
    """An ingest between a scripted bus and a hub."""

    def __init__(self) -> None:
        self.now = 0.0
        self.bus = ScriptedBus()
        self.ingest = Ingest(
            max_publication_bytes=1000, subscribe_timeout_seconds=5, history_length=10
        )
        self.hub = Hub(
            epoch="e",
            upstream=self.ingest,
            on_dirty=lambda: None,
            clock=lambda: self.now,
            timestamp=lambda: "2026-01-02T03:04:05.678Z",
            linger_seconds=5,
            history_length=10,
            max_history_bytes=1 << 20,
        )
        self.ingest.attach(self.hub, self.bus, None)

    def publications(self) -> int:
        """How many the hub has had."""
        return self.hub.statistics().publications


def test_a_topic_is_routed_while_somebody_wants_it() -> None:
    """Its channels are asked for once and given back; what comes after that is counted."""
    house = House()
    house.hub.stream(STOCK)
    assert house.bus.channels == {"stock:A:price", "stock:A:orderbook"}
    house.ingest.on_message(b"stock:A:price", price("A", 1))
    house.ingest.on_message(b"stock:A:orderbook", orderbook("A", 1))
    assert house.publications() == 2
    house.now = 5.0
    house.hub.release_unused()
    assert house.bus.channels == set()
    house.ingest.on_message(b"stock:A:price", price("A", 1))
    statistics = house.ingest.statistics()
    assert (statistics.received, statistics.unrouted) == (2, 1)


async def test_a_stocks_channel_tells_of_itself_and_a_sectors_of_many() -> None:
    """Another stock's price on a stock's channel is refused; a sector's may be anybody's."""
    house = House()
    house.hub.stream(STOCK)
    house.hub.stream(SECTOR)
    house.bus.confirmed.set()
    await house.ingest.wait_ready([STOCK, SECTOR])
    house.ingest.on_message(b"stock:A:price", price("B", 1))
    assert house.publications() == 0
    house.ingest.on_message(b"sector:tech:price", price("B", 1))
    house.ingest.on_message(b"sector:tech:price", price("C", 1))
    assert house.publications() == 2


async def test_what_is_refused_is_logged_at_a_bounded_rate(autojump_clock: MockClock) -> None:
    """A line a second, which says how many there were since the last."""
    house = House()
    house.hub.stream(STOCK)
    with structlog.testing.capture_logs() as logs:
        for _ in range(1000):
            house.ingest.on_message(b"stock:A:price", b"{")
        await trio.sleep(1)
        house.ingest.on_message(b"stock:A:price", price("A", 1, pad="x" * 1000))
    assert [line["rejected_since_last_line"] for line in logs] == [1, 1000]
    statistics = house.ingest.statistics()
    assert statistics.rejected == 1001
    assert "more than 1000" in (statistics.last_rejection or "")


@pytest.mark.parametrize("connected", [True, False])
async def test_a_new_topic_is_ready_when_the_bus_says_so_but_not_for_ever(
    connected: bool, autojump_clock: MockClock
) -> None:
    """After the time-out, and at once while the bus is down: an answer is better than none."""
    house = House()
    house.bus.connected = connected
    house.hub.stream(STOCK)
    start = trio.current_time()
    await house.ingest.wait_ready([STOCK])
    assert trio.current_time() - start == (5 if connected else 0)
    house.bus.connected = True
    house.bus.confirmed.set()
    start = trio.current_time()
    await house.ingest.wait_ready([STOCK])
    await house.ingest.wait_ready([STOCK])
    assert trio.current_time() == start


def test_every_stream_that_may_have_a_hole_says_so() -> None:
    """Those that were there when the source was lost and those that came while it was away."""
    house = House()
    old = house.hub.stream(STOCK)
    house.ingest.on_message(b"stock:A:price", price("A", 1))
    house.bus.connected = False
    house.ingest.on_lost("test")
    new = house.hub.stream(SECTOR)
    epochs = {old.epoch, new.epoch}
    house.bus.connected = True
    house.ingest.on_connected()
    assert not epochs & {old.epoch, new.epoch}
    house.ingest.on_message(b"stock:A:price", price("A", 2))
    assert old.sequence == 1
    epochs = {old.epoch, new.epoch}
    house.ingest.on_connected()
    assert epochs == {old.epoch, new.epoch}
