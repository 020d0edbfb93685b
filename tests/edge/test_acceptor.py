"""From accept to close: TLS, IPv6, and connections that fail.

Covers streamer.edge.pending and streamer.edge.served.
"""

from __future__ import annotations

import gc
import ssl
from pathlib import Path

import trio
from trio.testing import MockClock

from streamer.edge.session import Session
from streamer.edge.websocket import WebSocket
from streamer.hub.outbox import Outbox
from tests.helpers.clients import connected, open_client, raw_client
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually


async def test_clients_are_served_over_tls(tls: dict[str, Path], trusting: ssl.SSLContext) -> None:
    """wss:// behaves as ws:// does: subscribe, everything in order, close."""
    async with running_server(**tls) as server:
        assert server.websocket_url.startswith("wss://")
        async with connected(server, ssl_context=trusting) as client:
            await client.subscribe("stock:A", mode="all")
            for number in range(500):
                publish(server, "stock:A:price", price("A", number))
                if number % 100 == 0:
                    await trio.lowlevel.checkpoint()
            assert [(await client.data())["price"] for _ in range(500)] == list(range(500))
            await client.ping_pong()
            (connection,) = server.connections()
            assert connection.outbox.delivered == connection.outbox.offered == 500
        await eventually(lambda: server.statistics().active_connections == 0)


async def test_max_rate_holds_over_tls(
    tls: dict[str, Path], trusting: ssl.SSLContext, mock_clock: MockClock
) -> None:
    """Messages are merged as over a plain socket: only the newest is sent."""
    async with (
        running_server(**tls, flush_interval_ms=0) as server,
        connected(server, ssl_context=trusting) as client,
    ):
        await client.subscribe("stock:A", max_rate=1)
        for number in range(10):
            publish(server, "stock:A:price", price("A", number))
            await client.ping_pong() if number else await client.data()
        mock_clock.jump(1)
        message = await client.data()
        assert (message["price"], message["previous"]) == (9, 1)
        await client.ping_pong()


async def test_a_tls_client_that_stops_reading_gets_the_newest_when_it_reads_on(
    tls: dict[str, Path], trusting: ssl.SSLContext
) -> None:
    """Beyond a little, what waits for it is merged; in the end it has the last, all in order."""
    async with (
        running_server(**tls, flush_interval_ms=0) as server,
        connected(server, ssl_context=trusting) as client,
    ):
        await client.subscribe("stock:A")
        published = 0
        # trio-websocket stops reading when its queue of 1,000 messages is full.
        while server.statistics().messages_conflated < 1000:
            publish(server, "stock:A:price", price("A", published, pad="x" * 3000))
            published += 1
            await trio.lowlevel.checkpoint()
        position = 0
        while position < published:
            message = await client.data()
            assert message.get("previous", message["sequence"] - 1) == position
            position = message["sequence"]
        assert server.connections()[0].outbox.queued == 0


async def test_what_is_no_tls_is_hung_up_on(tls: dict[str, Path]) -> None:
    """A plain request to wss:// ends by itself, and nothing of it remains."""
    async with running_server(**tls) as server, raw_client(server, opened=False) as client:
        await client.open()
        await client.rest()
        assert server.statistics().connections_total == 0


async def test_clients_come_over_ipv6_too() -> None:
    """The URL has its brackets, and the address is counted as it is written."""
    async with running_server(host="::1") as server:
        assert server.websocket_url.startswith("ws://[::1]:")
        async with connected(server) as client:
            await client.ping_pong()
            assert server.connections()[0].remote_address == "::1"


async def test_a_close_is_answered_over_tls(tls: dict[str, Path], trusting: ssl.SSLContext) -> None:
    """The client's close frame is answered before the connection ends, as without TLS."""
    async with (
        running_server(**tls) as server,
        open_client(server, ssl_context=trusting) as client,
    ):
        await client.receive_type("connected")
        await client.connection.aclose(4321, "bye")
        assert client.connection.closed is not None
        assert client.connection.closed.code == 4321
        await eventually(lambda: server.statistics().active_connections == 0)


async def test_an_ended_connection_is_freed_without_the_garbage_collector() -> None:
    """No cycle of references outlives it, with 65,000 bytes of an unfinished message either."""
    async with running_server(linger_seconds=0) as server:

        async def connect() -> None:
            async with raw_client(server) as client:
                await client.send(type="subscribe", subscription_type="stock", targets=["A"])
                await client.send_frame(0x01, b"x" * 65_000)
                await eventually(lambda: server.statistics().subscriptions == 1)
            await eventually(lambda: server.statistics().active_connections == 0)

        await connect()
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                await connect()
            await eventually(lambda: not server.statistics().pending_handshakes)
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            left = [
                one for one in gc.get_objects() if isinstance(one, Session | Outbox | WebSocket)
            ]
        finally:
            gc.enable()
        assert left == []
