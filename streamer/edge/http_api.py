"""The plain HTTP requests that the port of clients serves, and who may send them.

`GET /v1/stream`, `/v1/snapshot` and `/v1/history`. A request is checked in the order of its cost,
and before it takes the place of another client: method, origin, token, query, permissions.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

import attrs
import trio

from streamer.auth.errors import TokenError
from streamer.auth.identity import Identity
from streamer.edge.http_answers import ALLOWED_METHODS, HttpAnswers, HttpError, bad_request
from streamer.edge.http_query import (
    MAX_STREAM_TOPICS,
    HistoryQuery,
    read_history_query,
    read_snapshot_query,
    read_stream_query,
)
from streamer.edge.http_reads import HttpReads
from streamer.edge.http_request import HttpRequest
from streamer.edge.http_stream import StreamRequest, all_forbidden
from streamer.edge.requests import Services
from streamer.edge.websocket import close_lingering
from streamer.protocol.endpoint import HISTORY_PATH, STREAM_PATH
from streamer.protocol.errors import CloseReason, ErrorCode
from streamer.protocol.topics import SubscriptionType, Topic

_RETRY_AFTER_SECONDS: Final = "5"
"""When a client may come back that found no place."""


@attrs.frozen
class ReadRequest:
    """A request for a snapshot or a history that has been checked."""

    http: HttpRequest
    query: tuple[Topic, ...] | HistoryQuery
    """The topics that the client may have, or the history that it asks for."""
    forbidden: tuple[Topic, ...] = ()


class HttpApi:
    """Checks requests, and answers those that are no streams."""

    def __init__(self, services: Services) -> None:
        settings = services.settings
        self._services = services
        self._settings = settings
        self.answers = HttpAnswers(
            settings.allowed_origins,
            heartbeat_interval_seconds=settings.heartbeat_interval_seconds,
        )
        self._max_topics = min(
            settings.max_targets_per_request, settings.max_subscriptions, MAX_STREAM_TOPICS
        )

    async def check(self, request: HttpRequest) -> StreamRequest | ReadRequest:
        """Check a request. Raises HttpError."""
        if request.method != "GET":
            raise HttpError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"only {ALLOWED_METHODS} are served here",
                headers=[("Allow", ALLOWED_METHODS)],
            )
        if request.query_problem is not None:
            raise bad_request(request.query_problem)
        if request.path == STREAM_PATH:
            query = read_stream_query(
                request,
                max_topics=self._max_topics,
                max_book_levels=self._settings.max_book_levels,
            )
            identity = await self._identify(request)
            allowed, forbidden = self._divide(query.topics, identity)
            personal = None if identity is None else Topic(SubscriptionType.USER, identity.user_id)
            return StreamRequest(request, query.wants(allowed, personal), forbidden, identity)
        if request.path == HISTORY_PATH:
            history = read_history_query(request)
            self._divide([history.topic], await self._identify(request))
            return ReadRequest(request, history)
        topics = read_snapshot_query(request, max_topics=self._max_topics)
        allowed, forbidden = self._divide(topics, await self._identify(request))
        return ReadRequest(request, tuple(allowed), tuple(forbidden))

    async def _identify(self, request: HttpRequest) -> Identity | None:
        """Return the user of a request; None for an anonymous client, where that is allowed."""
        if self._settings.auth == "none":
            return None
        if request.token is None:
            if self._settings.auth == "required":
                raise _unauthorized("a token is required here", ErrorCode.FORBIDDEN)
            return None
        try:
            return await self._services.authenticator.authenticate(request.token)
        except TokenError as error:
            raise _unauthorized(error.message, error.code) from None

    def _divide(
        self, topics: Iterable[Topic], identity: Identity | None
    ) -> tuple[list[Topic], list[Topic]]:
        """Divide topics into those that a client may have and the others.

        Raises HttpError (403) if it may have none.
        """
        allowed: list[Topic] = []
        forbidden: list[Topic] = []
        for topic in topics:
            is_allowed = self._services.permissions.decide(identity, topic).is_allowed
            (allowed if is_allowed else forbidden).append(topic)
        if not allowed:
            raise all_forbidden(forbidden)
        return allowed, forbidden

    async def read(self, stream: trio.abc.Stream, request: ReadRequest, address: str) -> None:
        """Answer a request for a snapshot or a history. `address` is as limits count it."""
        reads = HttpReads(self._services, address)
        if isinstance(request.query, HistoryQuery):
            body = await reads.history(request.query)
        else:
            body = await reads.snapshot(request.query, request.forbidden)
        if body is None:
            assert isinstance(request.query, HistoryQuery)
            answer = self.answers.error(request.http, all_forbidden([request.query.topic]))
        else:
            answer = self.answers.json(request.http, body + b"\n")
        await self._send(stream, answer)

    async def refuse(self, stream: trio.abc.Stream, request: HttpRequest, error: HttpError) -> None:
        """Answer a request with an error."""
        await self._send(stream, self.answers.error(request, error))

    async def allow(self, stream: trio.abc.Stream, request: HttpRequest) -> None:
        """Answer OPTIONS, which a browser asks before some requests of a page."""
        await self._send(stream, self.answers.preflight(request))

    async def _send(self, stream: trio.abc.Stream, answer: bytes) -> None:
        with trio.move_on_after(self._settings.handshake_timeout_seconds):
            await stream.send_all(answer)
            await close_lingering(stream)


def not_admitted(status: HTTPStatus, reason: CloseReason) -> HttpError:
    """Make the error for a client that is not served, for the reason of a WebSocket's close."""
    headers = () if status is HTTPStatus.FORBIDDEN else (("Retry-After", _RETRY_AFTER_SECONDS),)
    code = ErrorCode.FORBIDDEN if status is HTTPStatus.FORBIDDEN else ErrorCode.RATE_LIMIT_EXCEEDED
    return HttpError(status, reason.reason, code=code, headers=headers)


def _unauthorized(message: str, code: ErrorCode) -> HttpError:
    return HttpError(
        HTTPStatus.UNAUTHORIZED, message, code=code, headers=[("WWW-Authenticate", "Bearer")]
    )
