"""WebSocket clients that talk to a server over real sockets."""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import trio
import trio_websocket
from wsproto.frame_protocol import FrameProtocol, Opcode
from wsproto.utilities import LocalProtocolError

from streamer.protocol.endpoint import WEBSOCKET_PATH
from streamer.server import Server
from tests.helpers.timing import FLOW_DEADLINE_SECONDS

Message = dict[str, Any]


class Client:
    """A WebSocket client that has said nothing yet but has read `connected`."""

    def __init__(self, connection: trio_websocket.WebSocketConnection) -> None:
        self.connection = connection
        self.session_id = ""
        self._queued: list[Message] = []

    async def send(self, **message: Any) -> None:
        """Send one message."""
        await self.connection.send_message(json.dumps(message))

    async def send_text(self, text: str | bytes) -> None:
        """Send anything; bytes go as a binary message."""
        await self.connection.send_message(text)

    async def receive(self) -> Message:
        """The next message. Raises trio_websocket.ConnectionClosed."""
        message: Message = json.loads(await self.connection.get_message())
        return message

    async def receive_type(self, message_type: str) -> Message:
        """The next message, which must be of this type."""
        message = await self.receive()
        assert message["type"] == message_type, message
        return message

    async def data(self) -> Message:
        """The next data message, batches unpacked."""
        if not self._queued:
            message = await self.receive()
            self._queued = message["messages"] if message["type"] == "batch" else [message]
        return self._queued.pop(0)

    async def request(self, **message: Any) -> Message:
        """Send one message and read the next, which must be its answer."""
        await self.send(request_id="r", **message)
        answer = await self.receive()
        assert answer.get("request_id") == "r", answer
        return answer

    async def subscribe(self, *topics: str, **options: Any) -> Message:
        """Subscribe to topics (`type:target`) of one type; returns `subscribed`."""
        pairs = [topic.split(":", 1) for topic in topics]
        return await self.request(
            type="subscribe",
            subscription_type=pairs[0][0],
            targets=[target for _, target in pairs],
            **options,
        )

    async def unsubscribe(self, *topics: str) -> Message:
        """Unsubscribe from topics of one type; returns `unsubscribed`."""
        pairs = [topic.split(":", 1) for topic in topics]
        return await self.request(
            type="unsubscribe",
            subscription_type=pairs[0][0],
            targets=[target for _, target in pairs],
        )

    async def closed(self) -> int:
        """Wait for the server to close, whatever it sends before; returns the code."""
        while True:
            try:
                await self.connection.get_message()
            except trio_websocket.ConnectionClosed as closed:
                return int(closed.reason.code)  # type: ignore[union-attr]  # it is set by then

    async def refused(self) -> None:
        """The next message says that the last one was one too many."""
        error = await self.receive_type("error")
        assert error["code"] == "RATE_LIMIT_EXCEEDED"

    async def ping_pong(self) -> None:
        """Prove that the connection is served, and that nothing else is on its way."""
        assert (await self.request(type="ping"))["type"] == "pong"


@asynccontextmanager
async def connected(server: Server, **options: Any) -> AsyncIterator[Client]:
    """A client of the server, past its greeting."""
    async with open_client(server, **options) as client:
        greeting = await client.receive_type("connected")
        client.session_id = greeting["session_id"]
        yield client


@asynccontextmanager
async def open_client(
    server: Server,
    *,
    ssl_context: ssl.SSLContext | None = None,
    headers: list[tuple[bytes, bytes]] | None = None,
    path: str = WEBSOCKET_PATH,
    preamble: bytes = b"",
    proxy_port: int | None = None,
    local_address: str | None = None,
) -> AsyncIterator[Client]:
    """A client of the server that has read nothing yet; `preamble` is sent first, before TLS.

    It connects to `proxy_port` of the same host if that is given, and from `local_address`.
    """
    address = urlsplit(server.websocket_url)
    host = address.hostname or ""
    port = proxy_port or address.port or 0
    tcp = await trio.open_tcp_stream(host, port, local_address=local_address)
    await tcp.send_all(preamble)
    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = tcp
    if ssl_context is not None:
        stream = trio.SSLStream(tcp, ssl_context, server_hostname=host, https_compatible=True)
    try:
        async with quiet_close() as closing, trio.open_nursery() as nursery:
            connection = await trio_websocket.wrap_client_stream(
                nursery,
                stream,
                host,
                path,
                extra_headers=headers,
                max_message_size=1 << 24,
                message_queue_size=1000,
            )
            yield Client(connection)
            closing.set()
            await connection.aclose()
            nursery.cancel_scope.cancel()
    finally:
        # trio-websocket leaves it open where the server was the first to close.
        await trio.aclose_forcefully(stream)


@asynccontextmanager
async def open_url(url: str) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    """A connection of trio-websocket's to a URL, for tests that have no `Server` object.

    It has long to open: the faults' clients share its event loop, and may be busy for seconds.
    """
    async with (
        quiet_close() as closing,
        trio_websocket.open_websocket_url(
            url,
            connect_timeout=FLOW_DEADLINE_SECONDS,
            max_message_size=1 << 24,
            message_queue_size=1000,
        ) as connection,
    ):
        yield connection
        closing.set()


@asynccontextmanager
async def quiet_close() -> AsyncIterator[trio.Event]:
    """Ignore that trio-websocket (0.12) fails where a ping comes while it closes.

    Only once the event is set, which the client does when it begins to close: it would hide the end
    of a test that is not over.
    """
    closing = trio.Event()
    try:
        yield closing
    except* LocalProtocolError:
        if not closing.is_set():
            raise


class RawClient:
    """A client that writes its bytes by hand, or does not read at all."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._received = bytearray()

    async def open(
        self, path: str = WEBSOCKET_PATH, headers: bytes = b"", trailing: bytes = b""
    ) -> None:
        """Ask for a WebSocket, and send what shall come right behind; the answer is left unread."""
        await self.stream.send_all(
            b"GET %b HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%b\r\n"
            % (path.encode(), headers)
            + trailing
        )

    async def response(self) -> bytes:
        """The head of the HTTP response."""
        while b"\r\n\r\n" not in self._received:
            await self._more()
        head, _, rest = bytes(self._received).partition(b"\r\n\r\n")
        self._received[:] = rest
        return head

    async def _more(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            raise EOFError
        self._received += data

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        try:
            while True:
                await self._more()
        except EOFError:
            return bytes(self._received)

    async def send(self, **message: Any) -> None:
        """Send one message."""
        await self.send_frame(0x81, json.dumps(message).encode())

    async def send_frame(self, first_byte: int, payload: bytes) -> None:
        """Send one frame, masked as a client's must be (RFC 6455, 5.3), with a mask of zeros."""
        await self.stream.send_all(client_frame(first_byte, payload))

    async def frames(self) -> AsyncGenerator[tuple[Opcode, Any], None]:
        """The frames that the server sends, until it closes."""
        parser = FrameProtocol(client=True, extensions=[])
        message = ""
        while True:
            parser.receive_bytes(bytes(self._received))
            self._received.clear()
            for frame in parser.received_frames():
                if frame.opcode is not Opcode.TEXT:
                    yield frame.opcode, frame.payload
                    continue
                message += str(frame.payload)
                if frame.message_finished:
                    yield Opcode.TEXT, json.loads(message)
                    message = ""
            try:
                await self._more()
            except (EOFError, trio.BrokenResourceError):
                return

    async def messages_until_close(self) -> tuple[list[Message], int]:
        """All messages until the server closes, and the code of its close frame."""
        messages: list[Message] = []
        async with aclosing(self.frames()) as frames:
            async for opcode, payload in frames:
                if opcode is Opcode.CLOSE:
                    return messages, int(payload[0])
                if opcode is Opcode.TEXT:
                    messages.append(payload)
        raise AssertionError(f"no close frame after {messages}")

    def reset(self) -> None:
        """Vanish: the server gets a reset."""
        self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()


@asynccontextmanager
async def raw_client(
    server: Server, *, receive_buffer_bytes: int = 0, opened: bool = True
) -> AsyncIterator[RawClient]:
    """A TCP connection, with a small receive buffer where one is asked for."""
    address = urlsplit(server.websocket_url)
    client_socket = trio.socket.socket()
    if receive_buffer_bytes:
        client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    try:
        await client_socket.connect((address.hostname, address.port))
        client = RawClient(trio.SocketStream(client_socket))
        if opened:
            await client.open()
            assert (await client.response()).startswith(b"HTTP/1.1 101 ")
        yield client
    finally:
        client_socket.close()


def client_frame(first_byte: int, payload: bytes) -> bytes:
    """A client's frame with a mask of zeros."""
    length = len(payload)
    if length < 126:
        head = struct.pack("!BB", first_byte, 0x80 | length)
    elif length < 65536:
        head = struct.pack("!BBH", first_byte, 0x80 | 126, length)
    else:
        head = struct.pack("!BBQ", first_byte, 0x80 | 127, length)
    return head + bytes(4) + payload
