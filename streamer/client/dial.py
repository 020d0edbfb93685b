"""Connect to a server by TCP, TLS and the WebSocket handshake, and close all three.

`trio_websocket.open_websocket_url` is not used: it leaves the socket open when a certificate, the
handshake or a deadline fails, and reports a wrong certificate as a timeout.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import attrs
import trio
import trio_websocket
from wsproto.utilities import LocalProtocolError

from streamer.client.endings import ABNORMAL, Ending
from streamer.client.errors import ConnectError

_RECEIVE_BYTES: Final = 65536
"""Bytes per read: with trio-websocket's default of 4 KiB, one batch takes many reads."""
_RETRIED_STATUSES: Final = frozenset({408, 425, 429})
"""HTTP client errors that may pass (RFC 9110, 8470, 6585); others do not."""


_Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]
Converse = Callable[[trio_websocket.WebSocketConnection], Awaitable[Ending]]
Token = str | Callable[[], Awaitable[str]]


@attrs.frozen(kw_only=True)
class Dialer:
    """Opens connections to one URL."""

    url: str
    token: Token | None = attrs.field(repr=False)
    """A token, or a function that returns one and is called for each connection."""
    ssl_context: ssl.SSLContext | None
    """None: ssl's default context, for a URL with wss."""
    max_message_bytes: int
    connect_timeout_seconds: float
    close_timeout_seconds: float

    async def call(self, converse: Converse) -> Ending:
        """Connect, run `converse` with the connection, and close it.

        Returns how the connection ended, or why none could be made.
        """
        token = await self.token() if callable(self.token) else self.token
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
        query = parse_qsl(parts.query) + ([] if token is None else [("token", token)])
        ending = self._silence
        try:
            async with trio.open_nursery() as nursery:
                with trio.move_on_after(self.connect_timeout_seconds) as patience:
                    socket = await trio_websocket.wrap_client_stream(
                        nursery,
                        stream,
                        parts.netloc.rpartition("@")[2],
                        urlunsplit(("", "", parts.path or "/", urlencode(query), "")),
                        max_message_size=self.max_message_bytes,
                        receive_buffer_size=_RECEIVE_BYTES,
                    )
                if not patience.cancelled_caught:
                    ending = await converse(socket)
                    with trio.move_on_after(self.close_timeout_seconds):
                        await socket.aclose()
                nursery.cancel_scope.cancel()
        except* trio_websocket.ConnectionRejected as group:
            (rejected,) = group.exceptions
            assert isinstance(rejected, trio_websocket.ConnectionRejected)
            ending = _rejection(rejected.status_code)
        except* LocalProtocolError:
            # trio-websocket answers each ping, but after its own close frame it must not (RFC 6455,
            # 5.5.1): wsproto raises this in its reader if a ping follows the unread data.
            pass
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
