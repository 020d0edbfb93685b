"""Carries out the requests of the operator's API: asks all processes, and adds up what they did."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import attrs
import cattrs
import structlog

from streamer.admin.models import (
    ApiError,
    ConnectionRow,
    ConnectionsPage,
    ConnectionsRequest,
    DisconnectRequest,
    ExplainRequest,
    Explanation,
    Info,
    InfoRequest,
    ProcessInfo,
    Published,
    PublishRequest,
    Reached,
    Revoked,
    RevokeRequest,
    TopicRow,
    TopicSort,
    TopicsPage,
    TopicsRequest,
)
from streamer.auth.authenticator import Authenticator
from streamer.auth.errors import TokenError
from streamer.auth.identity import Identity
from streamer.auth.permissions import Permissions
from streamer.bounded_log import BoundedLog
from streamer.config import Settings
from streamer.control.actions import RevokeOrder, page_of, topics_page
from streamer.control.channel import Answers, ControlChannel
from streamer.control.pages import Place, cursor_of
from streamer.control.revocations import Revocation
from streamer.protocol.codec import CONVERTER, utc_timestamp
from streamer.protocol.topics import Topic
from streamer.urls import redact

_MAX_AHEAD_SECONDS: Final = 300
"""How far `issued_before` may be ahead: clocks differ, but a revocation is no ban."""

Row = TypeVar("Row", ConnectionRow, TopicRow)
T = TypeVar("T")

log = structlog.get_logger()


class OperatorPublishing(Protocol):
    """Publishes for the operator (`streamer.control.publishing`)."""

    async def publish(self, request: PublishRequest, text: bytes) -> Published:
        """Publish a message, given as JSON. Raises ApiError."""

    async def publishers(self, topics: Sequence[str]) -> Mapping[str, str]:
        """Return the process that published last, for each topic for which that is known."""


class Revoking(Protocol):
    """Keeps revocations (`streamer.control.revocations.RevocationSync`)."""

    async def keep(self, text: bytes, until_seconds: float) -> str | None:
        """Keep a revocation for all processes; return why that failed. Raises ApiError."""


class Operator:
    """Carries requests out; its `carry_out` is that of the API."""

    def __init__(
        self,
        channel: ControlChannel,
        publishing: OperatorPublishing,
        revoking: Revoking,
        authenticator: Authenticator,
        settings: Settings,
        *,
        version: str,
    ) -> None:
        self._revoking = revoking
        self._authenticator = authenticator
        self._permissions = Permissions(settings)
        self._version = version
        self._warn = BoundedLog(log.warning)
        self._channel = channel
        self._publishing = publishing
        self._settings = settings
        self._by_type: Mapping[type[Any], Callable[[Any], Awaitable[Any]]] = {
            DisconnectRequest: self._disconnect,
            RevokeRequest: self._revoke,
            ExplainRequest: self._explain,
            ConnectionsRequest: self._connections,
            TopicsRequest: self._topics,
            InfoRequest: self._info,
        }

    async def carry_out(self, request: Any, members: Mapping[str, str]) -> Any:
        """Return the answer to a request; `members` are the texts of its members, with their names.

        Raises ApiError.
        """
        if isinstance(request, PublishRequest):
            text = members["message"].partition(":")[2].strip()
            return await self._publishing.publish(request, text.encode())
        return await self._by_type[type(request)](request)

    async def _disconnect(self, request: DisconnectRequest) -> Reached:
        answers = await self._ask("disconnect", request)
        reached = Reached(
            count=sum(_count(answer) for answer in answers.results.values()),
            processes=answers.processes,
            answered=len(answers.results),
        )
        return _unless_alone(answers, reached)

    async def _revoke(self, request: RevokeRequest) -> Revoked:
        now = time.time()
        issued_before = request.issued_before
        if request.user is not None and issued_before is None:
            issued_before = now
        if issued_before is not None and issued_before > now + _MAX_AHEAD_SECONDS:
            problem = f"more than {_MAX_AHEAD_SECONDS} s ahead of this server's clock"
            raise ApiError(422, f"issued_before: {problem}", fields={"issued_before": problem})
        settings = self._settings
        kept_seconds = settings.auth_revocation_seconds + settings.auth_leeway_seconds
        until = (now if issued_before is None else issued_before) + kept_seconds
        if until <= now:
            problem = "longer ago than any token lives (auth_revocation_seconds)"
            raise ApiError(422, f"issued_before: {problem}", fields={"issued_before": problem})
        text = Revocation(request.user, issued_before, request.jti).to_text()
        unkept = await self._revoking.keep(text, until)
        order = RevokeOrder(revocation=text.decode(), until_seconds=until)
        answers = await self._ask("revoke", order)
        revoked = Revoked(
            count=sum(_count(answer) for answer in answers.results.values()),
            processes=answers.processes,
            answered=len(answers.results),
            kept_until=utc_timestamp(datetime.fromtimestamp(until, UTC)),
        )
        return _unless_alone(attrs.evolve(answers, problem=unkept or answers.problem), revoked)

    async def _explain(self, request: ExplainRequest) -> Explanation:
        identity = None if request.user is None else Identity(request.user)
        if request.token is not None:
            try:
                identity = await self._authenticator.authenticate(request.token)
            except TokenError as error:
                raise ApiError(
                    422, f"token: {error.message}", fields={"token": error.message}
                ) from None
        decision = self._permissions.decide(identity, Topic.parse(request.topic))
        return Explanation(
            topic=request.topic,
            user=None if identity is None else identity.user_id,
            allowed=decision.is_allowed,
            rule=decision.rule,
        )

    async def _connections(self, request: ConnectionsRequest) -> ConnectionsPage:
        page = page_of(request)  # refuses a wrong cursor before anything is asked
        answers = await self._ask("connections", request)
        column = attrgetter(request.sort.value)

        def place_of(row: ConnectionRow) -> Place:
            return column(row), row.session, row.process

        rows = [row for found in self._rows(answers, ConnectionRow).values() for row in found]
        shown = page.cut(rows, place_of)
        total = sum(_count(answer, "total") for answer in answers.results.values())
        has_more = len(rows) > len(shown) or any(
            len(found) == request.limit for found in self._rows(answers, ConnectionRow).values()
        )
        found = ConnectionsPage(
            total=total,
            processes=answers.processes,
            answered=len(answers.results),
            connections=shown,
            next=cursor_of(place_of(shown[-1])) if shown and has_more else None,
        )
        return _unless_alone(answers, found)

    async def _topics(self, request: TopicsRequest) -> TopicsPage:
        page = topics_page(request)
        answers = await self._ask("topics", request)
        merged: dict[str, TopicRow] = {}
        for rows in self._rows(answers, TopicRow).values():
            for row in rows:
                known = merged.get(row.topic)
                merged[row.topic] = row if known is None else _merge(known, row)

        def place_of(row: TopicRow) -> Place:
            match request.sort:
                case TopicSort.TOPIC:
                    return (row.topic,)
                case TopicSort.SUBSCRIBERS:
                    return -row.subscribers, row.topic
                case TopicSort.RATE:
                    return -(row.rate or 0.0), row.topic

        shown = page.cut(merged.values(), place_of)
        positioned = [row.topic for row in shown if row.producer == "positioned"]
        publishers = await self._publishing.publishers(positioned) if positioned else {}
        shown = [attrs.evolve(row, publisher=publishers.get(row.topic)) for row in shown]
        is_last = len(shown) < request.limit
        found = TopicsPage(
            processes=answers.processes,
            answered=len(answers.results),
            topics=shown,
            next=None if is_last else cursor_of(place_of(shown[-1])),
        )
        return _unless_alone(answers, found)

    async def _info(self, request: InfoRequest) -> Info:
        answers = await self._ask("info", request)
        info = Info(
            version=self._version,
            processes=answers.processes,
            answered=len(answers.results),
            servers=sorted(
                self._servers(answers), key=lambda server: (server.started_at, server.process)
            ),
            settings={name: _shown(value) for name, value in attrs.asdict(self._settings).items()},
        )
        return _unless_alone(answers, info)

    def _servers(self, answers: Answers) -> Iterator[ProcessInfo]:
        """Yield the processes, without those of another version that describe themselves anew."""
        for process, answer in answers.results.items():
            try:
                yield CONVERTER.structure(answer, ProcessInfo)
            except cattrs.BaseValidationError as error:
                self._warn(
                    "info", "a process is not understood", process=process, reason=str(error)
                )

    async def _ask(self, action: str, request: Any) -> Answers:
        return await self._channel.ask(action, CONVERTER.unstructure(request))

    def _rows(self, answers: Answers, model: type[Row]) -> dict[str, list[Row]]:
        """Return the rows of each process, without those of another version that do not fit."""
        rows = {}
        for process, answer in answers.results.items():
            try:
                rows[process] = [CONVERTER.structure(row, model) for row in answer.get("rows", ())]
            except (cattrs.BaseValidationError, TypeError) as error:
                self._warn(
                    "rows", "rows of a process not understood", process=process, reason=str(error)
                )
        return rows


def _count(answer: Mapping[str, Any], name: str = "count") -> int:
    value = answer.get(name)
    return value if isinstance(value, int) else 0


def _merge(one: TopicRow, other: TopicRow) -> TopicRow:
    """Return what two processes know of a topic as one row."""
    # Processes that give positions of their own have epochs of their own: the busier one is shown.
    first, second = sorted((one, other), key=lambda row: row.sequence, reverse=True)
    return attrs.evolve(
        first,
        subscribers=one.subscribers + other.subscribers,
        producer=first.producer or second.producer,
        rate=max((row.rate for row in (one, other) if row.rate is not None), default=None),
        last_message_at=max(
            (row.last_message_at for row in (one, other) if row.last_message_at is not None),
            default=None,
        ),
    )


def _shown(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return redact(value) if isinstance(value, str) else value


def _unless_alone(answers: Answers, done: T) -> T:
    """Return what was done. Raises ApiError (503) with it if no other process could be asked."""
    if answers.problem is not None:
        message = f"Redis cannot be asked, so that only this process acted: {answers.problem}"
        raise ApiError(503, message, done=CONVERTER.unstructure(done))
    return done
