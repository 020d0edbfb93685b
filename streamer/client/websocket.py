"""A WebSocket on the client's side: wsproto over a trio stream.

trio-websocket has no way to offer an extension, so that nothing would be compressed; wsproto itself
implements permessage-deflate (RFC 7692).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

_RECEIVE_BYTES: Final = 65536
_NORMAL: Final = 1000
_PROTOCOL_ERROR: Final = 1002
_ABNORMAL: Final = 1006
_TOO_LARGE: Final = 1009


class WebSocketClosedError(Exception):
    """The connection has ended, with a close frame or (code 1006) without."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"closed with {code} {reason}")
        self.code = code
        self.reason = reason


class HandshakeRejectedError(Exception):
    """The server answered the handshake with an HTTP status other than 101."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status


class WebSocket:
    """An open connection. One task receives; any may send."""

    def __init__(
        self, stream: trio.abc.Stream, connection: WSConnection, max_message_bytes: int
    ) -> None:
        self._stream = stream
        self._connection = connection
        self._max_message_bytes = max_message_bytes
        self._sending = trio.Lock()
        self.is_cut = False
        """Whether a frame has been written in part: nothing may follow it."""
        self.reads = 0
        """How often bytes have been received."""
        self._parts: list[str | bytes] = []
        self._size = 0
        """The parts of a message so far, and their length."""
        self._received: deque[str | bytes] = deque()
        self._pings: deque[tuple[bytes, trio.Event]] = deque()
        self._pings_sent = 0
        self._closed: WebSocketClosedError | None = None

    async def get_message(self) -> str | bytes:
        """Wait for the next message, text or binary. Pings are answered.

        Not a checkpoint if one has already arrived. Raises WebSocketClosedError.
        """
        while not self._received:
            if self._closed is not None:
                raise self._closed
            await self._receive()
        return self._received.popleft()

    async def send_message(self, text: str) -> None:
        """Send a text message. Raises WebSocketClosedError."""
        await self._send(TextMessage(data=text))

    async def ping(self) -> None:
        """Send a ping and wait for its pong, which the receiving task reads."""
        self._pings_sent += 1
        payload = b"%d" % self._pings_sent
        answered = trio.Event()
        self._pings.append((payload, answered))
        await self._send(Ping(payload=payload))
        await answered.wait()
        if self._closed is not None:
            raise self._closed

    async def aclose(self, code: int = _NORMAL, reason: str = "") -> None:
        """Send a close frame and wait for the peer's. Callers set a deadline."""
        if self._connection.state is ConnectionState.OPEN and self._closed is None:
            try:
                await self._send(CloseConnection(code=code, reason=reason))
            except WebSocketClosedError:
                return
            while self._closed is None:
                await self._receive()

    # Sending

    async def _send(self, event: Event) -> None:
        async with self._sending:
            if self._closed is not None or self.is_cut:
                raise self._closed or WebSocketClosedError(_ABNORMAL, "")
            try:
                data = self._connection.send(event)
            except LocalProtocolError:  # the closing handshake has begun
                raise WebSocketClosedError(_NORMAL, "closing") from None
            self.is_cut = True
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise self._end(_ABNORMAL, "") from None
            self.is_cut = False

    # Receiving

    async def _receive(self) -> None:
        """Read bytes, and take all messages and control frames in them."""
        try:
            data = bytes(await self._stream.receive_some(_RECEIVE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            self._end(_ABNORMAL, "")
            return
        self.reads += 1
        try:
            self._connection.receive_data(data)
            await self._take_events()
        except RemoteProtocolError as error:
            await self._fail(_PROTOCOL_ERROR, str(error))

    async def _take_events(self) -> None:
        for event in self._connection.events():
            match event:
                case TextMessage() | BytesMessage():
                    self._parts.append(_plain(event.data))
                    self._size += len(event.data)
                    if self._size > self._max_message_bytes:
                        await self._fail(_TOO_LARGE, "message too large")
                        return
                    if event.message_finished:
                        self._finish_message()
                case Ping():
                    await self._answer(event.response())
                case Pong():
                    self._on_pong(bytes(event.payload))
                case CloseConnection():
                    if self._connection.state is ConnectionState.REMOTE_CLOSING:
                        await self._answer(event.response())
                        self._end(event.code, event.reason or "")
                    elif self._connection.state is ConnectionState.CLOSED:
                        self._end(event.code, event.reason or "")
                    else:  # wsproto reports bytes that are not WebSocket in this way
                        await self._fail(event.code, event.reason or "")
                    return

    def _finish_message(self) -> None:
        parts = self._parts
        if len(parts) == 1:
            self._received.append(parts[0])
        elif isinstance(parts[0], str):
            self._received.append("".join(part for part in parts if isinstance(part, str)))
        else:
            self._received.append(b"".join(part for part in parts if isinstance(part, bytes)))
        self._parts, self._size = [], 0

    def _on_pong(self, payload: bytes) -> None:
        """A pong answers its ping and those before it (RFC 6455, 5.5.3)."""
        if payload in (sent for sent, _ in self._pings):
            while self._pings:
                sent, answered = self._pings.popleft()
                answered.set()
                if sent == payload:
                    return

    async def _answer(self, event: Event) -> None:
        # After this side's close frame, nothing may be sent (RFC 6455, 5.5.1).
        if self._connection.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            # A connection that has ended is reported to the receiver, after the messages before.
            with suppress(WebSocketClosedError):
                await self._send(event)

    async def _fail(self, code: int, reason: str) -> None:
        """End the connection for what the peer has sent."""
        await self._answer(CloseConnection(code=code, reason=reason[:100]))
        self._end(code, reason)

    def _end(self, code: int, reason: str) -> WebSocketClosedError:
        if self._closed is None:
            self._closed = WebSocketClosedError(code, reason)
            for _, answered in self._pings:
                answered.set()
        return self._closed


async def open_websocket(
    stream: trio.abc.Stream,
    host: str,
    target: str,
    *,
    token: str | None = None,
    compress: bool,
    max_message_bytes: int,
) -> WebSocket:
    """Carry out the handshake on a connected stream. Callers set a deadline.

    `token` is sent in the header Authorization: a URL ends in logs. With `compress`,
    permessage-deflate is offered. Raises HandshakeRejectedError, and
    WebSocketClosedError if the connection ends first or the answer is not HTTP.
    """
    connection = WSConnection(ConnectionType.CLIENT)
    extensions: Sequence[Extension] = [PerMessageDeflate()] if compress else []
    headers = [] if token is None else [(b"Authorization", f"Bearer {token}".encode())]
    request = Request(host=host, target=target, extensions=list(extensions), extra_headers=headers)
    socket = WebSocket(stream, connection, max_message_bytes)
    try:
        await stream.send_all(connection.send(request))
        while True:
            data = bytes(await stream.receive_some(_RECEIVE_BYTES))
            connection.receive_data(data or None)
            for event in connection.events():
                match event:
                    case AcceptConnection():
                        # Frames that came with the answer are read before any others.
                        await socket._take_events()  # noqa: SLF001
                        return socket
                    case RejectConnection():
                        raise HandshakeRejectedError(event.status_code)
                    case RejectData():
                        pass
                    case _:
                        raise WebSocketClosedError(_ABNORMAL, "closed during the handshake")
            if not data:
                raise WebSocketClosedError(_ABNORMAL, "closed during the handshake")
    except RemoteProtocolError as error:
        raise WebSocketClosedError(_ABNORMAL, str(error)) from None
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise WebSocketClosedError(_ABNORMAL, "closed during the handshake") from None


def _plain(data: str | bytes | bytearray) -> str | bytes:
    return data if isinstance(data, str) else bytes(data)
