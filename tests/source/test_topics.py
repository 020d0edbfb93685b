"""Topics are opened as clients want them, and what clients missed is recovered within a bound.

Covers streamer.source.demand and streamer.source.missed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import pytest
import redis
import trio

from streamer.broker.history import Entry
from streamer.broker.keys import history_key
from streamer.edge import requests as edge_requests
from streamer.hub.upstream import Recovery, RecoveryOutcome
from streamer.protocol.messages import Position
from streamer.protocol.topics import Topic
from streamer.publisher import open_publisher
from streamer.server import Server
from streamer.source.missed import MissedReads
from tests.helpers.clients import connected
from tests.helpers.publications import orderbook, price
from tests.helpers.redis_server import RedisServer
from tests.helpers.server import running_server
from tests.helpers.timing import eventually

STOCKS = [Topic.parse(f"stock:{name}") for name in "ABCDEF"]
STOCK = STOCKS[0]


async def publish(url: str, count: int, topic: Topic = STOCK) -> Position:
    """Publish so many prices; returns the position of the last."""
    async with open_publisher(url) as publisher:
        receipts = await publisher.publish_many(
            [(f"{topic}:price", price(topic.target, number)) for number in range(1, count + 1)]
        )
    position = receipts[-1].position
    assert position is not None
    return position


async def prepare(server: Server, since: dict[Topic, Position]) -> dict[Topic, Recovery]:
    """Do what a session does for a client that names these positions."""
    for topic in since:
        server.hub.stream(topic)
    return await server._source.prepare(list(since), since)


@asynccontextmanager
async def serving(url: str, **settings: float) -> AsyncIterator[Server]:
    """A server that waits half a second for its source."""
    async with running_server(redis=url, subscribe_timeout_seconds=0.5, **settings) as server:
        yield server


def positions_missed(server: Server, topic: Topic, since: Position) -> list[int]:
    """The sequences that the hub would replay."""
    found = server.hub.stream(topic).missed(since)
    missed = None if found is None else found[0]
    assert missed is not None
    return [publication.sequence for publication in missed]


async def test_what_only_redis_knows_is_recovered_for_all_topics_at_once(redis_url: str) -> None:
    """One round trip, whatever the number of topics."""
    since = {}
    for topic in STOCKS:
        at = await publish(redis_url, 3, topic)
        since[topic] = Position(at.epoch, 1)
    async with running_server(redis=redis_url) as server:
        recoveries = await prepare(server, since)
        for topic, position in since.items():
            assert recoveries[topic] == Recovery(RecoveryOutcome.RECOVERED, position)
            assert positions_missed(server, topic, position) == [2, 3]


async def test_a_publication_to_a_topic_that_is_just_released_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The router hears of the release a turn later; the bytes of histories are those that exist."""
    monkeypatch.setattr("streamer.server._EXPIRY_INTERVAL_SECONDS", 1000.0)
    async with running_server(linger_seconds=0) as server, connected(server) as client:
        await client.subscribe("stock:A")
        await client.unsubscribe("stock:A")
        publishing = server.hub.publishing
        assert server.bus is not None
        # No checkpoint, so that nothing else may hear of it in between.
        server.hub.release_unused()
        server.bus.publish("stock:A:price", price("A", 1))
        assert publishing.history_bytes > 0, "the topic was still routed"
        await eventually(lambda: publishing.history_bytes == 0)


async def test_what_nobody_keeps_is_expired(redis_url: str) -> None:
    """Another epoch, a position that nobody has given, and a topic of plain producers."""
    at = await publish(redis_url, 3)
    since = {
        STOCK: Position("unheard-of", 1),
        STOCKS[1]: Position("plain", 7),
    }
    async with running_server(redis=redis_url) as server:
        recoveries = await prepare(server, since)
        assert {recovery.outcome for recovery in recoveries.values()} == {RecoveryOutcome.EXPIRED}
        recoveries = await prepare(server, {STOCK: Position(at.epoch, 9)})
        assert recoveries[STOCK].outcome is RecoveryOutcome.EXPIRED


async def test_what_this_server_knows_needs_no_redis(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """A client that reconnects while the source is away gets the known messages."""
    own = own_redis_server()
    async with serving(own.url) as server:
        await prepare(server, {STOCK: Position("any", 0)})
        at = await publish(own.url, 3)
        await eventually(lambda: server.hub.stream(STOCK).sequence == 3)
        await trio.to_thread.run_sync(own.kill)
        await eventually(lambda: server._redis is not None and not server._redis.connected)
        since = Position(at.epoch, 1)
        recoveries = await prepare(server, {STOCK: since})
        assert recoveries == {STOCK: Recovery(RecoveryOutcome.RECOVERED, since)}
        assert positions_missed(server, STOCK, since) == [2, 3]


async def test_a_position_beyond_a_server_that_is_cut_off_is_unavailable(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Another server was faster: what the client has had is not known here, and not expired."""
    own = own_redis_server()
    async with serving(own.url) as server:
        await prepare(server, {STOCK: Position("any", 0)})
        at = await publish(own.url, 3)
        await eventually(lambda: server.hub.stream(STOCK).sequence == 3)
        await trio.to_thread.run_sync(own.kill)
        await eventually(lambda: server._redis is not None and not server._redis.connected)
        since = Position(at.epoch, 7)
        recoveries = await prepare(server, {STOCK: since})
        assert recoveries == {STOCK: Recovery(RecoveryOutcome.UNAVAILABLE, since)}
        assert server.hub.stream(STOCK).sequence == 3


async def test_a_source_that_is_not_there_yet_is_waited_for(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """A client with a position gets what it missed, and no epoch that the server invented."""
    own = own_redis_server(appendonly="yes", appendfsync="always")
    at = await publish(own.url, 3)
    await trio.to_thread.run_sync(own.kill)
    since = {STOCK: Position(at.epoch, 1)}
    async with running_server(redis=own.url, subscribe_timeout_seconds=60) as server:
        async with trio.open_nursery() as nursery:
            recoveries: dict[Topic, Recovery] = {}

            async def restore() -> None:
                recoveries.update(await prepare(server, since))

            nursery.start_soon(restore)
            await trio.testing.wait_all_tasks_blocked()
            await trio.to_thread.run_sync(own.restart)
        assert recoveries[STOCK].outcome is RecoveryOutcome.RECOVERED
        assert positions_missed(server, STOCK, since[STOCK]) == [2, 3]


async def test_a_silent_redis_keeps_those_who_restore_waiting_once(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """All topics have one deadline, and who comes after a failure does not wait for another."""
    own = own_redis_server()
    since = {}
    for topic in STOCKS:
        at = await publish(own.url, 3, topic)
        since[topic] = Position(at.epoch, 1)
    async with serving(own.url, history_length=1) as server:
        assert server._positions is not None
        for topic in STOCKS:
            server.hub.stream(topic)
        await server._source.prepare(STOCKS, {})
        own.pause()
        try:
            recoveries = await prepare(server, since)
            assert {r.outcome for r in recoveries.values()} == {RecoveryOutcome.UNAVAILABLE}
            assert server._positions.failing
            # It does not even reach a checkpoint: nothing is asked.
            with trio.CancelScope() as scope:
                scope.cancel()
                recoveries = await prepare(server, since)
            assert not scope.cancelled_caught
            assert {r.outcome for r in recoveries.values()} == {RecoveryOutcome.UNAVAILABLE}
        finally:
            own.resume()


async def test_who_waits_in_a_storm_goes_on_waiting_while_redis_answers_others(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Redis is not silent then, and what the client has missed is not lost."""
    own = own_redis_server()
    at = await publish(own.url, 3)
    since = {STOCK: Position(at.epoch, 1)}
    async with serving(own.url) as server:
        positions = server._positions
        assert positions is not None
        await prepare(server, {STOCK: at})
        recoveries: dict[Topic, Recovery] = {}

        async def restore() -> None:
            recoveries.update(await prepare(server, since))

        async with trio.open_nursery() as nursery:
            own.pause()
            nursery.start_soon(restore)
            began_seconds = trio.current_time()
            while trio.current_time() < began_seconds + 1.2:  # more than twice its time
                positions.answered_seconds = trio.current_time()  # another client's question
                await trio.lowlevel.checkpoint()
            assert not recoveries
            own.resume()
        assert recoveries[STOCK].outcome is RecoveryOutcome.RECOVERED
        assert not positions.failing
        assert positions_missed(server, STOCK, since[STOCK]) == [2, 3]


async def test_who_returns_waits_for_a_new_topic_while_redis_answers_others(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """A server that starts reads thousands of topics: that a client's is not the first is no gap.

    A client without a position gets its answer in time: it can miss nothing.
    """
    own = own_redis_server()
    at = await publish(own.url, 3)
    since = {STOCK: Position(at.epoch, 1)}
    async with serving(own.url) as server:
        positions = server._positions
        assert positions is not None
        recoveries: dict[Topic, Recovery] = {}
        new_is_served = trio.Event()

        async def restore() -> None:
            recoveries.update(await prepare(server, since))

        async def subscribe() -> None:
            server.hub.stream(STOCKS[1])
            assert await server._source.prepare([STOCKS[1]], {}) == {}
            new_is_served.set()

        async with trio.open_nursery() as nursery:
            own.pause()
            nursery.start_soon(restore)
            nursery.start_soon(subscribe)
            began_seconds = trio.current_time()
            while trio.current_time() < began_seconds + 1.2:  # more than twice its time
                positions.answered_seconds = trio.current_time()  # another client's topic
                await trio.lowlevel.checkpoint()
            assert new_is_served.is_set()
            assert not recoveries
            own.resume()
        assert recoveries[STOCK].outcome is RecoveryOutcome.RECOVERED
        assert positions_missed(server, STOCK, since[STOCK]) == [2, 3]


async def test_a_topic_is_kept_while_a_client_waits_for_it(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Longer than the linger time; it is released once the client has given up."""
    own = own_redis_server()
    at = await publish(own.url, 3)
    since = {STOCK: Position(at.epoch, 1)}
    async with running_server(
        redis=own.url, subscribe_timeout_seconds=60, linger_seconds=0
    ) as server:
        own.pause()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(edge_requests.prepare, server._services, [STOCKS[1]], {})
            await trio.testing.wait_all_tasks_blocked()
            server.hub.release_unused()
            assert STOCKS[1] in server.hub.streams
            nursery.cancel_scope.cancel()
        server.hub.release_unused()
        assert STOCKS[1] not in server.hub.streams
        recoveries: dict[Topic, Recovery] = {}

        async def restore() -> None:
            recoveries.update(await edge_requests.prepare(server._services, [STOCK], since))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(restore)
            await trio.testing.wait_all_tasks_blocked()
            server.hub.release_unused()
            own.resume()
        assert recoveries[STOCK].outcome is RecoveryOutcome.RECOVERED
        assert positions_missed(server, STOCK, since[STOCK]) == [2, 3]


@asynccontextmanager
async def caught_up(own: RedisServer, at: Position, **settings: float) -> AsyncIterator[Server]:
    """A patient server that begins at this position, and knows nothing before it."""
    async with running_server(redis=own.url, subscribe_timeout_seconds=60, **settings) as server:
        await prepare(server, {STOCK: at})
        yield server


async def restore_while_paused(
    server: Server, own: RedisServer, positions: list[Position]
) -> tuple[list[Recovery], int]:
    """Restore these at the same time; returns the outcomes, and how often Redis was read."""
    recoveries: dict[int, Recovery] = {}

    async def restore(number: int, position: Position) -> None:
        recoveries[number] = (await prepare(server, {STOCK: position}))[STOCK]

    before = scripts_run(own)
    own.pause()
    async with trio.open_nursery() as nursery:
        for number, position in enumerate(positions):
            nursery.start_soon(restore, number, position)
            await trio.testing.wait_all_tasks_blocked()
        own.resume()
    return [recoveries[number] for number in range(len(positions))], scripts_run(own) - before


def scripts_run(own: RedisServer) -> int:
    """How many scripts a Redis has run; each read of a topic is one."""
    with redis.Redis.from_url(own.url) as client:
        return int(client.info("commandstats")["cmdstat_evalsha"]["calls"])


async def test_a_crowd_that_returns_reads_a_topic_once(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Each for itself, fifty clients would read 50 times 4 MB at once; the positions differ."""
    own = own_redis_server()
    at = await publish(own.url, 40)
    async with caught_up(own, at) as server:
        same = [Position(at.epoch, 30)] * 20
        assert await restore_while_paused(server, own, same) == (
            [Recovery(RecoveryOutcome.RECOVERED, same[0])] * 20,
            1,
        )
        assert positions_missed(server, STOCK, same[0]) == list(range(31, 41))
        different = [Position(at.epoch, sequence) for sequence in (20, 7, 25, 3, 9, 12)]
        assert await restore_while_paused(server, own, different) == (
            [Recovery(RecoveryOutcome.RECOVERED, position) for position in different],
            2,  # after 20, then after 3, the earliest of those that waited
        )
        assert positions_missed(server, STOCK, different[3]) == list(range(4, 41))


async def test_others_read_what_the_reader_of_a_crowd_does_not(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """It may leave while it reads, and each epoch is read by itself."""
    own = own_redis_server()
    at = await publish(own.url, 5)
    first, unheard_of = Position(at.epoch, 1), Position("unheard-of", 1)
    async with caught_up(own, at) as server:
        recoveries = {}

        async def restore(position: Position) -> None:
            recoveries[position] = (await prepare(server, {STOCK: position}))[STOCK]

        own.pause()
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as leaving:
                leaving.start_soon(restore, Position(at.epoch, 3))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(restore, first)
                nursery.start_soon(restore, unheard_of)
                await trio.testing.wait_all_tasks_blocked()
                leaving.cancel_scope.cancel()
            own.resume()
        assert recoveries == {
            first: Recovery(RecoveryOutcome.RECOVERED, first),
            unheard_of: Recovery(RecoveryOutcome.EXPIRED, unheard_of),
        }


async def test_a_crowd_is_sent_what_there_is_for_each(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """A history begins after the positions of some, or is longer than what is read at once."""
    own = own_redis_server()
    at = await publish(own.url, 150)
    with redis.Redis.from_url(own.url) as client:
        client.xtrim(history_key(str(STOCK)), minid="21-0")
    positions = [Position(at.epoch, sequence) for sequence in (12, 20, 60, 100, 5)]
    async with caught_up(own, at, history_length=100) as server:
        recoveries, _ = await restore_while_paused(server, own, positions)
        assert [recovery.outcome for recovery in recoveries] == [
            RecoveryOutcome.EXPIRED,
            RecoveryOutcome.EXPIRED,  # more than the server keeps
            RecoveryOutcome.RECOVERED,
            RecoveryOutcome.RECOVERED,
            RecoveryOutcome.EXPIRED,
        ]
    async with caught_up(own, at) as server:
        recoveries, reads = await restore_while_paused(server, own, positions)
        assert [recovery.outcome is RecoveryOutcome.RECOVERED for recovery in recoveries] == [
            False,
            True,
            True,
            True,
            False,
        ]
        assert reads == 2


async def test_a_position_earlier_than_one_that_is_too_early_is_not_read(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Otherwise clients with ever earlier positions would hold up the others."""
    own = own_redis_server()
    at = await publish(own.url, 150)
    positions = [Position(at.epoch, sequence) for sequence in (12, 5)]
    async with caught_up(own, at, history_length=100) as server:
        assert await restore_while_paused(server, own, positions) == (
            [Recovery(RecoveryOutcome.EXPIRED, position) for position in positions],
            1,
        )


async def publish_changes(url: str, count: int, topic: Topic = STOCK) -> Position:
    """Publish a whole book and so many changes of it; returns the position of the last."""
    channel = f"{topic}:orderbook"
    changes = [
        {
            "type": "orderbook_delta",
            "stock_code": topic.target,
            "bids": [{"price": 1, "quantity": number}],
            "asks": [],
        }
        for number in range(1, count + 1)
    ]
    async with open_publisher(url) as publisher:
        await publisher.publish(channel, orderbook(topic.target, 1))
        receipts = await publisher.publish_many([(channel, change) for change in changes])
    position = receipts[-1].position
    assert position is not None
    return position


async def test_a_book_is_searched_before_a_position_by_as_much_as_is_read_at_once(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """That read ends before the publications that the hub has: those between are not lost."""
    own = own_redis_server()
    at = await publish_changes(own.url, 150)
    positions = [Position(at.epoch, sequence) for sequence in (80, 95)]
    async with caught_up(own, at, history_length=100) as server:
        assert await restore_while_paused(server, own, positions) == (
            [Recovery(RecoveryOutcome.RECOVERED, position) for position in positions],
            2,  # the missed ones, then those before
        )
        assert positions_missed(server, STOCK, positions[0]) == list(range(81, 152))


async def test_a_client_waits_for_its_own_topic_alone(
    own_redis_server: Callable[..., RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another client reads it together with topics that take longer."""
    own = own_redis_server()
    prices = await publish(own.url, 3)
    books = await publish_changes(own.url, 3, STOCKS[1])
    since = {STOCK: Position(prices.epoch, 1), STOCKS[1]: Position(books.epoch, 2)}
    rebuilt = MissedReads._rebuilt
    answered: list[int] = []

    async def pause_redis(reads: MissedReads, topic: Topic, raw: Iterable[Entry]) -> list[Entry]:
        own.pause()
        monkeypatch.undo()
        return await rebuilt(reads, topic, raw)

    async def restore(topics: int) -> None:
        recoveries = await prepare(server, dict(list(since.items())[:topics]))
        assert {recovery.outcome for recovery in recoveries.values()} == {RecoveryOutcome.RECOVERED}
        answered.append(topics)

    async with running_server(redis=own.url, subscribe_timeout_seconds=60) as server:
        await prepare(server, {STOCK: prices, STOCKS[1]: books})
        monkeypatch.setattr(MissedReads, "_rebuilt", pause_redis)
        own.pause()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(restore, 2)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(restore, 1)
            await trio.testing.wait_all_tasks_blocked()
            own.resume()
            await eventually(lambda: answered == [1])
            own.resume()
        assert answered == [1, 2]


async def test_redis_fails_while_a_book_is_searched(
    own_redis_server: Callable[..., RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis may still have it: it is not expired."""
    own = own_redis_server()
    at = await publish_changes(own.url, 3)
    rebuilt = MissedReads._rebuilt

    def demote() -> None:
        """Have Redis answer no more questions, with no connection lost."""
        with redis.Redis.from_url(own.url) as client:
            client.config_set("replica-serve-stale-data", "no")
            client.replicaof("127.0.0.1", 1)

    async def lose_redis(reads: MissedReads, topic: Topic, raw: Iterable[Entry]) -> list[Entry]:
        await trio.to_thread.run_sync(demote)
        return await rebuilt(reads, topic, raw)

    monkeypatch.setattr(MissedReads, "_rebuilt", lose_redis)
    async with caught_up(own, at) as server:
        since = Position(at.epoch, 2)
        recoveries = await prepare(server, {STOCK: since})
        assert recoveries == {STOCK: Recovery(RecoveryOutcome.UNAVAILABLE, since)}


async def test_a_crowd_is_answered_when_redis_is_lost(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Nobody asks again after the failure of the one who read."""
    own = own_redis_server()
    at = await publish(own.url, 3)
    outcomes: list[RecoveryOutcome] = []
    async with caught_up(own, at) as server:

        async def restore() -> None:
            recoveries = await prepare(server, {STOCK: Position(at.epoch, 1)})
            outcomes.append(recoveries[STOCK].outcome)

        own.pause()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(restore)
            await trio.testing.wait_all_tasks_blocked()
            await trio.to_thread.run_sync(own.kill)
    assert outcomes == [RecoveryOutcome.UNAVAILABLE] * 3


async def test_without_positions_nothing_is_recovered() -> None:
    """With the bus inside the process: what the hub does not know, nobody does."""
    async with running_server() as server:
        since = Position("e", 7)
        assert await prepare(server, {STOCK: since}) == {
            STOCK: Recovery(RecoveryOutcome.EXPIRED, since)
        }


async def test_least_and_no_history_recovers_what_redis_keeps(redis_url: str) -> None:
    """A server that keeps nothing itself still fills its holes from Redis."""
    async with running_server(redis=redis_url, history_length=0, history_seconds=0.001) as server:
        await prepare(server, {STOCK: Position("any", 0)})
        at = await publish(redis_url, 3)
        await eventually(lambda: server.hub.stream(STOCK).sequence == 3)
        server._router.on_lost("test")
        assert (await prepare(server, {STOCK: at}))[STOCK].outcome is RecoveryOutcome.RECOVERED
        at = await publish(redis_url, 2)
        await eventually(lambda: server.hub.stream(STOCK).sequence == 5)
        assert server.hub.stream(STOCK).epoch == at.epoch


async def test_a_topic_that_is_released_and_wanted_again_is_read_anew(redis_url: str) -> None:
    """Changes of demand are followed in their order."""
    async with running_server(redis=redis_url, linger_seconds=0) as server:
        at = await publish(redis_url, 1)
        for _ in range(3):
            recoveries = await prepare(server, {STOCK: at})
            assert recoveries[STOCK].outcome is RecoveryOutcome.RECOVERED
            server.hub.release_unused()
