"""A whole server in a nursery of the test."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import trio

from streamer.config import Settings
from streamer.edge.session import Session
from streamer.server import Server, serve
from tests.helpers.timing import real_deadline


@asynccontextmanager
async def running_server(**settings: Any) -> AsyncIterator[Server]:
    """A server on free ports, with the bus in the process unless `redis` is given."""
    defaults: dict[str, Any] = {
        "memory": "redis" not in settings,
        "port": 0,
        "http_port": 0,
        "max_connections_per_address": 0,
    }
    async with real_deadline(), trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, Settings(**(defaults | settings))))
        yield server
        nursery.cancel_scope.cancel()


def publish(server: Server, channel: str, payload: bytes) -> None:
    """Publish on the bus of a server that has one in its process."""
    assert server.bus is not None
    server.bus.publish(channel, payload)


def first_session(server: Server, session_id: str | None = None) -> Session:
    """The session of a WebSocket, by its id or the first there is."""
    sessions = server._acceptor.sessions
    session = next(iter(sessions.values())) if session_id is None else sessions[session_id]
    assert isinstance(session, Session)
    return session


async def get_page(server: Server, path: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of a page of the operator's listener."""
    address = urlsplit(server.http_url)
    async with await trio.open_tcp_stream(address.hostname or "", address.port or 0) as stream:
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        await stream.send_all(request.encode())
        response = b"".join([bytes(chunk) async for chunk in stream])
    head, _, body = response.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)
