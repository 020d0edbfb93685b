"""When streamer.js comes back, and when not: close codes, delays, silence, its own pauses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio

from streamer.server import Server
from streamer.wire.frames import close_frame, text_frame
from tests.helpers.proxy import Proxy
from tests.helpers.publications import price
from tests.helpers.server import first_session, publish, running_server
from tests.helpers.timing import eventually
from tests.web.nodejs import Remote, remote


@asynccontextmanager
async def proxied(**options: Any) -> AsyncIterator[tuple[Server, Proxy, Remote]]:
    """A server, a network that tests can break, and a connected client with stock:A."""
    network = Proxy()
    async with running_server() as server, network.run():
        network.server_port = urlsplit(server.websocket_url).port or 0
        async with remote(f"ws://127.0.0.1:{network.port}/v1/ws", **options) as client:
            await client.state("connected")
            await client.ready(await client.subscribe("stock:A"))
            yield server, network, client


def message(type_: str, **members: object) -> bytes:
    """The frame of a server message."""
    members |= {"type": type_, "timestamp": "2026-01-02T03:04:05Z"}
    return text_frame(json.dumps(members).encode())


@pytest.mark.parametrize("code", [1008, 1009, 4001, 4500])
async def test_codes_after_which_it_does_not_come_back(code: int) -> None:
    """It says why; 4001 is final for a client that has no other token."""
    async with proxied() as (_, network, client):
        await network.inject(close_frame(code, "the reason"))
        closed = await client.state("disconnected")
        assert (closed["code"], closed["reason"]) == (code, "the reason")
        assert (await client.ask("look"))["state"] == "disconnected"


@pytest.mark.parametrize("code", [1000, 1011, 1013, 4003, 4008])
async def test_codes_after_which_it_comes_back(code: int) -> None:
    """With a delay between 0 and the bound; its subscription is there again."""
    async with proxied() as (server, network, client):
        await network.inject(close_frame(code, "the reason"))
        lost = await client.event("state", lambda value: value.get("code") == code)
        assert 0 <= lost["retryInMs"] <= 20
        await client.state("connected")
        await eventually(lambda: server.statistics().subscriptions == 1)


async def test_an_operator_ends_the_connection_for_good() -> None:
    """`disconnected` with reconnect false is final, and its reason is given."""
    async with proxied() as (_, network, client):
        farewell = message("disconnected", reason="moved out", reconnect=False)
        await network.inject(farewell + close_frame(4003, "disconnected"))
        assert (await client.state("disconnected"))["reason"] == "moved out"


@pytest.mark.parametrize(
    "farewell",
    [
        message("disconnected", reason="elsewhere", reconnect=True, retry_after_ms=1234),
        message("server_shutdown", retry_after_ms=1234),
    ],
)
async def test_the_server_says_when_to_come_back(farewell: bytes) -> None:
    """Its delay holds, rather than the client's own."""
    async with proxied() as (_, network, client):
        await network.inject(farewell + close_frame(4003, "as announced"))
        lost = await client.event("state", lambda value: value.get("code") == 4003)
        assert lost["retryInMs"] == 1234
        await client.state("connected")


async def test_a_limit_that_was_lifted_meanwhile_is_not_restored() -> None:
    """The server keeps the limit with the session; the client says what holds now."""
    async with proxied(firstDelayMs=1, max_bandwidth=1000) as (server, network, client):
        session = first_session(server)
        await eventually(lambda: session.outbox.max_bandwidth == 1000)
        network.break_off(1)
        await client.event("state", lambda value: value.get("code") == 1006)
        await client.do("bandwidth", value=0)
        await client.state("connected")
        await client.ready(await client.subscribe("stock:B"))
        assert first_session(server).outbox.max_bandwidth == 0


async def test_delays_grow_with_full_jitter() -> None:
    """While there is no server, each bound is twice the last one, up to the largest."""
    async with proxied(firstDelayMs=4, maxDelayMs=32, fallback=False) as (_, network, client):
        network.server_port = 1
        network.break_off(1)
        delays = [
            (await client.event("state", lambda value: "retryInMs" in value))["retryInMs"]
            for _ in range(40)
        ]
        for delay, bound in zip(delays, [4, 8, 16] + [32] * 37, strict=True):
            assert 0 <= delay <= bound
        late = delays[3:]
        assert min(late) < 8 and max(late) > 24  # noqa: PT018 - all of the range is used


async def test_a_connection_that_died_in_silence_is_found() -> None:
    """Nothing comes, not even the answer to a ping: the client opens another connection."""
    async with proxied(pongTimeoutMs=300) as (server, network, client):
        network.silence(1)
        await client.do("probe")
        lost = await client.event("state", lambda value: value.get("code") == 1006)
        assert lost["reason"] == "no answer to a ping"
        await client.state("connected")
        await eventually(lambda: server.statistics().subscriptions == 1)
        publish(server, "stock:A:price", price("A", 1))
        assert (await client.update())["price"] == 1


async def test_a_quiet_connection_is_pinged_and_kept() -> None:
    """A quiet stream has no messages for longer than the timeout, and answers to pings."""
    async with (
        running_server(heartbeat_interval_seconds=0.05) as server,
        remote(server.websocket_url, pongTimeoutMs=5000) as client,
    ):
        await client.state("connected")
        received = server.statistics().messages_received
        await eventually(lambda: server.statistics().messages_received >= received + 3)
        assert client.waiting("state") == [{"state": "connecting"}]


async def test_a_server_that_never_greets_is_given_up() -> None:
    """The attempt ends after its timeout, and another one follows."""
    accepted = 0

    async def hold(stream: trio.SocketStream) -> None:
        nonlocal accepted
        accepted += 1
        async with stream:
            await stream.receive_some()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        await nursery.start(trio.serve_listeners, hold, [listener])
        url = f"ws://127.0.0.1:{port}/v1/ws"
        async with remote(url, connectTimeoutMs=200, fallback=False) as client:
            lost = await client.event("state", lambda value: "retryInMs" in value)
            assert lost["reason"] == "no greeting"
            await eventually(lambda: accepted >= 2)
        nursery.cancel_scope.cancel()


async def test_a_subscription_of_the_time_without_a_connection() -> None:
    """A topic that the session holds is restored, and not asked for again: it is ready then."""
    async with proxied() as (server, network, client):
        publish(server, "stock:A:price", price("A", 1))
        await client.update()
        port, network.server_port = network.server_port, 1
        network.break_off(1)
        await client.event("state", lambda value: value.get("code") == 1006)
        second = await client.subscribe("stock:A")
        await client.ask("look")  # the command before has been carried out
        network.server_port = port
        assert await client.ready(second) == []
        assert (await client.update(second))["snapshot"] is True
        publish(server, "stock:A:price", price("A", 2))
        assert (await client.update(second))["price"] == 2


async def test_a_subscription_whose_connection_is_refused_for_good_is_not_ready() -> None:
    """Its answer cannot come any more."""
    async with proxied() as (_, network, client):
        network.deafen()
        number = await client.subscribe("stock:B")
        await client.ask("look")
        await network.inject(close_frame(4500, "the reason"))
        assert await client.ready(number) == [[None, "disconnected: the reason"]]


async def test_it_stays_closed_until_it_is_asked_to_connect() -> None:
    """`close` keeps subscriptions and positions, from which `connect` continues."""
    async with running_server() as server, remote(server.websocket_url) as client:
        await client.ready(await client.subscribe("stock:A"))
        publish(server, "stock:A:price", price("A", 1))
        await client.update()
        await client.do("close")
        assert (await client.state("disconnected"))["reason"] == "closed"
        await eventually(lambda: server.active_connections == 0)
        publish(server, "stock:A:price", price("A", 2))
        await client.do("connect")
        message = await client.update()
        assert (message["price"], "snapshot" in message) == (2, False)
        assert (await client.ask("account"))["violations"] == 0
