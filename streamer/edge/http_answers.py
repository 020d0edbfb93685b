"""Answers to plain HTTP requests: their heads, their errors, and CORS.

Every connection ends with its answer (`Connection: close`). Bodies that end have a Content-Length;
a stream of events ends with the connection. It is not chunked: chunks are not allowed in answers to
HTTP/1.0, which nginx speaks to its upstreams by default, and an event stream needs no mark of its
end, since its last event says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import orjson

from streamer.edge.http_request import HttpRequest
from streamer.origins import OriginRules
from streamer.protocol.errors import ErrorCode

ALLOWED_METHODS: Final = "GET, OPTIONS"

_MAX_PREFLIGHT_AGE_SECONDS: Final = 600
"""How long a browser may keep the answer to a preflight: ten minutes."""

HEARTBEAT_HEADER: Final = "Heartbeat-Interval"
"""The seconds between the comments of a stream, so that a client knows what silence means."""

_NOT_STORED: Final = ("Cache-Control", "no-store")

_EVENT_STREAM_HEADERS: Final = (
    ("Content-Type", "text/event-stream; charset=utf-8"),
    # no-transform: a proxy that compresses also buffers.
    ("Cache-Control", "no-cache, no-transform"),
    ("X-Accel-Buffering", "no"),  # nginx would wait for a full buffer
)

Headers = Sequence[tuple[str, str]]


class HttpError(Exception):
    """A request that is answered with an error; its body is JSON like an `error` message."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        code: ErrorCode = ErrorCode.INVALID_MESSAGE,
        details: Mapping[str, Any] | None = None,
        headers: Headers = (),
    ) -> None:
        """`message` is for people; it must not contain a token."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.details = details
        self.headers = headers

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        return body if self.details is None else body | {"details": self.details}


def bad_request(
    message: str,
    *,
    code: ErrorCode = ErrorCode.INVALID_MESSAGE,
    details: Mapping[str, Any] | None = None,
) -> HttpError:
    """Make an error for a request that is wrong in itself."""
    return HttpError(HTTPStatus.BAD_REQUEST, message, code=code, details=details)


class HttpAnswers:
    """Makes the bytes of answers, with the headers that let web pages read them (CORS).

    With allowed origins, a page of such an origin may read answers and send its cookies. Without,
    any page may read them, but no browser sends cookies with its request.
    """

    def __init__(
        self, allowed_origins: Sequence[str], *, heartbeat_interval_seconds: float
    ) -> None:
        """`allowed_origins` are normalized; none: any origin is allowed."""
        self._is_open = not allowed_origins
        self._origins = OriginRules(allowed_origins)
        self._heartbeat_interval_seconds = heartbeat_interval_seconds

    def _cors(self, request: HttpRequest) -> Headers:
        if self._is_open:
            return [("Access-Control-Allow-Origin", "*")]
        vary = ("Vary", "Origin")
        if request.origin is None or not self._origins.allow(request.origin):
            return [vary]
        return [
            ("Access-Control-Allow-Origin", request.origin),
            ("Access-Control-Allow-Credentials", "true"),
            vary,
        ]

    def json(
        self,
        request: HttpRequest,
        body: bytes,
        status: HTTPStatus = HTTPStatus.OK,
        headers: Headers = (),
    ) -> bytes:
        """Return a whole answer with a JSON body."""
        head = self._head(
            request,
            status,
            [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                _NOT_STORED,
                *headers,
            ],
        )
        return head if request.method == "HEAD" else head + body

    def error(self, request: HttpRequest, error: HttpError) -> bytes:
        """Return the whole answer for an error."""
        body = orjson.dumps(error.body, option=orjson.OPT_APPEND_NEWLINE)
        return self.json(request, body, error.status, error.headers)

    def preflight(self, request: HttpRequest) -> bytes:
        """Return the answer to OPTIONS: what a page of another origin may send."""
        return self._head(
            request,
            HTTPStatus.NO_CONTENT,
            [
                ("Allow", ALLOWED_METHODS),
                ("Access-Control-Allow-Methods", "GET"),
                ("Access-Control-Allow-Headers", "Authorization, Last-Event-ID, Cache-Control"),
                ("Access-Control-Max-Age", str(_MAX_PREFLIGHT_AGE_SECONDS)),
            ],
        )

    def event_stream(self, request: HttpRequest) -> bytes:
        """Return the head of a stream of events.

        The interval is in a header, which pages have to be allowed to read: the first event has
        always been `subscribed`.
        """
        heartbeat = (
            (HEARTBEAT_HEADER, f"{self._heartbeat_interval_seconds:g}"),
            ("Access-Control-Expose-Headers", HEARTBEAT_HEADER),
        )
        return self._head(request, HTTPStatus.OK, (*_EVENT_STREAM_HEADERS, *heartbeat))

    def _head(self, request: HttpRequest, status: HTTPStatus, headers: Headers) -> bytes:
        lines = [f"HTTP/1.1 {status.value} {status.phrase}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (*headers, *self._cors(request))]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
