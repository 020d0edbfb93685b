"""The servers that the client is tested against: the real one, and one that plays a script."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NoReturn

import pytest
import trio
import trio_websocket

from streamer.config import Settings
from streamer.server import Server, serve
from tests.helpers.timing import DEADLINE_SECONDS

Serve = Callable[..., Awaitable[Server]]
Script = Callable[["Line"], Awaitable[None]]


async def expire() -> NoReturn:
    """Fail a test that hangs; the nursery of a fixture ends with its test."""
    await trio.sleep(DEADLINE_SECONDS)
    pytest.fail("the test hangs")


@pytest.fixture
def start_server(nursery: trio.Nursery) -> Serve:
    """Return a function that starts a server without Redis, with some settings."""
    nursery.start_soon(expire)

    async def start(**settings: Any) -> Server:
        own = {"memory": True, "port": 0, "http_port": 0, "flush_interval_ms": 0.0} | settings
        server: Server = await nursery.start(serve, Settings(**own))
        return server

    return start


@pytest.fixture
async def server(start_server: Serve) -> Server:
    """Start a server with default settings, which flushes at once."""
    return await start_server()


class Line:
    """One connection to the scripted server."""

    def __init__(self, request: trio_websocket.WebSocketRequest) -> None:
        self.path = request.path
        self.headers = dict(request.headers)
        self._request = request
        self._socket: trio_websocket.WebSocketConnection | None = None

    async def socket(self) -> trio_websocket.WebSocketConnection:
        """Accept the connection if need be, and return it."""
        if self._socket is None:
            self._socket = await self._request.accept()
        return self._socket

    async def reject(self, status: int) -> None:
        """Answer the handshake with an HTTP status."""
        await self._request.reject(status)

    async def greet(self, **changes: Any) -> None:
        """Send `connected`."""
        greeting = {"session_id": "s1", "protocol": 1, "heartbeat_interval": 25, "limits": {}}
        await self.say("connected", **greeting | changes)

    async def say(self, message_type: str, **members: Any) -> None:
        """Send one message."""
        message = {"type": message_type, "timestamp": "2024-08-09T00:00:00Z"} | members
        await self.send(json.dumps(message))

    async def send(self, message: str | bytes) -> None:
        """Send text or bytes that need not be a message."""
        await (await self.socket()).send_message(message)

    async def hear(self) -> dict[str, Any]:
        """Return the next message of the client."""
        message: dict[str, Any] = json.loads(await (await self.socket()).get_message())
        return message

    async def accept_subscription(self, sequence: int = 0) -> None:
        """Receive a subscription and accept all its targets, at this position."""
        request = await self.hear()
        assert request["type"] == "subscribe"
        await self.say(
            "subscribed",
            subscription_type=request["subscription_type"],
            targets=request["targets"],
            rejected=[],
            positions={
                target: {"epoch": "a", "sequence": sequence} for target in request["targets"]
            },
            request_id=request["request_id"],
        )

    async def price(self, sequence: int, **members: Any) -> None:
        """Send a price of stock 005930."""
        values = {"stock_code": "005930", "price": 1, "change": 0, "change_percent": 0, "volume": 1}
        await self.say("price_update", **values, sequence=sequence, **members)

    async def close(self, code: int, reason: str = "") -> None:
        """Close the connection."""
        await (await self.socket()).aclose(code, reason)

    async def wait_closed(self) -> int:
        """Read until the client closes; return the close code."""
        socket = await self.socket()
        code: int | None = None
        while code is None:
            try:
                await socket.get_message()
            except trio_websocket.ConnectionClosed:
                code = socket.closed.code if socket.closed else 0
        return code


Peer = Callable[..., Awaitable[str]]


@pytest.fixture
def peer(nursery: trio.Nursery) -> Peer:
    """Return a function that starts a server, with a script for each connection, at a URL."""
    nursery.start_soon(expire)

    async def start(*scripts: Script) -> str:
        left = list(scripts)

        async def play(request: trio_websocket.WebSocketRequest) -> None:
            await left.pop(0)(Line(request))

        listening = await nursery.start(
            partial(
                trio_websocket.serve_websocket, play, "127.0.0.1", 0, None, message_queue_size=0
            )
        )
        return f"ws://127.0.0.1:{listening.port}/v1/ws"

    return start
