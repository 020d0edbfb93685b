"""Feeds of servers that speak like exchanges, over real sockets."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import attrs
import pytest
import structlog
import trio

from streamer.backoff import Backoff
from streamer.feeds.websocket import FeedConnectError, FeedReader, FeedSource
from tests.feeds.exchanges import (
    UPBIT_BOOK,
    UPBIT_REQUEST,
    Exchange,
    binance_snapshots,
    like_binance,
    like_upbit,
    ping_and_read,
    serving,
)
from tests.helpers.timing import eventually, real_deadline


@attrs.define
class Received:
    """A consumer that keeps everything."""

    connections: list[int] = attrs.field(factory=list)
    messages: list[tuple[int, Any]] = attrs.field(factory=list)
    """Each with the number of its connection."""

    def connected(self, connection: int) -> None:
        """Take note of a connection."""
        self.connections.append(connection)

    async def take(self, message: str | bytes, received_ns: int) -> None:
        """Keep a message."""
        assert received_ns > 1.7e18
        self.messages.append((self.connections[-1], json.loads(message)))


@asynccontextmanager
async def reading(source: FeedSource, **options: Any) -> AsyncIterator[tuple[FeedReader, Received]]:
    """Read a feed while the block runs."""
    received = Received()
    reader = FeedReader(
        source, received, log=structlog.get_logger(), backoff=Backoff(0.001, 0.01), **options
    )
    async with real_deadline(), trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        yield reader, received
        nursery.cancel_scope.cancel()


async def test_a_lost_feed_is_connected_to_anew() -> None:
    """Subscriptions are sent again; pings of the server are answered."""
    async with serving(like_binance) as exchange:
        source = FeedSource(url=exchange.url, subscribe=["one", "two"])
        async with reading(source) as (reader, received):
            await eventually(lambda: exchange.requests[-2:] == ["one", "two"])
            assert (exchange.connections, reader.connections, exchange.pongs) == (3, 3, 4)
            assert received.connections == [1, 2, 3]
            ids = [m["data"]["t"] for _, m in received.messages if "trade" in m["stream"]]
            assert ids == [1, 2, 3, 4, 5, 101, 102, 103, 104, 105, 201, 202, 203, 204, 205]


async def test_what_is_fetched_is_a_message_of_its_connection() -> None:
    """It is requested once for each connection, after the first message."""
    async with serving(like_binance, snapshots=binance_snapshots()) as exchange:
        source = FeedSource(url=exchange.url, fetch=[exchange.snapshot_url])
        async with reading(source) as (_, received):
            await eventually(lambda: received.connections[-1:] == [3])
            await eventually(
                lambda: any("bids" in m for number, m in received.messages if number == 3)
            )
            assert "bids" not in received.messages[0][1]


async def test_a_feed_that_needs_a_ticket_and_sends_binary_frames() -> None:
    """The heartbeat is a text of its own, which the server answers."""
    async with serving(like_upbit) as exchange:
        source = FeedSource(
            url=exchange.url, subscribe=[UPBIT_REQUEST], heartbeat="PING", heartbeat_seconds=0.01
        )
        async with reading(source) as (_, received):
            await eventually(lambda: exchange.requests.count("PING") >= 3)
            assert exchange.requests[0] == json.loads(UPBIT_REQUEST)
            assert exchange.connections == 1
            types = {message.get("type", "status") for _, message in received.messages}
            assert types == {"orderbook", "trade", "status"}


@pytest.mark.parametrize("heartbeat", [None, "PING"])
async def test_a_mute_feed_is_connected_to_anew(heartbeat: str | None) -> None:
    """Where a heartbeat has no answer, the connection is dead, whatever TCP says."""

    async def swallow(exchange: Exchange, stream: trio.SocketStream) -> None:
        exchange.connections += 1
        request = bytes(await stream.receive_some())
        await stream.send_all(handshake_answer(request))
        with suppress(trio.BrokenResourceError):  # the reader gives up its connection
            async for data in stream:
                exchange.requests.append(bytes(data))

    exchange = Exchange(0)
    async with real_deadline(), trio.open_nursery() as nursery:
        (listener,) = await nursery.start(serve_raw(exchange, swallow))
        exchange.port = listener.socket.getsockname()[1]
        source = FeedSource(url=exchange.url, heartbeat=heartbeat, heartbeat_seconds=0.01)
        async with reading(source, answer_timeout_seconds=0.1):
            await eventually(lambda: exchange.connections >= 2)
        nursery.cancel_scope.cancel()


def serve_raw(exchange: Exchange, talk: Callable[..., Any]) -> Any:
    """Return the function that serves TCP connections with `talk`."""

    async def serve(task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        await trio.serve_tcp(
            lambda stream: talk(exchange, stream), 0, host="127.0.0.1", task_status=task_status
        )

    return serve


def handshake_answer(request: bytes) -> bytes:
    """Return the answer that accepts a WebSocket handshake (RFC 6455, 4.2.2)."""
    match = re.search(rb"(?i)sec-websocket-key: (\S+)", request)
    assert match is not None
    accept = hashlib.sha1(match[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(accept) + b"\r\n\r\n"
    )


async def test_the_consumer_can_ask_for_a_new_connection() -> None:
    """Then all that it has received is of no further use."""
    async with (
        serving(ping_and_read) as exchange,
        reading(FeedSource(url=exchange.url)) as (reader, received),
    ):
        await eventually(lambda: exchange.pongs == 1)
        reader.reconnect("a hole")
        await eventually(lambda: exchange.pongs == 2)
        assert received.connections == [1, 2]


async def test_a_feed_that_cannot_be_had_at_first_is_an_error() -> None:
    """A wrong URL is more likely than a server that is away; the password is not in the error."""
    reader = FeedReader(
        FeedSource(url="ws://user:secret@127.0.0.1:1/"), Received(), log=structlog.get_logger()
    )
    with pytest.raises(FeedConnectError, match="Connection refused") as raised:
        await reader.run()
    assert "secret" not in str(raised.value)
    assert "ws://user:***@127.0.0.1:1/" in str(raised.value)


async def test_an_error_of_the_consumer_ends_the_reader() -> None:
    """It is raised unchanged."""

    class Full(Received):
        async def take(self, message: str | bytes, received_ns: int) -> None:  # noqa: ARG002
            raise OSError("no space left")

    async with serving(like_binance) as exchange:
        reader = FeedReader(FeedSource(url=exchange.url), Full(), log=structlog.get_logger())
        async with real_deadline():
            with pytest.raises(OSError, match="no space left"):
                await reader.run()


async def test_a_consumer_without_room_does_not_make_a_feed_mute() -> None:
    """The answers to heartbeats cannot be read then; and the message that waits is not lost."""
    room = trio.Event()

    class Full(Received):
        async def take(self, message: str | bytes, received_ns: int) -> None:
            await room.wait()
            await super().take(message, received_ns)

    received = Full()
    async with real_deadline(), serving(like_upbit) as exchange, trio.open_nursery() as nursery:
        source = FeedSource(
            url=exchange.url, subscribe=[UPBIT_REQUEST], heartbeat="PING", heartbeat_seconds=0.01
        )
        reader = FeedReader(
            source, received, log=structlog.get_logger(), answer_timeout_seconds=0.1
        )
        nursery.start_soon(reader.run)
        await eventually(lambda: exchange.requests.count("PING") >= 3)
        assert exchange.connections == 1
        room.set()
        await eventually(lambda: len(received.messages) >= 1)
        assert received.messages[0] == (1, json.loads(UPBIT_BOOK))
        nursery.cancel_scope.cancel()
