"""Positions and histories of topics, from a real Redis that a real publisher has written to."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import pytest
import redis as redis_py
import trio

from streamer.broker.history import (
    ENTRIES_PER_ROUND_TRIP,
    NEWEST_ENTRIES,
    HistoryQuery,
    RedisHistory,
    TopicHistory,
    Unanswered,
)
from streamer.broker.keys import history_key, position_key
from streamer.broker.requests import RedisClient
from streamer.protocol.messages import Position
from streamer.protocol.topics import Kind, Topic
from streamer.publisher import open_publisher
from tests.broker.test_access import PASSWORD, documented_users
from tests.helpers.publications import orderbook, price
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import DEADLINE_SECONDS

STOCK = Topic.parse("stock:A")
NOWHERE = Position("unheard-of", 0)


@asynccontextmanager
async def opened(
    url: str, *, entries_per_read: int = 1000, unreadable: list[str] | None = None
) -> AsyncIterator[RedisHistory]:
    """A history on a connection of its own; what it cannot read is put into `unreadable`."""
    reasons = [] if unreadable is None else unreadable
    with trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            commands = RedisClient(url, client_name="test")
            nursery.start_soon(commands.run)
            yield RedisHistory(
                commands,
                lambda topic, reason: reasons.append(f"{topic} {reason}"),
                entries_per_read=entries_per_read,
            )
            nursery.cancel_scope.cancel()


async def publish(url: str, count: int, channel: str = "stock:A:price") -> Position:
    """Publish that many, each with its number as price; returns the position of the last."""
    _, code, kind = channel.split(":")
    payload = orderbook if kind == "orderbook" else price
    async with open_publisher(url) as publisher:
        receipts = await publisher.publish_many(
            [(channel, payload(code, number)) for number in range(1, count + 1)]
        )
    position = receipts[-1].position
    assert position is not None
    return position


async def ask(
    history: RedisHistory,
    after: Position,
    *,
    may_begin: bool = False,
    had_position: bool = False,
    digest: str = "",
    new_epoch: str = "new",
) -> TopicHistory | None:
    """Read the record of the stock."""
    query = HistoryQuery(
        STOCK, after, may_begin=may_begin, had_position=had_position, digest=digest
    )
    (record,) = await history.read([query], new_epoch)
    assert not isinstance(record, Unanswered)
    return record


def name_of(position: Position) -> str:
    """The name of an epoch, without the time at which it began."""
    return position.epoch.partition("@")[0]


def digest_of(redis: redis_py.Redis, sequence: int) -> str:
    """The digest of a publication that the history holds."""
    stored: Any = redis.xrange(history_key("stock:A"), f"{sequence}-0", f"{sequence}-0")
    return hashlib.sha1(stored[0][1][b"m"], usedforsecurity=False).hexdigest()


def sequences(record: TopicHistory) -> list[int]:
    """The sequences that were read."""
    return [sequence for _, sequence, _ in record.entries]


async def test_a_topic_without_positions_has_no_record(redis_url: str) -> None:
    """Nobody gives its publications positions, and asking leaves no trace."""
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
    async with opened(redis_url, entries_per_read=2) as history:
        record = await ask(history, Position(at.epoch, 1))
        assert record is not None
        assert sequences(record) == [2, 3]
        assert (record.position, record.end) == (at, 3)
        record = await ask(history, Position(at.epoch, 4))
        assert record is not None
        assert (sequences(record), record.end) == ([5], 5)


async def test_a_long_history_is_read_in_several_round_trips(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Redis serves nobody else during one. Another topic is read with it, and is short."""
    other = Topic.parse("stock:B")
    count = 3 * ENTRIES_PER_ROUND_TRIP
    at = await publish(redis_url, count)
    near = await publish(redis_url, 2, "stock:B:price")
    queries = [HistoryQuery(STOCK, Position(at.epoch, 1)), HistoryQuery(other, Position("?", 0))]
    async with opened(redis_url, entries_per_read=count - 10) as history:
        part, _ = await history.read_part(queries, "new")
        assert isinstance(part, TopicHistory)
        assert sequences(part) == [*range(2, ENTRIES_PER_ROUND_TRIP + 2)]
        assert (part.position, part.end) == (at, ENTRIES_PER_ROUND_TRIP + 1)
        record, newest = await history.read(queries, "new")
        assert isinstance(record, TopicHistory)
        assert sequences(record) == [*range(2, count - 8)]
        assert (record.position, record.follows, record.end) == (at, True, count - 9)
        assert isinstance(newest, TopicHistory)
        assert newest.position == near
    async with opened(redis_url, entries_per_read=2 * count) as history:
        record, _ = await history.read(queries, "new")
        assert isinstance(record, TopicHistory)
        assert sequences(record) == [*range(2, count + 1)]
        assert (record.position, record.end) == (at, count)


@pytest.mark.parametrize("epoch", [None, "another"])
async def test_a_history_that_ends_between_two_round_trips_is_read_as_far_as_it_went(
    redis_url: str, redis: redis_py.Redis, monkeypatch: pytest.MonkeyPatch, epoch: str | None
) -> None:
    """Redis loses its data, or another epoch begins; what was read still counts."""
    at = await publish(redis_url, 2 * ENTRIES_PER_ROUND_TRIP)
    reads = 0
    async with opened(redis_url) as history:
        read_part = history.read_part

        async def read_and_change(*arguments: Any, **more: Any) -> Any:
            nonlocal reads
            reads += 1
            records = await read_part(*arguments, **more)
            redis.flushall()
            if epoch is not None:
                redis.hset(position_key("stock:A"), mapping={"epoch": epoch, "sequence": 1})
            return records

        monkeypatch.setattr(history, "read_part", read_and_change)
        record = await ask(history, Position(at.epoch, 0))
    assert reads == 2
    assert record is not None
    assert sequences(record) == [*range(1, ENTRIES_PER_ROUND_TRIP + 1)]
    assert record.end == ENTRIES_PER_ROUND_TRIP


async def test_the_newest_of_another_epoch_are_read(redis_url: str) -> None:
    """They are enough to know the last value of each kind."""
    await publish(redis_url, 1, "stock:A:orderbook")
    at = await publish(redis_url, NEWEST_ENTRIES - 1)
    async with opened(redis_url) as history:
        record = await ask(history, NOWHERE)
        assert record is not None
        assert (record.position, record.follows) == (at, False)
        assert sequences(record) == list(range(1, NEWEST_ENTRIES + 1))
        kinds = [kind for kind, _, _ in record.entries]
        assert kinds == [Kind.ORDERBOOK] + [Kind.PRICE] * (NEWEST_ENTRIES - 1)


async def test_the_last_of_each_kind_is_found_far_behind_the_newest(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Also after a hole, but only if it is still there, and of the present epoch."""
    await publish(redis_url, 3, "stock:A:orderbook")
    at = await publish(redis_url, NEWEST_ENTRIES + 10)
    async with opened(redis_url) as history:
        record = await ask(history, NOWHERE)
        assert record is not None
        assert len(record.entries) == NEWEST_ENTRIES
        assert [(kind, sequence) for kind, sequence, _ in record.last] == [(Kind.ORDERBOOK, 3)]
        assert b'"bids"' in record.last[0][2]
        redis.xdel(history_key("stock:A"), "2-0", "4-0")
        for after, last in ((1, []), (3, [Kind.ORDERBOOK]), (4, []), (at.sequence, [])):
            record = await ask(history, Position(at.epoch, after))
            assert record is not None
            assert [kind for kind, _, _ in record.last] == last
        redis.hset(position_key("stock:A"), "last:orderbook", f"another {3}")
        record = await ask(history, NOWHERE)
        assert record is not None
        assert record.last == []
        redis.hset(position_key("stock:A"), "last:orderbook", f"{at.epoch} 3")
        redis.xdel(history_key("stock:A"), "3-0")
        record = await ask(history, NOWHERE)
        assert record is not None
        assert record.last == []


async def test_an_epoch_is_known_by_the_names_that_were_announced(redis_url: str) -> None:
    """Another server's former name of the epoch is accepted, but only while that is the epoch."""
    at = await publish(redis_url, 2)
    async with opened(redis_url) as history:
        await history.announce_names([(STOCK, "server-1", at.epoch)])
        record = await ask(history, Position("server-1", 1))
        assert record is not None
        assert (record.position, record.follows, sequences(record)) == (at, True, [2])
        await history.announce_names([(STOCK, "server-2", "an earlier one")])
        record = await ask(history, Position("server-2", 1))
        assert record is not None
        assert not record.follows


async def test_a_redis_that_lost_writes_begins_a_new_epoch_once(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """It is behind the reader: its next sequences would be given to other publications."""
    at = await publish(redis_url, 3)
    redis.hset(position_key("stock:A"), "sequence", 1)
    async with opened(redis_url) as history:
        record = await ask(history, at)
        assert record is not None
        assert record.position == Position(at.epoch, 1)  # who missed nothing changes nothing
        record = await ask(history, at, may_begin=True, new_epoch="new-1")
        assert record is not None
        begun = record.position
        assert (name_of(begun), begun.sequence, record.follows) == ("new-1", 0, False)
        assert not record.entries
        assert not redis.exists(history_key("stock:A"))
        # The next server that comes back with the old position joins the epoch of the first.
        record = await ask(history, at, may_begin=True, new_epoch="new-2")
        assert record is not None
        assert record.position == begun
    assert (await publish(redis_url, 1)) == Position(begun.epoch, 1)


async def test_an_empty_redis_begins_a_new_epoch_where_there_was_one(redis_url: str) -> None:
    """Restarted without its data, say."""
    async with opened(redis_url) as history:
        assert await ask(history, Position("old", 7), may_begin=True) is None
        record = await ask(history, Position("old", 7), may_begin=True, had_position=True)
        assert record is not None
        assert (name_of(record.position), record.position.sequence) == ("new", 0)


@pytest.mark.parametrize("after", [2, 4])
async def test_another_publication_at_the_position_begins_a_new_epoch_once(
    redis_url: str, redis: redis_py.Redis, after: int
) -> None:
    """Redis lost some and was given others in their place; those go on under the new name."""
    at = await publish(redis_url, 4)
    known = Position(at.epoch, after)
    other = hashlib.sha1(b"lost", usedforsecurity=False).hexdigest()
    async with opened(redis_url) as history:
        same = digest_of(redis, after)
        record = await ask(history, known, may_begin=True, digest=same)
        assert record is not None
        assert (record.position, record.follows) == (at, True)
        record = await ask(history, known, may_begin=True, digest=other, new_epoch="new-1")
        assert record is not None
        begun = record.position
        assert (name_of(begun), begun.sequence, record.follows) == ("new-1", 4, False)
        assert sequences(record) == [1, 2, 3, 4]
        record = await ask(history, known, may_begin=True, digest=other, new_epoch="new-2")
        assert record is not None
        assert record.position == begun
    assert (await publish(redis_url, 1)) == Position(begun.epoch, 5)


async def test_an_epoch_older_than_the_known_one_does_not_continue(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Redis lost its data, a new epoch began, and then an old dump brought the former one back."""
    old = await publish(redis_url, 4)
    name, _, began_ms = old.epoch.partition("@")
    later = Position(f"{name}-2@{int(began_ms) + 3_600_000}", 2)
    async with opened(redis_url) as history:
        record = await ask(history, later)
        assert record is not None
        assert record.position == old  # who cannot tell changes nothing
        record = await ask(history, later, may_begin=True, new_epoch="new-1")
        assert record is not None
        begun = record.position
        assert (name_of(begun), begun.sequence, record.follows) == ("new-1", 4, False)
        # All four are from before the later epoch: those that came after them in that are lost.
        assert not record.entries
        assert not redis.exists(history_key("stock:A"))
        # All who know either of the older epochs join it, so it is later than both.
        for known in (later, old):
            record = await ask(history, known, may_begin=True, new_epoch="new-2")
            assert record is not None
            assert record.position == begun
    assert (await publish(redis_url, 1)) == Position(begun.epoch, 5)


@pytest.mark.parametrize("count", [1, 99, 100, 101, 250])
async def test_publications_since_an_old_epoch_came_back_are_kept(
    redis_url: str, redis: redis_py.Redis, count: int
) -> None:
    """Their producer knew nothing of the later epoch; they are the topic's last known values."""
    old = await publish(redis_url, 120)
    later_ms = int(old.epoch.partition("@")[2]) + 3_600_000
    for sequence in range(121, 121 + count):
        entry: dict[Any, Any] = {"m": b"{}", "k": "price", "t": later_ms + sequence}
        redis.xadd(history_key("stock:A"), entry, id=f"{sequence}-0")
    redis.hset(position_key("stock:A"), "sequence", 120 + count)
    known = Position(f"later@{later_ms}", 2)
    async with opened(redis_url) as history:
        record = await ask(history, known, may_begin=True)
        assert record is not None
        assert (name_of(record.position), record.position.sequence) == ("new", 120 + count)
        assert sequences(record)[0] == max(121, 121 + count - NEWEST_ENTRIES)
    stored: Any = redis.xrange(history_key("stock:A"))
    assert [entry[0] for entry in stored] == [b"%d-0" % n for n in range(121, 121 + count)]


@pytest.mark.parametrize("lacking", [None, "xtrim"])
async def test_the_documented_user_may_begin_an_epoch_where_an_old_one_came_back(
    own_redis_server: Callable[..., RedisServer], lacking: str | None
) -> None:
    """One who lacks XTRIM, as of an earlier how-to, forgets all, and the epoch begins once."""
    own = own_redis_server()
    old = await publish(own.url, 2)
    later_ms = int(old.epoch.partition("@")[2]) + 3_600_000
    known = Position(f"later@{later_ms}", 2)
    url = f"redis://streamer:{quote(PASSWORD)}@127.0.0.1:{own.port}"
    with own.connect() as redis:
        entry: dict[Any, Any] = {"m": b"{}", "k": "price", "t": later_ms + 1}
        redis.xadd(history_key("stock:A"), entry, id="3-0")
        redis.hset(position_key("stock:A"), "sequence", 3)
        for rule in documented_users():
            redis.execute_command(*rule)
        if lacking is not None:
            redis.execute_command("ACL", "SETUSER", "streamer", f"-{lacking}")
        unreadable: list[str] = []
        async with opened(url, unreadable=unreadable) as history:
            record = await ask(history, known, may_begin=True, new_epoch="new-1")
            assert unreadable == []
            assert record is not None
            begun = record.position
            assert (name_of(begun), begun.sequence) == ("new-1", 3)
            assert sequences(record) == ([3] if lacking is None else [])
            record = await ask(history, known, may_begin=True, new_epoch="new-2")
            assert record is not None
            assert record.position == begun
        if lacking is None:
            assert redis.acl_log() == []


@pytest.mark.parametrize("stored", ["epoch", "@", "x@y", "x@" + "9" * 40, "@5@"])
async def test_an_epoch_without_a_time_is_not_older(
    redis_url: str, redis: redis_py.Redis, stored: str
) -> None:
    """Programs of others, and servers that number by themselves, name epochs as they like."""
    at = await publish(redis_url, 2)
    redis.hset(position_key("stock:A"), "epoch", stored)
    async with opened(redis_url) as history:
        record = await ask(history, at, may_begin=True)
        assert record is not None
        assert record.position == Position(stored, 2)


async def test_a_publication_that_the_history_has_lost_proves_nothing(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """It was trimmed or expired, as is usual; a new epoch for that would be a gap for nothing."""
    at = await publish(redis_url, 4)
    redis.xdel(history_key("stock:A"), "2-0")
    other = hashlib.sha1(b"lost", usedforsecurity=False).hexdigest()
    async with opened(redis_url) as history:
        record = await ask(history, Position(at.epoch, 2), may_begin=True, digest=other)
        assert record is not None
        assert (record.position, sequences(record)) == (at, [3, 4])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"k": "alerts"}, "alerts"),
        ({"k": "unheard-of"}, "unheard-of"),
        ({"k": b"\xff"}, "xff"),
        ({}, "of kind b''"),
    ],
)
async def test_an_entry_of_a_kind_that_is_not_known_is_left_out(
    redis_url: str, redis: redis_py.Redis, fields: dict[Any, Any], reason: str
) -> None:
    """A newer publisher wrote it, or somebody else; what is around it is read."""
    at = await publish(redis_url, 1)
    now_ms = round(time.time() * 1000)  # else the publisher removes it as too old
    redis.xadd(history_key("stock:A"), {"m": b"{}", "t": now_ms} | fields, id="2-0")
    redis.hset(position_key("stock:A"), "sequence", 2)
    at = await publish(redis_url, 1)
    unreadable: list[str] = []
    async with opened(redis_url, unreadable=unreadable) as history:
        record = await ask(history, Position(at.epoch, 0))
        assert record is not None
        assert (sequences(record), record.end) == ([1, 3], 3)
    assert len(unreadable) == 1
    assert reason in unreadable[0]


async def test_an_entry_beyond_the_position_is_left_out(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Only what is at a position that was given is the topic's."""
    at = await publish(redis_url, 2)
    redis.xadd(history_key("stock:A"), {"m": b"{}", "k": "price"}, id="7-0")
    async with opened(redis_url, entries_per_read=1) as history:
        record = await ask(history, at)
        assert record is not None
        assert (sequences(record), record.end) == ([], 2)


async def test_entries_of_other_programs_do_not_stop_a_read(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """However many are behind the position that is known, what follows it is read."""
    at = await publish(redis_url, 1)
    for number in range(1, 6):
        redis.xadd(history_key("stock:A"), {"x": "y"}, id=f"1-{number}")
    await publish(redis_url, 1)
    async with opened(redis_url, entries_per_read=3) as history:
        record = await ask(history, at)
        assert record is not None
        assert (sequences(record), record.end) == ([2], 2)


@pytest.mark.parametrize("sequence", ["abc", str(2**53), "-1", "1e300", "inf", "nan"])
async def test_a_position_that_is_none_is_no_position(
    redis_url: str, redis: redis_py.Redis, sequence: str
) -> None:
    """Whoever wrote it: the topic is as if nobody gave positions."""
    redis.hset(position_key("stock:A"), mapping={"epoch": "e", "sequence": sequence})
    unreadable: list[str] = []
    async with opened(redis_url, unreadable=unreadable) as history:
        assert await ask(history, NOWHERE) is None
    assert len(unreadable) == 1


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
            assert isinstance(record, TopicHistory)
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


@pytest.mark.parametrize("forbidden", ["evalsha", "script"])
async def test_a_redis_that_refuses_scripts_keeps_no_positions(
    redis_url: str, redis: redis_py.Redis, forbidden: str
) -> None:
    """An ACL without them is no outage: the server numbers publications, and it is reported."""
    await publish(redis_url, 1)
    redis.script_flush()
    redis.acl_setuser(
        "limited", enabled=True, nopass=True, keys="*", commands=["+@all", f"-{forbidden}"]
    )
    limited = redis_url.replace("redis://", "redis://limited:x@")
    try:
        unreadable: list[str] = []
        async with opened(limited, unreadable=unreadable) as history:
            assert await ask(history, NOWHERE) is None
        assert len(unreadable) == 1
        assert forbidden in unreadable[0]
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
            refused, read = await history.read(
                [HistoryQuery(STOCK, ahead, may_begin=True), HistoryQuery(STOCK, at)], "new"
            )
            assert isinstance(refused, Unanswered)
            assert "READONLY" in refused.reason
            assert isinstance(read, TopicHistory)  # what only reads is answered
            redis.replicaof("no", "one")
        record = await ask(history, ahead, may_begin=True)
        assert record is not None
        assert (name_of(record.position), record.position.sequence) == ("new", 0)
