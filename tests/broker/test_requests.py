"""Requests to a Redis that is killed, paused and cut off."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import redis as redis_py
import trio
import trio.lowlevel

from streamer.broker.connect import RedisConnectionError, RedisReplyError, RedisTimeoutError
from streamer.broker.requests import RedisClient
from tests.helpers.proxy import Proxy
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import DEADLINE_SECONDS, eventually

NAME = "test-commands"


@asynccontextmanager
async def opened(
    url: str, *, timeout_seconds: float = 5, max_backoff_seconds: float = 0.01
) -> AsyncIterator[RedisClient]:
    """Open a client of a Redis for the length of the block."""
    with trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            client = RedisClient(
                url,
                client_name=NAME,
                timeout_seconds=timeout_seconds,
                backoff_seconds=max_backoff_seconds,
                max_backoff_seconds=max_backoff_seconds,
            )
            nursery.start_soon(client.run)
            yield client
            nursery.cancel_scope.cancel()


async def answered(client: RedisClient) -> list[object]:
    """Ask until there is an answer."""
    while True:
        try:
            return await client.execute_many([("ECHO", "y")])
        except RedisConnectionError:
            await trio.lowlevel.checkpoint()


def connections(redis: redis_py.Redis) -> list[int]:
    """The ids of our connections, as Redis sees them."""
    return [int(client["id"]) for client in redis.client_list() if client["name"] == NAME]


async def test_replies_come_in_order_over_one_connection_and_errors_among_them(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """More commands than go out in one send; one that fails stops none of the others."""
    async with opened(redis_url) as client:
        assert connections(redis) == []
        replies = await client.execute_many([("ECHO", f"{number}") for number in range(250)])
        assert replies == [f"{number}".encode() for number in range(250)]
        first = connections(redis)
        bad, good = await client.execute_many([("NONSENSE",), ("ECHO", "x")])
        assert isinstance(bad, RedisReplyError)
        assert good == b"x"
        assert await client.execute_many([]) == []
        assert connections(redis) == first
        assert len(first) == 1
    await eventually(lambda: connections(redis) == [])


async def test_a_connection_that_died_while_idle_costs_no_request(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """The caller gets its replies from a new connection."""
    async with opened(redis_url) as client:
        await client.execute_many([("ECHO", "x")])
        before = connections(redis)
        redis.client_kill_filter(_id=str(before[0]))
        assert await client.execute_many([("ECHO", "y")]) == [b"y"]
        assert len(connections(redis)) == 1
        assert connections(redis) != before


async def test_a_renewed_client_opens_one_new_connection(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """The old one answers, but maybe no longer for the Redis of the URL."""
    async with opened(redis_url) as client:
        client.renew()  # there is none yet
        assert await client.execute_many([("ECHO", "x")]) == [b"x"]
        before = connections(redis)
        client.renew()
        assert await client.execute_many([("ECHO", "y")]) == [b"y"]
        await eventually(lambda: len(connections(redis)) == 1)
        after = connections(redis)
        assert after != before
        assert await client.execute_many([("ECHO", "z")]) == [b"z"]
        assert connections(redis) == after


async def test_a_master_that_was_demoted_is_left_for_the_one_behind_the_name(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """It keeps its connections, and would refuse to write for ever."""
    old, new = own_redis_server(), own_redis_server()
    proxy = Proxy(old.port)
    async with proxy.run(), opened(f"redis://127.0.0.1:{proxy.port}") as client:
        assert await client.execute_many([("SET", "k", "x")]) == [b"OK"]
        with old.connect() as redis:
            redis.replicaof("127.0.0.1", new.port)
        proxy.server_port = new.port
        (refused,) = await client.execute_many([("SET", "k", "x")])
        assert "READONLY" in str(refused)
        assert await client.execute_many([("SET", "k", "x")]) == [b"OK"]


async def test_callers_that_share_a_round_trip_get_their_own_replies(redis_url: str) -> None:
    """Replies never reach another caller, however many ask at once."""
    async with opened(redis_url) as client, trio.open_nursery() as nursery:

        async def ask(number: int) -> None:
            requests = [("ECHO", f"{number}.{part}") for part in range(3)]
            replies = await client.execute_many(requests)
            assert replies == [text.encode() for _, text in requests]

        for number in range(20):
            nursery.start_soon(ask, number)


async def test_all_who_wait_share_the_next_round_trip(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Or thousands of clients that return together would wait for a round trip each."""
    own = own_redis_server()
    with own.connect() as redis:
        async with opened(own.url) as client, trio.open_nursery() as nursery:
            await client.execute_many([("ECHO", "first")])
            before = redis.info("stats")["total_reads_processed"]
            own.pause()
            for number in range(50):
                nursery.start_soon(client.execute_many, [("ECHO", f"{number}")])
            await trio.testing.wait_all_tasks_blocked()
            own.resume()
        # One for the first of them, one for all others, and those that ask for the count.
        assert redis.info("stats")["total_reads_processed"] - before < 10


async def test_a_cancelled_request_leaves_no_reply_for_the_next(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """It is dropped when it comes."""
    own = own_redis_server()
    async with opened(own.url) as client:
        await client.execute_many([("ECHO", "first")])
        own.pause()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.execute_many, [("ECHO", "cancelled")])
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        own.resume()
        assert await client.execute_many([("ECHO", "next")]) == [b"next"]


async def test_a_redis_that_is_silent_is_given_up(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """A request ends at the time-out, and Redis is asked again once it answers."""
    own = own_redis_server()
    async with opened(own.url, timeout_seconds=0.2) as client:
        await client.execute_many([("ECHO", "x")])
        own.pause()
        with pytest.raises(RedisTimeoutError):
            await client.execute_many([("ECHO", "x")])
        own.resume()
        assert await answered(client) == [b"y"]


async def test_a_redis_that_talks_on_is_not_given_up(redis_url: str, redis: redis_py.Redis) -> None:
    """A reply of many megabytes is not silence."""
    redis.set("large", b"x" * 20_000_000)
    async with opened(redis_url, timeout_seconds=1) as client:
        (reply,) = await client.execute_many([("GET", "large")])
        assert len(reply) == 20_000_000


async def test_a_redis_that_is_away_is_an_error_until_it_is_back(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Requests fail at once while Redis is away, and succeed soon after it is back."""
    own = own_redis_server()
    async with opened(own.url) as client:
        await client.execute_many([("ECHO", "x")])
        await trio.to_thread.run_sync(own.kill)
        for _ in range(2):
            with pytest.raises(RedisConnectionError):
                await client.execute_many([("ECHO", "x")])
        await trio.to_thread.run_sync(own.start)
        assert await answered(client) == [b"y"]


async def test_callers_behind_a_silent_redis_fail_with_the_first(
    own_redis_server: Callable[..., RedisServer], mock_clock: trio.testing.MockClock
) -> None:
    """One time-out is spent for all who wait, and none by those who ask before the next attempt."""
    own = own_redis_server()
    errors: list[tuple[float, Exception]] = []
    async with opened(own.url, timeout_seconds=5, max_backoff_seconds=1e9) as client:
        await client.execute_many([("ECHO", "x")])
        own.pause()

        async def ask() -> None:
            try:
                await client.execute_many([("ECHO", "x")])
            except RedisConnectionError as error:
                errors.append((trio.current_time(), error))

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(5)
        await ask()
        own.resume()
    assert [seconds for seconds, _ in errors] == [5.0] * 7


async def test_a_caller_bounds_its_own_wait(
    own_redis_server: Callable[..., RedisServer], mock_clock: trio.testing.MockClock
) -> None:
    """A caller that gives up before the time-out leaves the line, and the others keep waiting."""
    own = own_redis_server()
    async with opened(own.url, timeout_seconds=5) as client:
        await client.execute_many([("ECHO", "x")])
        own.pause()
        async with trio.open_nursery() as nursery:

            async def ask_briefly() -> None:
                with trio.move_on_after(2) as patience:
                    await client.execute_many([("ECHO", "brief")])
                assert patience.cancelled_caught

            for _ in range(3):
                nursery.start_soon(ask_briefly)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(2)
        own.resume()
        assert await client.execute_many([("ECHO", "y")]) == [b"y"]
