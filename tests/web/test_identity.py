"""streamer.js with tokens: how they are asked for and renewed, and messages to the user."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from streamer.publisher import open_publisher
from tests.auth.tokens import secret_file, signed
from tests.helpers.proxy import Proxy
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.web.nodejs import remote


def required(directory: Path) -> dict[str, Any]:
    """The settings of a server that asks for tokens."""
    return {"auth": "required", "auth_secret_file": secret_file(directory)}


def alert(number: int) -> bytes:
    """A message to a user."""
    return json.dumps(
        {
            "type": "alert",
            "alert_id": number,
            "stock_code": "A",
            "alert_type": "above",
            "message": "above 72500",
            "timestamp": "2026-01-02T03:04:05.678Z",
        }
    ).encode()


async def test_a_token_is_asked_for_once_and_kept(tmp_path: Path) -> None:
    """It opens the connection, and the next one, too."""
    network = Proxy()
    async with running_server(**required(tmp_path)) as server, network.run():
        network.server_port = urlsplit(server.websocket_url).port or 0
        url = f"ws://127.0.0.1:{network.port}/v1/ws"
        async with remote(url, asks_for_token=True) as client:
            assert await client.event("token") == "connect"
            await client.do("token", token=signed())
            assert await client.ready(await client.subscribe("stock:A")) == []
            assert (await client.ask("look"))["userId"] == "42"
            network.break_off(1)
            await client.event("state", lambda value: value.get("code") == 1006)
            await client.event("state", lambda value: value.get("transport") == "websocket")
            await client.event("state", lambda value: value.get("transport") == "websocket")
            publish(server, "stock:A:price", price("A", 1))
            assert (await client.update())["price"] == 1
            assert client.waiting("token") == []


async def test_a_missing_token_says_nothing_against_websockets(tmp_path: Path) -> None:
    """The page's function fails for a while; then a WebSocket is opened, not a stream of events."""
    async with (
        running_server(**required(tmp_path)) as server,
        remote(server.websocket_url, asks_for_token=True) as client,
    ):
        for _ in range(2):
            await client.event("token")
            await client.do("token", problem="the identity provider is away")
        await client.event("token")
        await client.do("token", token=signed())
        connected = await client.event("state", lambda value: "transport" in value)
        assert connected["transport"] == "websocket"


async def test_an_invalid_token_is_final(tmp_path: Path) -> None:
    """The client does not come back with a token that no time will make valid."""
    async with (
        running_server(**required(tmp_path)) as server,
        remote(
            server.websocket_url, token=signed("another secret, of 32 bytes and more")
        ) as client,
    ):
        assert (await client.event("error"))["code"] == "INVALID_TOKEN"
        assert (await client.state("disconnected"))["code"] == 4500


async def test_an_expired_token_is_replaced(tmp_path: Path) -> None:
    """The server refuses it, and the client gets another one."""
    async with (
        running_server(**required(tmp_path)) as server,
        remote(server.websocket_url, asks_for_token=True) as client,
    ):
        await client.event("token")
        await client.do("token", token=signed(exp=int(time.time()) - 3600))
        lost = await client.event("state", lambda value: value.get("code") == 4001)
        assert lost["state"] == "connecting"
        assert await client.event("token") == "connect"
        await client.do("token", token=signed())
        assert await client.ready(await client.subscribe("stock:A")) == []


async def test_a_token_is_renewed_before_it_expires(tmp_path: Path) -> None:
    """The server says when; the connection stays, with its subscriptions."""
    settings = required(tmp_path) | {"auth_leeway_seconds": 0}
    async with (
        running_server(**settings) as server,
        remote(server.websocket_url, asks_for_token=True) as client,
    ):
        await client.event("token")
        await client.do("token", token=signed(exp=int(time.time()) + 6))
        await client.ready(await client.subscribe("stock:A"))
        assert await client.event("token") == "expiring"
        await client.do("token", token=signed(topics=["market:KOSPI"]))
        position = await client.ask("position", topic="user:42")
        assert position["sequence"] == 0
        publish(server, "stock:A:price", price("A", 1))
        assert (await client.update())["price"] == 1
        assert server.statistics().active_connections == 1
        assert len(client.waiting("state")) == 2  # connecting, connected


@asynccontextmanager
async def server_behind(network: Proxy, redis_url: str, tmp_path: Path) -> AsyncIterator[str]:
    """A server that asks for tokens: its URL through a network."""
    async with running_server(redis=redis_url, **required(tmp_path)) as server, network.run():
        network.server_port = urlsplit(server.websocket_url).port or 0
        yield f"ws://127.0.0.1:{network.port}/v1/ws"


async def test_messages_to_the_user_arrive_once(redis_url: str, tmp_path: Path) -> None:
    """Those of the time without a connection, too, without a subscription of that topic."""
    network = Proxy()
    async with (
        server_behind(network, redis_url, tmp_path) as url,
        open_publisher(redis_url) as publisher,
        remote(url, token=signed(), firstDelayMs=1, maxDelayMs=50) as client,
    ):
        await client.ready(await client.subscribe("user"))
        await client.state("connected")
        await publisher.publish("alerts:42", alert(1))
        assert (await client.update())["alert_id"] == 1
        server_port, network.server_port = network.server_port, 1
        network.break_off(1)
        await client.event("state", lambda value: value.get("code") == 1006)
        await publisher.publish("alerts:42", alert(2))
        network.server_port = server_port
        await client.event("state", lambda value: value.get("transport") == "websocket")
        await publisher.publish("alerts:42", alert(3))
        for number in (2, 3):
            message = await client.update()
            assert (message["alert_id"], message["topic"]) == (number, "user:42")
        account = await client.ask("account")
        assert (account["violations"], account["gaps"], account["outstanding"]) == (0, {}, 0)
        assert client.waiting("update") == []


async def test_a_user_is_told_of_a_gap_where_events_take_the_place_of_a_websocket(
    redis_url: str, tmp_path: Path
) -> None:
    """A stream of events begins now, also in the user's own topic."""
    network = Proxy()
    async with (
        server_behind(network, redis_url, tmp_path) as url,
        open_publisher(redis_url) as publisher,
        remote(url, token=signed(), firstDelayMs=1, maxDelayMs=2) as client,
    ):
        await client.ready(await client.subscribe("stock:A"))
        own = await client.subscribe("user")
        await publisher.publish("alerts:42", alert(1))
        assert (await client.update(own))["alert_id"] == 1
        await client.do("block")
        await client.ask("look")
        network.break_off(1)
        await client.event("state", lambda value: value.get("code") == 1006)
        await publisher.publish("alerts:42", alert(2))
        await client.event("state", lambda value: value.get("transport") == "sse")
        gap = await client.update(own)
        assert (gap["type"], gap["reason"]) == ("gap", "transport_changed")
        await publisher.publish("alerts:42", alert(3))
        assert (await client.update(own))["alert_id"] == 3
        assert (await client.ask("account"))["faults"] == {}


async def test_what_a_user_missed_is_asked_for_once(redis_url: str, tmp_path: Path) -> None:
    """Also after a connection that died in silence, whose session is not restored."""
    network = Proxy()
    async with (
        server_behind(network, redis_url, tmp_path) as url,
        open_publisher(redis_url) as publisher,
        remote(url, token=signed(), firstDelayMs=1, maxDelayMs=50, pongTimeoutMs=300) as client,
    ):
        await client.ready(await client.subscribe("user"))
        await client.event("state", lambda value: value.get("transport") == "websocket")
        await publisher.publish("alerts:42", alert(1))
        assert (await client.update())["alert_id"] == 1
        network.silence(1)
        await client.do("probe")
        await publisher.publish("alerts:42", alert(2))
        await client.event("state", lambda value: value.get("transport") == "websocket")
        await publisher.publish("alerts:42", alert(3))
        assert (await client.update())["alert_id"] == 2
        assert (await client.update())["alert_id"] == 3


async def test_a_topic_that_the_token_does_not_permit_is_refused(tmp_path: Path) -> None:
    """The others of the subscription are served."""
    settings = required(tmp_path) | {"public_topics": ()}
    async with (
        running_server(**settings) as server,
        remote(server.websocket_url, token=signed(topics=["stock:A"])) as client,
    ):
        number = await client.subscribe("stock:A", "stock:B")
        assert await client.ready(number) == [["stock:B", "FORBIDDEN"]]
        publish(server, "stock:A:price", price("A", 1))
        assert (await client.update(number))["price"] == 1
