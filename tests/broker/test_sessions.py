"""Session records in a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import redis as redis_py
import structlog
import trio

from streamer.broker.keys import session_key
from streamer.broker.requests import RedisClient
from streamer.broker.sessions import RedisSessions
from streamer.hub.sessions import (
    HeldSubscription,
    SessionRecord,
    StoreUnavailableError,
    encode_record,
)
from streamer.protocol.messages import Mode, Position
from streamer.protocol.topics import Kind
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import DEADLINE_SECONDS


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RedisSessions]:
    """The records in a Redis."""
    with trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            commands = RedisClient(url, client_name="test")
            nursery.start_soon(commands.run)
            yield RedisSessions(commands, lifetime_seconds=299.5)
            nursery.cancel_scope.cancel()


def record(session_id: str) -> SessionRecord:
    """A record with every member that one can have."""
    return SessionRecord(
        session_id,
        [
            HeldSubscription("stock:A", Mode.ALL, [Kind.PRICE], 0.0, Position("e", 7)),
            HeldSubscription("market:KOSPI", Mode.LATEST, [], 0.5, Position("f", 2**53 - 1)),
        ],
        ended=True,
    )


def encoded(*session_ids: str) -> dict[str, bytes]:
    """Encoded records by session id."""
    return {session_id: encode_record(record(session_id)) for session_id in session_ids}


async def test_a_record_comes_back_as_it_went_and_expires(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Each under its own id, for the lifetime at least."""
    async with opened(redis_url) as sessions:
        await sessions.save(encoded("one", "two"))
        assert await sessions.load("one") == record("one")
        assert await sessions.load("two") == record("two")
        assert await sessions.load("three") is None
        assert 299 <= redis.ttl(session_key("one")) <= 300
        await sessions.save({})
        await sessions.forget(["one", "three"])
        assert await sessions.load("one") is None
        assert await sessions.load("two") == record("two")


@pytest.mark.parametrize(
    "stored",
    [b"", b"{", b"\xff", b"[]", b"7", b'{"session_id": "s"}'],
    ids=["empty", "no JSON", "no text", "a list", "a number", "parts missing"],
)
async def test_a_record_that_another_version_wrote_is_none(
    stored: bytes, redis_url: str, redis: redis_py.Redis
) -> None:
    """The client is told to subscribe anew, and a log line says why."""
    redis.set(session_key("s"), stored)
    async with opened(redis_url) as sessions:
        with structlog.testing.capture_logs() as logs:
            assert await sessions.load("s") is None
        assert [line["event"] for line in logs] == ["session record not understood"]


async def test_a_redis_that_is_away_or_refuses_is_no_answer(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Not the same as no record: whoever saves tries again."""
    own = own_redis_server()
    async with opened(own.url) as sessions:
        with own.connect() as redis:
            redis.config_set("maxmemory", 1)
            with pytest.raises(StoreUnavailableError, match="OOM"):
                await sessions.save(encoded("one"))
            redis.config_set("maxmemory", 0)
            redis.lpush(session_key("two"), "x")
            with pytest.raises(StoreUnavailableError, match="WRONGTYPE"):
                await sessions.load("two")
        await sessions.save(encoded("one"))
        await trio.to_thread.run_sync(own.kill)
        with pytest.raises(StoreUnavailableError):
            await sessions.load("one")
        with pytest.raises(StoreUnavailableError):
            await sessions.save(encoded("one"))
