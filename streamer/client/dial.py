"""Connect to a server by TCP, TLS and the WebSocket handshake, and close all three.

Whatever fails (a certificate, the handshake, a deadline), the socket is closed, and the error names
the reason.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import attrs
import trio

from streamer.client.endings import ABNORMAL, Ending
from streamer.client.errors import ConnectError
from streamer.client.tokens import TokenSource
from streamer.client.websocket import (
    HandshakeRejectedError,
    WebSocket,
    WebSocketClosedError,
    open_websocket,
)

_RETRIED_STATUSES: Final = frozenset({408, 425, 429})
"""HTTP client errors that may pass (RFC 9110, 8470, 6585); others do not."""


_Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]
Converse = Callable[[WebSocket], Awaitable[Ending]]


@attrs.frozen(kw_only=True)
class Dialer:
    """Opens connections to one URL."""

    url: str
    tokens: TokenSource
    """Asked for each connection; a token is sent in the header Authorization."""
    ssl_context: ssl.SSLContext | None
    """None: ssl's default context, for a URL with wss."""
    compress: bool
    """Whether to offer permessage-deflate."""
    max_message_bytes: int
    connect_timeout_seconds: float
    close_timeout_seconds: float

    async def call(self, converse: Converse) -> Ending:
        """Connect, run `converse` with the connection, and close it.

        Returns how the connection ended, or why none could be made.
        """
        try:
            token = await self.tokens.get()
        except Exception as error:  # noqa: BLE001 - of the function of the application
            return Ending(ABNORMAL, f"no token: {error!r}")
        try:
            with trio.fail_after(self.connect_timeout_seconds):
                stream = await self._open_stream()
        except trio.TooSlowError:
            return self._silence
        except (OSError, trio.BrokenResourceError) as error:
            return Ending(ABNORMAL, _reason(error))
        try:
            return await self._use(stream, token, converse)
        finally:
            await trio.aclose_forcefully(stream)

    @property
    def _silence(self) -> Ending:
        return Ending(ABNORMAL, f"no answer within {self.connect_timeout_seconds:g} s")

    async def _open_stream(self) -> _Stream:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        secure = parts.scheme == "wss"
        port = parts.port or (443 if secure else 80)
        stream = await trio.open_tcp_stream(parts.hostname, port)
        if not secure:
            return stream
        context = self.ssl_context or ssl.create_default_context()
        try:
            secured = trio.SSLStream(
                stream, context, server_hostname=parts.hostname, https_compatible=True
            )
            await secured.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return secured

    async def _use(self, stream: _Stream, token: str | None, converse: Converse) -> Ending:
        parts = urlsplit(self.url)
        try:
            with trio.fail_after(self.connect_timeout_seconds):
                socket = await open_websocket(
                    stream,
                    parts.netloc.rpartition("@")[2],
                    urlunsplit(("", "", parts.path or "/", parts.query, "")),
                    token=token,
                    compress=self.compress,
                    max_message_bytes=self.max_message_bytes,
                )
        except trio.TooSlowError:
            return self._silence
        except HandshakeRejectedError as rejected:
            return _rejection(rejected.status)
        except WebSocketClosedError as closed:
            return Ending.of(closed)
        ending = await converse(socket)
        with trio.move_on_after(self.close_timeout_seconds):
            await socket.aclose()
        return ending


def _rejection(status: int) -> Ending:
    problem = f"HTTP status {status}"
    final = 400 <= status < 500 and status not in _RETRIED_STATUSES
    return Ending(ABNORMAL, problem, ConnectError(problem) if final else None)


def _reason(error: BaseException) -> str:
    """Return the text of the first cause; the groups around it list all attempts of trio."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            cause: BaseException | None = error.exceptions[0]
        else:
            cause = error.__cause__
        if cause is None:
            if isinstance(error, ConnectionError) and error.errno is not None:
                return os.strerror(error.errno)
            return str(error)
        error = cause
