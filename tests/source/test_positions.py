"""Positions and histories are read from a real Redis, and what that means for clients.

Covers streamer.source.reads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis as redis_py
import structlog
import trio
import trio.testing

from streamer.broker.keys import history_key, position_key
from streamer.protocol.messages import Position
from streamer.publisher import Publisher, open_publisher
from streamer.server import Server
from streamer.source.reads import ReadQueue
from tests.helpers.clients import Client, connected
from tests.helpers.proxy import Proxy
from tests.helpers.publications import orderbook, price
from tests.helpers.redis_server import RedisServer
from tests.helpers.server import running_server
from tests.helpers.timing import eventually


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
        another = "source_reconnected"
        redis.publish("stock:A:price", price("A", 1))
        await _expect(client, 1)
        # One by one: a history that is read late has the next positioned one, too.
        await publisher.publish("stock:A:price", price("A", 2))
        await _expect(client, another, 2)
        redis.publish("stock:A:price", price("A", 3))
        await _expect(client, another, 3)
        await publisher.publish("stock:A:price", price("A", 4))
        await _expect(client, another, 4)


async def test_what_redis_kept_while_the_connection_was_lost_is_no_gap(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """All of it is sent, in order and once, before the live flow continues."""
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


async def test_a_redis_that_has_taken_the_place_of_another_is_asked(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """The old one runs on and would still answer: with what it had before the failover."""
    old = own_redis_server(repl_diskless_sync_delay=0)
    new = own_redis_server(replicaof=f"127.0.0.1 {old.port}")
    proxy = Proxy(old.port)
    with old.connect() as old_redis, new.connect() as new_redis:
        async with (
            proxy.run(),
            open_publisher(new.url) as publisher,
            listening(f"redis://127.0.0.1:{proxy.port}") as (server, before, client),
        ):
            await before.publish("stock:A:price", price("A", 1))
            await _expect(client, 1)
            await eventually(lambda: old_redis.wait(1, 100))
            new_redis.replicaof("no", "one")
            proxy.server_port = new.port
            await publisher.publish("stock:A:price", price("A", 2))
            old_redis.client_kill_filter(_type="pubsub")
            await _expect(client, 2)
            await publisher.publish("stock:A:price", price("A", 3))
            await _expect(client, 3)
            assert server.statistics().ingest.rejected == 0


async def test_a_redis_that_is_behind_is_asked_over_a_new_connection(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """It may be another one than is heard, as the answer of a sentinel that is cut off."""
    async with listening(redis_url) as (server, publisher, client):

        def connections() -> list[str]:
            name = f"streamer-{server.instance}"
            return [entry["id"] for entry in redis.client_list() if entry["name"] == name]

        receipt = await publisher.publish("stock:A:price", price("A", 1))
        assert receipt.position is not None
        await _expect(client, 1)
        before = connections()
        assert len(before) == 1
        epoch = receipt.position.epoch
        redis.publish("stock:A:price", price("A", 99, epoch=epoch, sequence=99))
        await eventually(lambda: server.statistics().ingest.rejected == 1)
        assert server._commands is not None
        await server._commands.execute_many([("ECHO", "x")])
        await eventually(lambda: len(connections()) == 1)
        assert connections() != before


async def test_publications_beyond_redis_cost_a_connection_once_in_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Anybody may publish them, and as many as they like."""
    renewals = 0

    def renew() -> None:
        nonlocal renewals
        renewals += 1

    queue = ReadQueue(renew)
    for expected in (1, 2):
        for _ in range(3):
            queue.note_behind()
        assert renewals == expected
        await trio.sleep(1)


@pytest.mark.parametrize("sequence", [5, 2**53 - 1])
async def test_nothing_is_passed_on_that_is_beyond_what_redis_holds(
    redis_url: str, redis: redis_py.Redis, sequence: int
) -> None:
    """A publication of the present epoch by anybody: counted, and the honest ones go on."""
    async with listening(redis_url) as (server, publisher, client):
        receipt = await publisher.publish("stock:A:price", price("A", 1))
        assert receipt.position is not None
        epoch = receipt.position.epoch
        redis.publish("stock:A:price", price("A", 5, epoch=epoch, sequence=sequence))
        await publisher.publish("stock:A:price", price("A", 2))
        await _expect(client, 1, 2)
        await eventually(lambda: server.statistics().ingest.rejected == 1)


async def test_a_producer_that_starts_again_is_a_gap(redis_url: str, redis: redis_py.Redis) -> None:
    """One that numbers for itself, within its epoch; the step back is logged and counted."""
    async with (
        running_server(redis=redis_url, flush_interval_ms=0) as server,
        connected(server) as client,
    ):
        await client.subscribe("stock:A", mode="all")
        with structlog.testing.capture_logs() as logs:
            for sequence in (1, 2, 3):
                redis.publish("stock:A:price", price("A", sequence, epoch="e", sequence=sequence))
            for sequence in (1, 2, 3, 4):
                text = price("A", 10 + sequence, epoch="e", sequence=sequence)
                redis.publish("stock:A:price", text)
            await _expect(client, 1, 2, 3, "source_reconnected", 11, 12, 13, 14)
        assert server.statistics().ingest.steps_back == 1
        assert "positions began anew" in [line["event"] for line in logs]


async def test_a_publication_that_is_too_large_is_a_gap_on_all_paths(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Live, out of the history, as a snapshot: it reaches no client and its position is skipped."""
    async with open_publisher(redis_url) as publisher:
        async with (
            running_server(
                redis=redis_url, flush_interval_ms=0, max_publication_bytes=1000
            ) as server,
            connected(server) as client,
            connected(server) as second,
        ):
            await client.subscribe("stock:A", mode="all")
            receipt = await publisher.publish("stock:A:price", price("A", 1))
            assert receipt.position is not None
            for number, pad in ((2, 1000), (3, 0), (4, 1000)):
                await publisher.publish("stock:A:price", price("A", number, pad="x" * pad))
            await _expect(client, 1, "history_expired", 3)
            redis.client_kill_filter(_type="pubsub")
            await _expect(client, "history_expired")
            since = {"epoch": receipt.position.epoch, "sequence": 1}
            await second.subscribe("stock:A", since={"A": since}, mode="all")
            await _expect(second, "history_expired")
            await publisher.publish("stock:A:price", price("A", 5))
            await _expect(client, 5)
            await _expect(second, 5)
        async with (
            running_server(
                redis=redis_url, flush_interval_ms=0, max_publication_bytes=1000
            ) as server,
            connected(server) as client,
        ):
            await publisher.publish("stock:A:price", price("A", 6, pad="x" * 1000))
            answer = await client.subscribe("stock:A", mode="all")
            assert answer["positions"]["A"]["sequence"] == 6
            snapshot = await client.data()
            assert (snapshot["snapshot"], snapshot["price"]) == (True, 5)
        assert server.statistics().ingest.unreadable > 0


@pytest.mark.parametrize(
    "entry",
    [
        {"m": b'garbag,"snapshot":true}', "t": 0, "k": "price"},
        {"m": b"{}", "t": 0, "k": "price"},
        {"m": price("A", 2, epoch="e", sequence=7), "t": 0, "k": "price"},
        {"m": price("B", 2, epoch="e", sequence=2), "t": 0, "k": "price"},
        {"m": price("A", 2, epoch="e", sequence=2), "t": 0, "k": "of a newer publisher"},
        {"m": price("A", 2, epoch="e", sequence=2), "t": 0, "k": b"\xff"},
        {"m": price("A", 2, epoch="e", sequence=2), "t": 0},
        {"t": 0, "k": "price"},
        {"strange": 0},
    ],
)
async def test_a_damaged_history_entry_reaches_nobody(
    own_redis_server: Callable[..., RedisServer], entry: dict[Any, Any]
) -> None:
    """Its position is a gap; what comes before it and after it is passed on. It is logged once."""
    own = own_redis_server()
    with own.connect() as redis, structlog.testing.capture_logs() as logs:
        for sequence in (1, 2, 3):
            good = {"m": price("A", sequence, epoch="e", sequence=sequence), "t": 0, "k": "price"}
            fields = entry if sequence == 2 else good
            redis.xadd(history_key("stock:A"), fields, id=f"{sequence}-0")
        redis.hset(position_key("stock:A"), mapping={"epoch": "e", "sequence": 3})
        async with (
            running_server(redis=own.url, flush_interval_ms=0) as server,
            connected(server) as client,
        ):
            await client.subscribe(
                "stock:A", since={"A": {"epoch": "e", "sequence": 0}}, mode="all"
            )
            await _expect(client, "history_expired")
            redis.client_kill_filter(_type="pubsub")
            redis.xadd(history_key("stock:A"), entry, id="4-0")
            text = price("A", 5, epoch="e", sequence=5)
            redis.xadd(history_key("stock:A"), {"m": text, "t": 0, "k": "price"}, id="5-0")
            redis.hset(position_key("stock:A"), "sequence", 5)
            await _expect(client, "history_expired", 5)
            assert server.statistics().ingest.unreadable >= 2
    lines = [line for line in logs if line["event"] == "history not readable"]
    assert [line["topic"] for line in lines] == ["stock:A"]


@pytest.mark.parametrize(
    "position",
    [
        {"epoch": "e", "sequence": "abc"},
        {"epoch": "e", "sequence": str(2**53)},
        {"epoch": "e", "sequence": "-1"},
        {"epoch": "e", "sequence": "1e300"},
        {"epoch": "e" * 65, "sequence": "1"},
        {"epoch": b"\xff", "sequence": "1"},
    ],
)
async def test_a_damaged_position_is_as_none(
    redis_url: str, redis: redis_py.Redis, position: dict[Any, Any]
) -> None:
    """The topic is one of producers without positions; others have theirs, and nothing ends."""
    redis.hset(position_key("stock:A"), mapping=position)
    async with (
        running_server(redis=redis_url, flush_interval_ms=0) as server,
        open_publisher(redis_url) as publisher,
        connected(server) as client,
    ):
        await client.subscribe("stock:A", "stock:B", mode="all")
        redis.publish("stock:A:price", price("A", 1))
        await _expect(client, 1)
        await publisher.publish("stock:B:price", price("B", 2))
        await _expect(client, 2)
        redis.client_kill_filter(_type="pubsub")
        await _expect(client, "source_reconnected")
        assert server.statistics().ingest.unreadable >= 2


async def test_keys_of_another_type_are_as_none(redis_url: str, redis: redis_py.Redis) -> None:
    """Invalid data in Redis does not stop publications."""
    redis.set(position_key("stock:A"), "x")
    redis.hset(position_key("stock:B"), mapping={"epoch": "e", "sequence": 1})
    redis.set(history_key("stock:B"), "x")
    async with (
        running_server(redis=redis_url, flush_interval_ms=0) as server,
        connected(server) as client,
    ):
        await client.subscribe("stock:A", "stock:B", mode="all")
        for name in "AB":
            redis.publish(f"stock:{name}:price", price(name, 1))
            await _expect(client, 1)


async def test_trimmed_history_is_a_gap_where_it_was(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """The rest of the history follows the gap."""
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


@pytest.mark.parametrize("published", [3, 5, 8])
async def test_a_redis_that_went_back_and_on_again_begins_a_new_epoch(
    own_redis_server: Callable[..., RedisServer], published: int
) -> None:
    """Another producer took the positions that were lost: fewer of them, as many, or more."""
    own = own_redis_server()
    async with running_server(redis=own.url, flush_interval_ms=0) as server:
        async with connected(server) as client:
            await client.subscribe("stock:A", mode="all")
            async with open_publisher(own.url) as publisher:
                receipts = await publisher.publish_many(
                    [("stock:A:price", price("A", number)) for number in range(1, 11)]
                )
            assert receipts[-1].position is not None
            await _expect(client, *range(1, 11))
            old = receipts[-1].position.epoch
            with own.connect() as redis:
                key = history_key("stock:A")
                with redis.pipeline(transaction=True) as step:
                    step.client_kill_filter(_type="pubsub")
                    step.hset(position_key("stock:A"), "sequence", 5)
                    step.delete(key)
                    # As the script of a publisher does that knows nothing of what was lost.
                    for sequence in range(6, 6 + published):
                        text = price("A", 100 + sequence, epoch=old, sequence=sequence)
                        step.xadd(key, {"m": text, "t": 0, "k": "price"}, id=f"{sequence}-0")
                        step.hset(position_key("stock:A"), "sequence", sequence)
                    step.execute()
            gap = await client.receive_type("gap")
            assert gap["reason"] == "source_reconnected"
            assert gap["epoch"] != old
            async with open_publisher(own.url) as publisher:
                receipt = await publisher.publish("stock:A:price", price("A", 200))
            assert receipt.position == Position(gap["epoch"], gap["sequence"] + 1)
            if published >= 5:
                # What was published in place of the lost is the last known value now.
                snapshot = await client.data()
                assert (snapshot["snapshot"], snapshot["price"]) == (True, 105 + published)
            await _expect(client, 200)
        async with connected(server) as client:
            await client.subscribe(
                "stock:A", since={"A": {"epoch": old, "sequence": 10}}, mode="all"
            )
            await _expect(client, "source_reconnected")


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


async def test_a_topic_that_cannot_be_read_now_does_not_hold_up_the_others(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """On a replica, say, no epoch can begin; what needs none goes on."""
    own = own_redis_server()
    async with listening(own.url) as (_server, publisher, client):
        await client.subscribe("stock:B", mode="all")
        for number in (1, 2):
            await publisher.publish("stock:A:price", price("A", number))
        await _expect(client, 1, 2)
        with own.connect() as redis:
            redis.publish("stock:B:price", price("B", 3))
            await _expect(client, 3)
            redis.hset(position_key("stock:A"), "sequence", 1)
            redis.replicaof("127.0.0.1", 1)
            redis.client_kill_filter(_type="pubsub")
            gap = await client.receive_type("gap")
            assert (gap["target"], gap["reason"]) == ("B", "source_reconnected")
            redis.publish("stock:B:price", price("B", 4))
            await _expect(client, 4)
            redis.replicaof("no", "one")
        gap = await client.receive_type("gap")
        assert (gap["target"], gap["reason"]) == ("A", "source_reconnected")


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
