"""The count of bytes, against what clients have read from their sockets.

Covers streamer.hub.traffic.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trio

from streamer.server import Server
from tests.helpers.clients import RawClient, client_frame, connected, raw_client
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually

SUBSCRIBE = b'{"type":"subscribe","subscription_type":"stock","targets":["A"],"mode":"all"}'
CLOSE = client_frame(0x88, b"\x03\xe8")
PAD = "x" * 4000


async def open_and_subscribe(client: RawClient) -> bytes:
    """Open a WebSocket with a subscription behind; return the frames of the client."""
    frame = client_frame(0x81, SUBSCRIBE)
    await client.open(trailing=frame[:10])
    await client.stream.send_all(frame[10:])
    return frame


async def close(client: RawClient, seen: list[int]) -> None:
    """Close, and count all bytes that the server has sent, its answer to the handshake too."""
    await client.stream.send_all(CLOSE)
    seen.append(len(await client.rest()))


def subscribers(server: Server) -> int:
    """Return how many clients are subscribed to the topic."""
    return server.statistics().subscriptions


async def test_the_bytes_are_those_that_clients_send_and_read() -> None:
    """Clients are in a group at first, and later their sockets are full."""
    settings = {"heartbeat_interval_seconds": 1000, "max_outbound_bytes": 1 << 24}
    async with (
        running_server(**settings) as server,
        raw_client(server, opened=False) as first,
        raw_client(server, opened=False) as second,
        raw_client(server, opened=False, receive_buffer_bytes=4096) as slow,
    ):
        clients = (first, second, slow)
        frames = [await open_and_subscribe(client) for client in clients]
        await eventually(lambda: subscribers(server) == len(clients))
        read: list[int] = []
        publish(server, "stock:A:price", price("A", 0))
        await eventually(lambda: server.statistics().messages_sent == len(clients))
        async with trio.open_nursery() as nursery:
            for number in range(500):
                publish(server, "stock:A:price", price("A", number, pad=PAD))
                await trio.lowlevel.checkpoint()
            await eventually(lambda: server.statistics().hub.blocked_clients)
            for client in clients:
                nursery.start_soon(close, client, read)
        await eventually(lambda: not server.active_connections)
        statistics = server.statistics()
    assert min(read[:2]) > 0
    assert statistics.bytes_sent == sum(read)
    assert statistics.bytes_received == sum(map(len, frames)) + len(clients) * len(CLOSE)


@pytest.mark.parametrize("over_tls", [False, True])
async def test_bytes_to_an_only_client_are_counted_without_tls(
    tls: dict[str, Path], trusting: ssl.SSLContext, *, over_tls: bool
) -> None:
    """A publication adds the size of its message, where nobody else is in the client's group."""
    async with (
        running_server(**(tls if over_tls else {}), compression=False) as server,
        connected(server, ssl_context=trusting if over_tls else None) as client,
    ):
        await client.subscribe("stock:A")
        await client.ping_pong()
        before = server.statistics()
        publish(server, "stock:A:price", price("A", 1, pad=PAD))
        await client.data()
        await eventually(lambda: server.statistics().bytes_sent > before.bytes_sent)
        added = server.statistics().bytes_sent - before.bytes_sent
        assert len(PAD) < added < len(PAD) + 400
        await client.ping_pong()
        assert server.statistics().bytes_received > before.bytes_received
