"""Listeners of streamer.js that close it while it is in the middle of something."""

from __future__ import annotations

import json

from streamer.wire.frames import close_frame, text_frame
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually
from tests.web.nodejs import Remote, remote
from tests.web.test_reconnecting import proxied


async def stays_closed(client: Remote) -> None:
    """Check that no timer of the client is left, which would open a connection again."""
    await client.state("disconnected")
    before = client.waiting("state")
    # Node calls timers in the order of their times, and all of the client's are shorter.
    await client.ask("timer", milliseconds=50)
    assert (await client.ask("look"))["state"] == "disconnected"
    assert client.waiting("state") == before


async def test_closing_when_the_connection_is_lost() -> None:
    """The delay before the next attempt ends with the client."""
    async with proxied() as (_, network, client):
        await client.do("closeOn", name="state", state="connecting")
        await network.inject(close_frame(1011, "the reason"))
        await client.event("state", lambda value: value.get("code") == 1011)
        await stays_closed(client)


async def test_closing_before_an_attempt() -> None:
    """The timeout of the attempt ends with the client."""
    async with (
        running_server() as server,
        remote(server.websocket_url, connectTimeoutMs=10) as client,
    ):
        await client.state("connected")
        await client.do("close")
        await client.state("disconnected")
        await client.do("closeOn", name="state", state="connecting")
        await client.do("connect")
        await client.state("connecting")
        await stays_closed(client)


async def test_closing_when_there_is_no_token() -> None:
    """A page that has been logged out closes the client in its listener to errors."""
    async with (
        running_server() as server,
        remote(server.websocket_url, asks_for_token=True, firstDelayMs=1) as client,
    ):
        await client.do("closeOn", name="error")
        await client.event("token")
        await client.do("token", problem="logged out")
        assert (await client.event("error"))["message"] == "logged out"
        await stays_closed(client)
        assert client.waiting("token") == []


async def test_closing_as_soon_as_it_is_connected() -> None:
    """Nothing is asked of a connection that the listener has closed, and nothing fails."""
    async with running_server() as server, remote(server.websocket_url) as client:
        await client.ready(await client.subscribe("stock:A"))
        await client.do("close")
        await client.state("disconnected")
        await client.do("closeOn", name="state", state="connected")
        await client.do("connect")
        await stays_closed(client)
        await client.do("connect")
        await client.state("connected")
        await eventually(lambda: server.statistics().subscriptions == 1)
        publish(server, "stock:A:price", price("A", 1))
        assert (await client.update())["price"] == 1
        assert (await client.ask("account"))["violations"] == 0


async def test_closing_in_the_middle_of_a_batch() -> None:
    """The rest of the batch comes again on the next connection, and only then."""
    async with proxied() as (_, network, client):
        position = await client.ask("position", topic="stock:A")
        await client.do("closeOnMessage", topic="stock:A")
        messages = [
            json.loads(price("A", value)) | {"sequence": position["sequence"] + value}
            for value in (1, 2, 3)
        ]
        batch = {"type": "batch", "timestamp": "2026-01-02T03:04:05Z", "messages": messages}
        await network.inject(text_frame(json.dumps(batch).encode()))
        assert (await client.update())["price"] == 1
        await stays_closed(client)
        account = await client.ask("account")
        assert (account["received"], account["violations"]) == (1, 0)
        assert client.waiting("update") == []


async def test_closing_when_a_topic_is_refused() -> None:
    """The other refusals of the same answer are still taken."""
    async with running_server() as server, remote(server.websocket_url) as client:
        await client.state("connected")
        await client.do("closeOn", name="error")
        number = await client.subscribe("stock:*", "stock:[", "stock:?")
        other = await client.subscribe("market:KOSPI")
        for one in (number, other):
            assert await client.ready(one) == [[None, "disconnected: closed"]]
        await client.event("error")
        await client.event("error")
        await client.event("error")
        await stays_closed(client)
        await client.do("connect")
        await client.do("await", id=other)
        assert await client.ready(other) == []


async def test_closing_in_the_middle_of_a_batch_of_a_stream_of_events() -> None:
    """No cursor is in the middle of a batch, so the next stream begins with a gap."""
    async with (
        running_server() as server,
        remote(server.websocket_url, is_blocked=True) as client,
    ):
        number = await client.subscribe("stock:A")
        await client.ready(number)
        await client.do("closeOnMessage", topic="stock:A", price=2)
        await client.ask("position", topic="stock:A")  # the command before has been carried out
        for value in (1, 2, 3, 4):  # the first is sent at once, the others after the interval
            publish(server, "stock:A:price", price("A", value))
        assert (await client.update(number))["price"] == 1
        assert (await client.update(number))["price"] == 2
        await stays_closed(client)
        await client.do("connect")
        gap = await client.update(number)
        assert (gap["type"], gap["reason"]) == ("gap", "transport_changed")
        whole = await client.update(number)
        assert (whole["price"], whole["snapshot"]) == (4, True)
        publish(server, "stock:A:price", price("A", 5))
        assert (await client.update(number))["price"] == 5
        assert (await client.ask("account"))["violations"] == 0


async def test_subscribing_in_a_listener() -> None:
    """The new subscription begins with the last value, and does not get it twice."""
    async with running_server() as server, remote(server.websocket_url) as client:
        await client.ready(await client.subscribe("stock:A"))
        await client.do("subscribeOnMessage", id=100, topic="stock:A")
        await client.ask("position", topic="stock:A")
        publish(server, "stock:A:price", price("A", 1))
        await client.ready(100)
        publish(server, "stock:A:price", price("A", 2))
        first, second = await client.update(100), await client.update(100)
        assert (first["price"], first["snapshot"]) == (1, True)
        assert (second["price"], "snapshot" in second) == (2, False)
