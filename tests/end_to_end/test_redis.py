"""The whole server with a real Redis to which any program may publish."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis as redis_py
import trio

from streamer.config import Settings
from streamer.server import RedisRequired, serve
from tests.helpers.clients import connected
from tests.helpers.publications import market_status, orderbook, price
from tests.helpers.redis_server import RedisServer
from tests.helpers.server import get_page, running_server
from tests.helpers.timing import eventually


def channels(redis: redis_py.Redis) -> set[str]:
    """The channels of topics that Redis has subscribers of, without the servers' own."""
    names: Any = redis.pubsub_channels()
    return {name.decode() for name in names if not name.startswith(b"streamer:")}


def subscribers(redis: redis_py.Redis, channel: str) -> int:
    """How many subscribe to a channel."""
    ((_, count),) = redis.pubsub_numsub(channel)
    return int(count)


async def test_subscribing_makes_the_channels_and_the_last_to_leave_releases_them(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Exactly the topic's channels, once for all clients; after the linger time they are gone."""
    async with running_server(redis=redis_url, linger_seconds=0) as server:
        assert channels(redis) == set()
        async with connected(server) as first, connected(server) as second:
            await first.subscribe("stock:A", "stock:B")
            assert channels(redis) == {
                "stock:A:price",
                "stock:A:orderbook",
                "stock:B:price",
                "stock:B:orderbook",
            }
            await second.subscribe("stock:A")
            await second.subscribe("market:KOSPI")
            assert subscribers(redis, "stock:A:price") == 1
            assert subscribers(redis, "market:KOSPI:status") == 1
            await first.unsubscribe("stock:A", "stock:B")
            await eventually(lambda: "stock:B:price" not in channels(redis))
            assert "stock:A:price" in channels(redis)
        await eventually(lambda: channels(redis) == set())


async def test_what_another_program_publishes_arrives_with_every_field_and_digit(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Plain PUBLISH; numbers as written, unknown fields and all, plus the sequence."""
    text = (
        '{"type":"price_update","stock_code":"005930","price":72500.10,"change":-1e2,'
        '"change_percent":0.1000000000000000055511151231257827,"volume":12345678901234567890,'
        '"timestamp":"2026-01-02T03:04:05.123456789Z","외국인":{"보유율":[1.50,2]},"x":"\\u00e9"}'
    )
    async with running_server(redis=redis_url) as server, connected(server) as client:
        await client.subscribe("stock:005930")
        assert redis.publish("stock:005930:price", text) == 1
        received = await client.connection.get_message()
        assert received == text[:-1] + ',"sequence":1}'


async def test_what_does_not_fit_is_counted_and_never_forwarded(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Garbage, wrong types, another stock's price: the next valid one is the first to arrive."""
    bad: list[bytes] = [
        b"",
        b"\xff",
        b"{}",
        b"[]",
        price("A", "72500"),
        price("A", True),
        price("B", 1),
        orderbook("A", 1),
        price("A", 1, timestamp="yesterday"),
        price("A", 1, pad="x" * 300_000),
    ]
    async with running_server(redis=redis_url) as server, connected(server) as client:
        await client.subscribe("stock:A")
        for payload in bad:
            redis.publish("stock:A:price", payload)
        redis.publish("stock:A:price", price("A", 7))
        message = await client.receive_type("price_update")
        assert (message["price"], message["sequence"]) == (7, 1)
        ingest = server.statistics().ingest
        assert ingest.rejected == len(bad)
        assert ingest.last_rejection is not None


async def test_a_hundred_subscribers_all_receive_it(redis_url: str, redis: redis_py.Redis) -> None:
    """From one subscription in Redis to each of them, in order."""
    async with running_server(redis=redis_url) as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server)) for _ in range(100)]
        for client in clients:
            await client.subscribe("stock:A", mode="all")
        assert subscribers(redis, "stock:A:price") == 1
        with redis.pipeline(transaction=False) as pipeline:
            for number in range(50):
                pipeline.publish("stock:A:price", price("A", number))
            await trio.to_thread.run_sync(pipeline.execute)
        for client in clients:
            assert [(await client.data())["price"] for _ in range(50)] == list(range(50))


async def test_each_type_of_topic_carries_its_own(redis_url: str, redis: redis_py.Redis) -> None:
    """Prices, order books, market status, sectors and watchlists, each from its channel."""
    published = {
        "stock:A:price": price("A", 1),
        "stock:A:orderbook": orderbook("A", 2),
        "market:KOSPI:status": market_status("KOSPI", "open"),
        "sector:tech:price": price("B", 3),
        "watchlist:w1:price": price("C", 4),
    }
    async with running_server(redis=redis_url) as server, connected(server) as client:
        for topic in ("stock:A", "market:KOSPI", "sector:tech", "watchlist:w1"):
            await client.subscribe(topic)
        for channel, payload in published.items():
            assert redis.publish(channel, payload) == 1
        for payload in published.values():
            message = await client.data()
            assert json.loads(payload).items() <= message.items()
            assert message["sequence"] == (2 if "bids" in message else 1)


async def _stop_and_start(own: RedisServer) -> None:
    await trio.to_thread.run_sync(own.kill)
    await trio.to_thread.run_sync(own.start)


async def test_losing_redis_is_a_gap_and_the_flow_goes_on(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Publications during the outage may be missed, so every stream has a gap after it."""
    own = own_redis_server()
    async with running_server(redis=own.url) as server, connected(server) as client:
        answer = await client.subscribe("stock:A")
        with own.connect() as redis:
            redis.publish("stock:A:price", price("A", 1))
        assert (await client.data())["sequence"] == 1
        await _stop_and_start(own)
        gap = await client.receive_type("gap")
        assert (gap["subscription_type"], gap["target"]) == ("stock", "A")
        assert gap["reason"] == "source_reconnected"
        assert gap["epoch"] != answer["positions"]["A"]["epoch"]
        with own.connect() as redis:
            redis.publish("stock:A:price", price("A", 2))
        message = await client.data()
        assert (message["price"], message["sequence"]) == (2, gap["sequence"] + 1)
        assert "previous" not in message


async def test_without_redis_the_server_serves_and_becomes_ready_when_it_appears(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """It is not ready until then; clients that subscribed meanwhile get a gap, then messages."""
    own = own_redis_server()
    await trio.to_thread.run_sync(own.kill)
    async with running_server(redis=own.url, probe_interval_seconds=0.05) as server:
        readiness = server.readiness()
        assert not readiness.ready
        assert (await get_page(server, "/readyz"))[0] == 503
        assert (await get_page(server, "/healthz"))[0] == 200
        assert "Redis" in (readiness.reason or "")
        async with connected(server) as client:
            await client.subscribe("stock:A")
            await trio.to_thread.run_sync(own.start)
            gap = await client.receive_type("gap")
            assert gap["reason"] == "source_reconnected"
            await eventually(lambda: server.readiness().ready)
            assert (await get_page(server, "/readyz"))[0] == 200
            with own.connect() as redis:
                redis.publish("stock:A:price", price("A", 1))
            assert (await client.data())["price"] == 1


async def test_redis_may_be_required_at_the_start(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Then its absence ends the server before it serves a client, and no listener is left."""
    own = own_redis_server()
    await trio.to_thread.run_sync(own.kill)
    settings = Settings(redis=own.url, require_redis=True, port=0, http_port=0)
    with pytest.RaisesGroup(RedisRequired, allow_unwrapped=True, flatten_subgroups=True):
        await serve(settings)


async def test_a_session_that_cannot_be_looked_up_is_not_called_unknown(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """It may be on another server: the client may try again, or subscribe anew."""
    own = own_redis_server()
    async with running_server(redis=own.url) as server, connected(server) as client:
        reconnect = {"type": "reconnect", "session_id": "of-another-server"}
        answers = [await client.request(**reconnect)]
        own.kill()
        answers.append(await client.request(**reconnect))
    assert [answer["code"] for answer in answers] == ["SESSION_RESTORATION_FAILED"] * 2
    assert "is not known" in answers[0]["message"]
    assert "cannot be read now; try again" in answers[1]["message"]
