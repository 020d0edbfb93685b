"""Session records in a real Redis.

Covers streamer.session_store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import redis as redis_py
import trio

from streamer.broker.keys import session_key
from streamer.broker.requests import RedisClient
from streamer.broker.sessions import RedisSessions
from streamer.session_store import StoreUnavailableError
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import DEADLINE_SECONDS


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RedisSessions]:
    """Open the store of a Redis."""
    with trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            client = RedisClient(url, client_name="test", max_backoff_seconds=0.01)
            nursery.start_soon(client.run)
            yield RedisSessions(client, lifetime_seconds=299.5)
            nursery.cancel_scope.cancel()


async def test_a_record_comes_back_as_it_went_and_expires(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Each record is kept byte for byte under its own id, for the lifetime at least."""
    async with opened(redis_url) as sessions:
        await sessions.save({"one": b'{"any": "bytes"}', "two": b"\r\n\0\xff"})
        assert await sessions.load("one") == b'{"any": "bytes"}'
        assert await sessions.load("two") == b"\r\n\0\xff"
        assert await sessions.load("three") is None
        assert 299 <= redis.ttl(session_key("one")) <= 300
        await sessions.save({})
        await sessions.forget(["one", "three"])
        assert await sessions.load("one") is None
        assert await sessions.load("two") == b"\r\n\0\xff"


async def test_a_redis_that_is_away_or_refuses_is_no_answer(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """An error is distinguished from a missing record, so that the caller tries again."""
    own = own_redis_server()
    async with opened(own.url) as sessions:
        with own.connect() as redis:
            redis.config_set("maxmemory", 1)
            with pytest.raises(StoreUnavailableError, match="OOM"):
                await sessions.save({"one": b"x"})
            redis.config_set("maxmemory", 0)
            redis.lpush(session_key("two"), "x")
            with pytest.raises(StoreUnavailableError, match="WRONGTYPE"):
                await sessions.load("two")
        await sessions.save({"one": b"x"})
        await trio.to_thread.run_sync(own.kill)
        with pytest.raises(StoreUnavailableError):
            await sessions.load("one")
        with pytest.raises(StoreUnavailableError):
            await sessions.save({"one": b"x"})
