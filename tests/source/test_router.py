"""From a channel to the hub: what is routed, what is refused, and what a lost source means.

Covers streamer.source.demand, streamer.source.positions, streamer.source.report and
streamer.source.topics.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import redis as redis_py
import structlog
import trio
from trio.testing import MockClock

from streamer.broker.keys import history_key, position_key
from streamer.hub.flush import FlushLoop
from streamer.hub.hub import Hub
from streamer.hub.streams import TopicStream
from streamer.hub.wakeup import Wakeup
from streamer.protocol.messages import Position
from streamer.protocol.topics import Topic
from streamer.publisher import Publisher, open_publisher
from streamer.server import Server
from streamer.source.demand import TopicDemand
from streamer.source.report import SourceReport
from streamer.source.router import Router
from streamer.source.topics import TopicSource
from tests.helpers.clients import Client, connected
from tests.helpers.publications import orderbook, price
from tests.helpers.redis_server import RedisServer
from tests.helpers.server import running_server
from tests.helpers.timing import eventually

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

    def is_refused(self, channel: str) -> bool:
        """No channel is refused."""
        del channel
        return False


class House:
    """A router between a scripted bus and a hub, with nobody who keeps positions."""

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
        self.router = Router(
            self.hub,
            self.flush_loop,
            SourceReport(),
            max_publication_bytes=1000,
            history_length=10,
            keeps_positions=False,
        )
        self.source = TopicSource(
            self.hub, demand, self.router, self.bus, None, subscribe_timeout_seconds=5
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
    """Another stock's price on a stock's channel is refused; a sector's may be anybody's."""
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
    assert [line["rejected_since_last_line"] for line in logs] == [1, 1000]
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


# With a real Redis


async def _expect(client: Client, *expected: int | str) -> None:
    """The next prices, and the reasons of the gaps between them; snapshots are passed over."""
    for item in expected:
        message = await client.data()
        while message.get("snapshot"):
            message = await client.data()
        assert message.get("reason", message.get("price")) == item, message


@asynccontextmanager
async def listening(redis_url: str) -> AsyncIterator[tuple[Server, Publisher, Client]]:
    """A server, a publisher, and a client that has subscribed to stock:A in mode all."""
    async with (
        running_server(redis=redis_url, flush_interval_ms=0) as server,
        open_publisher(redis_url) as publisher,
        connected(server) as client,
    ):
        await client.subscribe("stock:A", mode="all")
        yield server, publisher, client


async def test_a_topic_may_go_from_plain_to_positioned_publications_and_back(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Each time with a gap, since neither kind says what lies between."""
    async with listening(redis_url) as (_server, publisher, client):
        redis.publish("stock:A:price", price("A", 1))
        await publisher.publish("stock:A:price", price("A", 2))
        redis.publish("stock:A:price", price("A", 3))
        await publisher.publish("stock:A:price", price("A", 4))
        another = "source_reconnected"
        await _expect(client, 1, another, 2, another, 3, another, 4)


async def test_what_redis_kept_while_the_connection_was_lost_is_no_gap(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """All of it, in order and once, before the live flow goes on."""
    async with listening(redis_url) as (server, publisher, client):
        number = 1
        await publisher.publish("stock:A:price", price("A", number))
        for _ in range(5):
            redis.client_kill_filter(_type="pubsub")
            for _ in range(20):
                number += 1
                await publisher.publish("stock:A:price", price("A", number))
            await eventually(lambda: server._redis is not None and server._redis.connected)
        await _expect(client, *range(1, number + 1))
        assert server.statistics().ingest.recovered > 0


async def test_a_hole_in_the_flow_is_read_from_the_history(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Redis drops what a subscriber is too slow for; a repeat of it is dropped here."""
    async with listening(redis_url) as (server, publisher, client):
        receipt = await publisher.publish("stock:A:price", price("A", 1))
        assert receipt.position is not None
        epoch = receipt.position.epoch
        key = history_key("stock:A")
        texts = {n: price("A", n, epoch=epoch, sequence=n) for n in (2, 3)}
        for sequence, text in texts.items():
            redis.xadd(key, {"m": text, "t": 0, "k": "price"}, id=f"{sequence}-0")
        redis.hset(position_key("stock:A"), "sequence", 3)
        redis.publish("stock:A:price", texts[3])
        await _expect(client, 1, 2, 3)
        redis.publish("stock:A:price", texts[2])
        await publisher.publish("stock:A:orderbook", orderbook("A", 4))
        assert (await client.data())["sequence"] == 4
        statistics = server.statistics().ingest
        assert (statistics.recovered, statistics.duplicates) == (2, 2)


async def test_a_hole_that_nobody_can_fill_does_not_hold_up_the_flow(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """A publication that Redis carried and does not know: behind a gap, it goes on."""
    async with listening(redis_url) as (_server, publisher, client):
        receipt = await publisher.publish("stock:A:price", price("A", 1))
        assert receipt.position is not None
        epoch = receipt.position.epoch
        redis.publish("stock:A:price", price("A", 5, epoch=epoch, sequence=5))
        await _expect(client, 1, "source_reconnected", 5)


async def test_trimmed_history_is_a_gap_where_it_was(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """What is left of it follows."""
    own = own_redis_server()
    async with listening(own.url) as (_server, publisher, client):
        receipt = await publisher.publish("stock:A:price", price("A", 1))
        assert receipt.position is not None
        await _expect(client, 1)
        with own.connect() as redis, redis.pipeline(transaction=True) as step:
            step.client_kill_filter(_type="pubsub")
            step.xadd(
                history_key("stock:A"),
                {
                    "m": price("A", 5, epoch=receipt.position.epoch, sequence=5),
                    "t": 0,
                    "k": "price",
                },
                id="5-0",
            )
            step.hset(position_key("stock:A"), "sequence", 5)
            step.execute()
        await _expect(client, "history_expired", 5)


async def test_a_redis_that_went_back_begins_a_new_epoch(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """After a failover that lost writes, say; for producers and all servers alike."""
    async with (
        running_server(redis=redis_url, flush_interval_ms=0) as server,
        running_server(redis=redis_url, flush_interval_ms=0) as other,
        open_publisher(redis_url) as publisher,
        connected(server) as client,
        connected(other) as other_client,
    ):
        for heard in (client, other_client):
            await heard.subscribe("stock:A", mode="all")
        for number in (1, 2, 3):
            await publisher.publish("stock:A:price", price("A", number))
        for heard in (client, other_client):
            await _expect(heard, 1, 2, 3)
        with redis.pipeline(transaction=True) as step:
            step.client_kill_filter(_type="pubsub")
            step.hset(position_key("stock:A"), "sequence", 1)
            step.xdel(history_key("stock:A"), "2-0", "3-0")
            step.execute()
        positions = []
        for heard in (client, other_client):
            gap = await heard.receive_type("gap")
            assert gap["reason"] == "source_reconnected"
            positions.append((gap["epoch"], gap["sequence"]))
        assert positions[0] == positions[1]
        assert positions[0][1] == 0
        receipt = await publisher.publish("stock:A:price", price("A", 4))
        assert receipt.position == Position(positions[0][0], 1)
        for heard in (client, other_client):
            await _expect(heard, 4)


async def test_positions_that_cannot_be_read_now_are_asked_for_again(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Until then the topic waits: to number on would be to number over what Redis may have."""
    own = own_redis_server()
    async with listening(own.url) as (_server, publisher, client):
        await publisher.publish("stock:A:price", price("A", 1))
        await publisher.publish("stock:A:price", price("A", 2))
        await _expect(client, 1, 2)
        with own.connect() as redis, structlog.testing.capture_logs() as logs:
            redis.hset(position_key("stock:A"), "sequence", 1)
            redis.replicaof("127.0.0.1", 1)  # it cannot begin an epoch now
            redis.client_kill_filter(_type="pubsub")
            await eventually(lambda: "positions not read" in [line["event"] for line in logs])
            redis.replicaof("no", "one")
        await _expect(client, "source_reconnected")
        await publisher.publish("stock:A:price", price("A", 3))
        await _expect(client, 3)


async def test_history_that_cannot_be_read_is_a_gap(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """A client gets what this server knows, rather than no answer while Redis is away."""
    own = own_redis_server()
    async with (
        running_server(redis=own.url, flush_interval_ms=0, history_length=1) as server,
        open_publisher(own.url) as publisher,
        connected(server) as first,
        connected(server) as second,
    ):
        await first.subscribe("stock:A", mode="all")
        await publisher.publish("stock:A:price", price("A", 1))
        receipt = await publisher.publish("stock:A:price", price("A", 2))
        await _expect(first, 1, 2)
        assert receipt.position is not None
        await trio.to_thread.run_sync(own.kill)
        await eventually(lambda: server._redis is not None and not server._redis.connected)
        since = {"epoch": receipt.position.epoch, "sequence": 0}
        await second.subscribe("stock:A", since={"A": since})
        await _expect(second, "source_unavailable")
        assert (await second.data())["price"] == 2
