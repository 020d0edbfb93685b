"""A client of event streams that reads its bytes by hand, as curl does, and may be cut anywhere."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import attrs
import trio

from streamer.server import Server

Message = dict[str, Any]


@attrs.define
class Response:
    """The head of an answer, and its body if it is no stream."""

    status: int
    headers: dict[str, str]
    """By names in lower case."""
    body: bytes = b""

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class EventClient:
    """A stream of events. `last_id` and `retry_ms` are what a browser would keep."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self.stream = stream
        self.received = bytearray()
        """Bytes that have been received and are of no whole event yet."""
        self.response = Response(0, {})
        self.last_id = ""
        self.retry_ms: int | None = None
        self.comments = 0
        self._messages: list[Message] = []

    async def more(self, max_bytes: int = 65_536) -> bool:
        """Receive some bytes; return False at the end."""
        data = await self.stream.receive_some(max_bytes)
        self.received += data
        return bool(data)

    async def head(self) -> Response:
        """Read the head of the answer."""
        while b"\r\n\r\n" not in self.received:
            assert await self.more(), f"no whole head: {bytes(self.received)!r}"
        head, _, rest = bytes(self.received).partition(b"\r\n\r\n")
        self.received[:] = rest
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        self.response = Response(
            int(first.split()[1]), {name.lower(): value for name, value in headers.items()}
        )
        return self.response

    def take(self) -> list[tuple[Message, str]]:
        """Return the messages of the whole events that have been received, each with its id.

        The id is empty for an event without one. Of the ids without an event, and of `retry`, only
        the attributes tell.
        """
        *blocks, rest = bytes(self.received).split(b"\n\n")
        self.received[:] = rest
        events: list[tuple[Message, str]] = []
        for block in blocks:
            data: list[str] = []
            event_id = ""
            for line in block.decode().split("\n"):
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if line.startswith(":"):
                    self.comments += 1
                elif name == "data":
                    data.append(value)
                elif name == "id":
                    event_id = value
                elif name == "retry":
                    self.retry_ms = int(value)
                else:
                    assert not line, line
            self.last_id = event_id or self.last_id
            if data:
                events.append((json.loads("\n".join(data)), event_id))
        return events

    async def message(self) -> Message:
        """The next message that is no batch; a batch is unpacked."""
        while not self._messages:
            for message, _ in self.take():
                self._messages += message.get("messages", [message])
            if not self._messages and not await self.more():
                raise EOFError
        return self._messages.pop(0)

    async def message_type(self, message_type: str) -> Message:
        """The next message, which must be of this type."""
        message = await self.message()
        assert message["type"] == message_type, message
        return message

    async def rest(self) -> list[Message]:
        """All messages until the server closes."""
        messages: list[Message] = []
        while True:
            try:
                messages.append(await self.message())
            except EOFError:
                return messages


@asynccontextmanager
async def requested(
    server: Server | str,
    path: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    version: str = "1.1",
) -> AsyncIterator[EventClient]:
    """A client that has sent a request to a server, or to the place of a URL."""
    address = urlsplit(server if isinstance(server, str) else server.websocket_url)
    host = address.hostname or ""
    tcp = await trio.open_tcp_stream(host, address.port or 0)
    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = tcp
    if ssl_context is not None:
        stream = trio.SSLStream(tcp, ssl_context, server_hostname=host, https_compatible=True)
    try:
        lines = [f"{method} {path} HTTP/{version}", f"Host: {address.netloc}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        await stream.send_all("\r\n".join([*lines, "", ""]).encode())
        yield EventClient(stream)
    finally:
        await trio.aclose_forcefully(stream)


@asynccontextmanager
async def streaming(
    server: Server | str, topics: str, *, cursor: str = "", **options: Any
) -> AsyncIterator[EventClient]:
    """A client of a stream, past the head of its answer; `cursor` is sent as a browser does."""
    headers = dict(options.pop("headers", {})) | ({"Last-Event-ID": cursor} if cursor else {})
    query = options.pop("query", "")
    path = f"/v1/stream?topics={quote(topics, safe=':,')}{query}"
    async with requested(server, path, headers=headers, **options) as client:
        response = await client.head()
        assert response.status == 200, (response, bytes(client.received))
        client.last_id = cursor
        yield client


async def fetched(server: Server | str, path: str, **options: Any) -> Response:
    """The whole answer to a request."""
    async with requested(server, path, **options) as client:
        response = await client.head()
        while await client.more():
            pass
        response.body = bytes(client.received)
        return response
