"""The opening handshake: RFC 6455, section 4.2, over h11, or a plain HTTP request.

h11 reads the request, so that a plain HTTP request, another path and bytes that are not HTTP are
each answered at once; an ordinary handshake is read without it (`request_head`). wsproto's own
handshake is not used: it refuses a request before its path is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

import attrs
import h11
import trio
from wsproto.utilities import generate_accept_token

from streamer.edge.credentials import (
    SUBPROTOCOL,
    find_token,
    hide_tokens,
    subprotocols,
    without_token,
)
from streamer.edge.extensions import Agreement, Offer, parse_offers
from streamer.edge.forwarded import Forwarding
from streamer.edge.http_request import (
    MAX_PARAMETERS,
    MAX_USER_AGENT_CHARACTERS,
    HttpRequest,
    read_http_request,
)
from streamer.edge.request_head import read_head
from streamer.edge.websocket import close_lingering, read_available, receive_some
from streamer.protocol.endpoint import HTTP_PATHS, WEBSOCKET_PATH

_MAX_REQUEST_BYTES: Final = 16 * 1024
"""Request line and headers, h11's own default: enough for cookies and tokens."""
_TOO_LARGE: Final = 431
"""The status for a request that exceeds this size (RFC 6585, 5)."""
_PATH: Final = WEBSOCKET_PATH.encode()
_IS_TOO_LARGE: Final = "The request is too large."
_KEY_CHARACTERS: Final = 24
"""A Sec-WebSocket-Key is 16 bytes in base64 (RFC 6455, 4.1)."""


class HandshakeFailedError(Exception):
    """The peer did not open a WebSocket.

    `is_refused`: it requested something else and was answered; otherwise it disconnected.
    `forwarding` has the headers that name the client of a request that was refused.
    """

    def __init__(
        self, reason: str, *, is_refused: bool, forwarding: Forwarding | None = None
    ) -> None:
        super().__init__(reason)
        self.is_refused = is_refused
        self.forwarding = forwarding or Forwarding()


@attrs.define
class Request:
    """A client's request to open a WebSocket. Not frozen, as that takes three times as long."""

    query: dict[str, str]
    """The parameters of the URL, without the token."""
    token: str | None = attrs.field(repr=False)
    origin: str | None
    user_agent: str | None
    forwarding: Forwarding
    accept_token: bytes
    has_subprotocol: bool
    """Whether the client offers the subprotocol of this server, which is then selected."""
    extensions: Sequence[Offer]
    """The extensions that the client offers, the best first."""
    trailing: bytes
    """The bytes after the request: the first frames."""

    def accept(self, agreement: Agreement | None = None) -> bytes:
        """The response that opens the connection, with the extension agreed to, if any."""
        extensions = b""
        if agreement is not None:
            extensions = b"Sec-WebSocket-Extensions: %b\r\n" % agreement.response
        selected = f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n" if self.has_subprotocol else ""
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"%b%bSec-WebSocket-Accept: %b\r\n\r\n"
            % (selected.encode(), extensions, self.accept_token)
        )


def receive_nowait(descriptor: int, *, cookie: str | None = None) -> Request | bytes:
    """Read the request of a WebSocket if it has arrived whole; else return the bytes that have.

    `descriptor` is that of a socket without TLS. `cookie` is the name of the cookie that may hold a
    token. Raises HandshakeFailedError if the peer has closed, and trio.BrokenResourceError.
    """
    data = read_available(descriptor)
    if data is None:
        return b""
    if not data:
        raise HandshakeFailedError("closed before the handshake", is_refused=False)
    return _read_ordinary(data, cookie) or data


async def receive_request(
    stream: trio.abc.Stream, descriptor: int, received: bytes = b"", *, cookie: str | None = None
) -> Request | HttpRequest:
    """Read the request; refuse one for which there is nothing here. Callers set a deadline.

    `descriptor` is that of the stream's socket, -1 if it has none. `received` are the bytes that
    `receive_nowait` has returned. `cookie` is the name of the cookie that may hold a token.
    Raises HandshakeFailedError and the errors of the stream.
    """
    data = received
    if not data:
        data = await receive_some(stream, descriptor)
        if not data:
            raise HandshakeFailedError("closed before the handshake", is_refused=False)
        ordinary = _read_ordinary(data, cookie)
        if ordinary is not None:
            return ordinary
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_REQUEST_BYTES)
    headers: dict[bytes, bytes] = {}
    try:
        http.receive_data(data)
        request = await _next_request(http, stream, descriptor)
        headers = _headers(request)
        _check_size(request)
        url = _url(request.target)
        if url.path in HTTP_PATHS:
            return read_http_request(request.method, url.path, url.query, headers, cookie=cookie)
        _check_opening(request, url.path, headers)
        return _upgrade(url.query, headers, bytes(http.trailing_data[0]), cookie)
    except h11.RemoteProtocolError as error:
        # The text of h11's error quotes the line that it refuses, which may have a token in it.
        status = error.error_status_hint
        reason = _IS_TOO_LARGE if status == _TOO_LARGE else "This is not HTTP."
        refused = _Refused(status, reason)
    except _Refused as error:
        refused = error
    await _answer(http, stream, refused)
    raise HandshakeFailedError(
        f"{refused.status}: {refused.reason}",
        is_refused=True,
        forwarding=Forwarding.from_headers(headers),
    )


def _read_ordinary(data: bytes, cookie: str | None) -> Request | None:
    """Read the request of a WebSocket; None if it has to be read by h11, or refused."""
    head = read_head(data)
    if head is None or len(data) - len(head.trailing) > _MAX_REQUEST_BYTES:
        return None
    path, _, query = head.target.partition(b"?")
    if path != _PATH or b"#" in query:
        return None
    try:
        return _upgrade(query.decode("ascii"), head.headers, head.trailing, cookie)
    except _Refused:
        return None


class _Refused(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, status: int, reason: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers


async def _next_request(
    http: h11.Connection, stream: trio.abc.Stream, descriptor: int
) -> h11.Request:
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            data = await receive_some(stream, descriptor)
            if not data:
                raise HandshakeFailedError("closed before the handshake", is_refused=False)
            http.receive_data(data)
        else:
            assert isinstance(event, h11.Request)  # the first event of a server connection
            return event


def _headers(request: h11.Request) -> dict[bytes, bytes]:
    """Return the headers by name, the values of several lines joined by commas."""
    headers: dict[bytes, bytes] = {}
    for name, value in request.headers:
        headers[name] = b"%b, %b" % (headers[name], value) if name in headers else value
    return headers


def _check_size(request: h11.Request) -> None:
    """Refuse a request that is too large: h11 checks that only while parts of it are missing."""
    size = len(request.target) + sum(len(name) + len(value) for name, value in request.headers)
    if size > _MAX_REQUEST_BYTES:
        raise _Refused(_TOO_LARGE, _IS_TOO_LARGE)


def _url(target: bytes) -> SplitResult:
    try:
        return urlsplit(target.decode("ascii"))
    except ValueError:
        raise _Refused(400, "The URL is not valid.") from None


def _check_opening(request: h11.Request, path: str, headers: dict[bytes, bytes]) -> None:
    """Check what an ordinary request has by its form (`request_head`)."""
    if path != WEBSOCKET_PATH:
        raise _Refused(404, f"There is nothing here; the WebSocket is at {WEBSOCKET_PATH}.")
    _check_upgrade(headers)
    if request.method != b"GET" or request.http_version < b"1.1":
        raise _Refused(400, "A WebSocket is opened with GET and HTTP/1.1.")
    # A proxy in between might take what follows for the body, and the server for frames.
    if b"transfer-encoding" in headers or headers.get(b"content-length", b"0").strip(b"0"):
        raise _Refused(400, "A WebSocket is opened without a body.")


def _check_upgrade(headers: dict[bytes, bytes]) -> None:
    if not (
        _names(headers, b"upgrade", b"websocket") and _names(headers, b"connection", b"upgrade")
    ):
        raise _Refused(426, "This is a WebSocket.", [("Upgrade", "websocket")])


def _names(headers: dict[bytes, bytes], name: bytes, token: bytes) -> bool:
    """Whether a header's list has a token, which is given in lower case."""
    value = headers.get(name, b"").lower()
    return value == token or token in map(bytes.strip, value.split(b","))


def _upgrade(
    query_text: str, headers: dict[bytes, bytes], trailing: bytes, cookie: str | None
) -> Request:
    """Make the request of a GET for the path of the WebSocket. Raises _Refused."""
    _check_upgrade(headers)
    if headers.get(b"sec-websocket-version") != b"13":
        raise _Refused(
            426,
            "Version 13 is spoken here.",
            [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")],
        )
    key = headers.get(b"sec-websocket-key", b"")
    if len(key) != _KEY_CHARACTERS:
        raise _Refused(400, "The header Sec-WebSocket-Key is missing or wrong.")
    try:
        extensions = parse_offers(headers.get(b"sec-websocket-extensions", b"").decode("latin-1"))
    except ValueError:
        raise _Refused(400, "The header Sec-WebSocket-Extensions is not valid.") from None
    try:
        query = dict(parse_qsl(query_text, max_num_fields=MAX_PARAMETERS)) if query_text else {}
    except ValueError:
        raise _Refused(400, f"A query has at most {MAX_PARAMETERS} parameters.") from None
    return Request(
        query=without_token(query),
        token=find_token(headers, query, cookie=cookie),
        origin=_text(headers.get(b"origin")),
        user_agent=_text(headers.get(b"user-agent"), MAX_USER_AGENT_CHARACTERS),
        forwarding=Forwarding.from_headers(headers),
        accept_token=generate_accept_token(key),
        has_subprotocol=SUBPROTOCOL in subprotocols(headers),
        extensions=extensions,
        trailing=trailing,
    )


def _text(value: bytes | None, most_characters: int | None = None) -> str | None:
    return None if value is None else hide_tokens(value.decode("latin-1"))[:most_characters]


async def _answer(http: h11.Connection, stream: trio.abc.Stream, refused: _Refused) -> None:
    body = f"{refused.reason}\n".encode()
    response = h11.Response(
        status_code=refused.status,
        headers=[
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close" if not refused.headers else "close, Upgrade"),
            *refused.headers,
        ],
    )
    # Not by h11: it would refuse a body in the answer to HEAD, and the connection ends here anyway.
    await stream.send_all((http.send(response) or b"") + body)
    # A client that sends too much may still be sending: closing now would reset the connection
    # before it reads the answer.
    await close_lingering(stream)
