"""What the history tells of topics, from a real Redis that a real publisher has written to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis as redis_py
import structlog
import trio

from streamer.broker.connect import RedisConnectionError
from streamer.broker.history import NEWEST_ENTRIES, HistoryQuery, RedisHistory, TopicHistory
from streamer.broker.keys import history_key, position_key
from streamer.broker.requests import RedisClient
from streamer.protocol.messages import Position
from streamer.protocol.topics import Kind, Topic
from streamer.publisher import open_publisher
from tests.helpers.publications import orderbook, price
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import DEADLINE_SECONDS

STOCK = Topic.parse("stock:A")
NOWHERE = Position("unheard-of", 0)


@asynccontextmanager
async def opened(url: str, *, history_length: int = 1000) -> AsyncIterator[RedisHistory]:
    """An history on a connection of its own."""
    with trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            commands = RedisClient(url, client_name="test")
            nursery.start_soon(commands.run)
            yield RedisHistory(commands, history_length=history_length)
            nursery.cancel_scope.cancel()


async def publish(url: str, count: int, channel: str = "stock:A:price") -> Position:
    """Publish that many, each with its number as price; returns the position of the last."""
    payload = orderbook if channel.endswith("orderbook") else price
    async with open_publisher(url) as publisher:
        receipts = await publisher.publish_many(
            [(channel, payload("A", number)) for number in range(1, count + 1)]
        )
    position = receipts[-1].position
    assert position is not None
    return position


async def ask(
    history: RedisHistory, after: Position, *, may_have_lost: bool = False, new_epoch: str = "new"
) -> TopicHistory | None:
    """What is known of the stock."""
    (record,) = await history.read([HistoryQuery(STOCK, after, may_have_lost)], new_epoch)
    return record


def sequences(record: TopicHistory) -> list[int]:
    """Of what was read."""
    return [sequence for _, sequence, _ in record.entries]


async def test_a_topic_without_positions_has_no_record(redis_url: str) -> None:
    """Nobody places its publications; and to ask leaves no trace."""
    async with opened(redis_url) as history:
        assert await ask(history, NOWHERE) is None
        assert await ask(history, NOWHERE) is None


async def test_what_followed_a_position_is_read_in_order(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """As it was published, kinds and all, and nothing at the end of the stream."""
    await publish(redis_url, 3)
    at = await publish(redis_url, 2, "stock:A:orderbook")
    assert at.sequence == 5
    async with opened(redis_url) as history:
        record = await ask(history, Position(at.epoch, 2))
        assert record is not None
        assert (record.position, record.follows) == (at, True)
        assert [(kind, sequence) for kind, sequence, _ in record.entries] == [
            (Kind.PRICE, 3),
            (Kind.ORDERBOOK, 4),
            (Kind.ORDERBOOK, 5),
        ]
        stored: Any = redis.xrange(history_key("stock:A"))
        assert [text for _, _, text in record.entries] == [e[b"m"] for _, e in stored][2:]
        record = await ask(history, at)
        assert record is not None
        assert (record.position, list(record.entries)) == (at, [])


async def test_no_more_is_read_than_the_history_length(redis_url: str) -> None:
    """The rest is there to be asked for after that."""
    at = await publish(redis_url, 5)
    async with opened(redis_url, history_length=2) as history:
        record = await ask(history, Position(at.epoch, 1))
        assert record is not None
        assert sequences(record) == [2, 3]
        assert record.position == at


async def test_of_another_epoch_the_newest_are_read(redis_url: str) -> None:
    """Enough to tell the last known value of each kind."""
    await publish(redis_url, 1, "stock:A:orderbook")
    at = await publish(redis_url, NEWEST_ENTRIES - 1)
    async with opened(redis_url) as history:
        record = await ask(history, NOWHERE)
        assert record is not None
        assert (record.position, record.follows) == (at, False)
        assert sequences(record) == list(range(1, NEWEST_ENTRIES + 1))
        assert [(kind, sequence) for kind, sequence, _ in record.latest] == [
            (Kind.ORDERBOOK, 1),
            (Kind.PRICE, NEWEST_ENTRIES),
        ]


async def test_an_epoch_is_known_by_the_names_that_were_told(redis_url: str) -> None:
    """What another server called it before it knew; but only while that is the epoch."""
    at = await publish(redis_url, 2)
    async with opened(redis_url) as history:
        await history.tell_names([(STOCK, "server-1", at.epoch)])
        record = await ask(history, Position("server-1", 1))
        assert record is not None
        assert (record.position, record.follows, sequences(record)) == (at, True, [2])
        await history.tell_names([(STOCK, "server-2", "an earlier one")])
        record = await ask(history, Position("server-2", 1))
        assert record is not None
        assert not record.follows


async def test_a_redis_that_lost_writes_begins_a_new_epoch_once(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """It stands behind what the reader has: its next sequences would be others' of that name."""
    at = await publish(redis_url, 3)
    redis.hset(position_key("stock:A"), "sequence", 1)
    async with opened(redis_url) as history:
        record = await ask(history, at)
        assert record is not None
        assert record.position == Position(at.epoch, 1)  # who missed nothing changes nothing
        record = await ask(history, at, may_have_lost=True, new_epoch="new-1")
        assert record is not None
        assert (record.position, record.follows) == (Position("new-1", 0), False)
        assert not record.entries
        assert not redis.exists(history_key("stock:A"))
        # The next server that comes back with the old position joins the epoch of the first.
        record = await ask(history, at, may_have_lost=True, new_epoch="new-2")
        assert record is not None
        assert record.position == Position("new-1", 0)
    assert (await publish(redis_url, 1)) == Position("new-1", 1)


async def test_an_empty_redis_begins_a_new_epoch_where_there_was_one(redis_url: str) -> None:
    """Restarted without its data, say."""
    async with opened(redis_url) as history:
        record = await ask(history, Position("old", 7), may_have_lost=True)
        assert record is not None
        assert record.position == Position("new", 0)


async def test_many_topics_are_answered_each_for_itself(redis_url: str) -> None:
    """In the order of the questions, and more than go out in one send."""
    topics = [Topic.parse(f"stock:{number}") for number in range(250)]
    async with open_publisher(redis_url) as publisher:
        await publisher.publish_many(
            [(f"{topic}:price", price(topic.target, 1)) for topic in topics[::2]]
        )
    async with opened(redis_url) as history:
        records = await history.read([HistoryQuery(topic, NOWHERE) for topic in topics], "new")
        assert [record is not None for record in records] == [True, False] * 125
        for topic, record in zip(topics[::2], records[::2], strict=True):
            assert record is not None
            assert f'"{topic.target}"'.encode() in record.entries[0][2]


async def test_a_redis_that_forgot_the_script_is_told_again(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """It was restarted, or is another one after a failover."""
    at = await publish(redis_url, 1)
    async with opened(redis_url) as history:
        for _ in range(2):
            redis.script_flush()
            record = await ask(history, at)
            assert record is not None
            assert record.position == at


async def test_a_redis_that_refuses_scripts_keeps_no_positions(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """An ACL without EVALSHA is no outage: publications are numbered here, and a log line says so.

    Redis' own words are in it.
    """
    await publish(redis_url, 1)
    redis.acl_setuser(
        "limited", enabled=True, nopass=True, keys="*", commands=["+@all", "-evalsha"]
    )
    limited = redis_url.replace("redis://", "redis://limited:x@")
    try:
        async with opened(limited) as history:
            with structlog.testing.capture_logs() as logs:
                assert await ask(history, NOWHERE) is None
            assert [line["event"] for line in logs] == ["position not read"]
            assert "evalsha" in logs[0]["reason"]
    finally:
        redis.acl_deluser("limited")


async def test_a_redis_that_cannot_answer_now_is_asked_again_later(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """A replica, say, cannot begin an epoch; to go on without would be to number over others."""
    own = own_redis_server()
    at = await publish(own.url, 1)
    ahead = Position(at.epoch, 2)
    async with opened(own.url) as history:
        with own.connect() as redis:
            redis.replicaof("127.0.0.1", 1)
            with pytest.raises(RedisConnectionError, match="READONLY"):
                await ask(history, ahead, may_have_lost=True)
            redis.replicaof("no", "one")
        record = await ask(history, ahead, may_have_lost=True)
        assert record is not None
        assert record.position == Position("new", 0)
