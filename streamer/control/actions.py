"""Actions of one server process for the operator, whichever process was asked."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import attrs
import orjson
import trio

from streamer.admin.models import (
    MAX_SHOWN_TOPICS,
    ApiError,
    ConnectionRow,
    ConnectionsRequest,
    ConnectionState,
    DisconnectRequest,
    ProcessInfo,
    TopicRow,
    TopicSort,
    TopicsRequest,
    structure,
)
from streamer.config import Settings
from streamer.control.activity import TopicActivity
from streamer.control.pages import Page, Place
from streamer.control.revocations import Revocation, Revocations
from streamer.edge.served import Served
from streamer.edge.session_ids import short_hash
from streamer.hub.hub import Hub
from streamer.hub.streams import TopicStream
from streamer.protocol.codec import CONVERTER
from streamer.protocol.errors import DISCONNECTED, INVALID_TOKEN, ErrorCode
from streamer.protocol.json_text import loads
from streamer.protocol.messages import Disconnected, Error
from streamer.protocol.topics import Topic

MAX_TOPICS: Final = 10_000
"""Topics that a process names where they are sorted over all processes: about 2 MB."""

_PER_TURN: Final = 100
"""Connections or topics looked at before other tasks have a turn."""


@attrs.frozen
class Here:
    """This process, as the actions use it."""

    process_id: str
    settings: Settings
    sessions: Mapping[str, Served]
    hub: Hub
    activity: TopicActivity
    revocations: Revocations
    is_positioned: Callable[[Topic], bool | None]
    """Whether the producers of a topic give positions; None where that is not known."""
    info: Callable[[], ProcessInfo]


@attrs.frozen(kw_only=True)
class RevokeOrder:
    """A revocation, as processes pass it on."""

    revocation: str
    """As `Revocation.to_text` writes it."""
    until_seconds: float
    """Until when it is kept: seconds since 1970."""


class Actions:
    """Carries out actions by name: an `Act` of the control channel."""

    def __init__(self, here: Here) -> None:
        self._here = here
        self._by_name: Mapping[str, Callable[[Any], Awaitable[Mapping[str, Any]]]] = {
            "disconnect": self._disconnect,
            "revoke": self._revoke,
            "connections": self._connections,
            "topics": self._topics,
            "info": self._info,
        }

    async def __call__(self, action: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Carry out an action. Raises ValueError for one that is not valid."""
        method = self._by_name.get(action)
        if method is None:
            raise ValueError(f"no action {action[:80]!r}; this process may be of another version")
        try:
            return await method(arguments)
        except ApiError as error:
            raise ValueError(str(error)) from None

    # Connections

    async def _disconnect(self, arguments: Any) -> Mapping[str, Any]:
        """Close the connections that are meant; return their count."""
        request = structure(DisconnectRequest, arguments)
        count = 0
        meant = [session async for session in self._meant(request)]
        for session in meant:
            if session.is_ending:
                continue
            retry_after_ms = request.retry_after_ms
            if retry_after_ms is None and request.reconnect:
                retry_after_ms = self._spread_ms(len(meant))
            farewell = Disconnected(request.reason, request.reconnect, retry_after_ms)
            session.end(DISCONNECTED, farewell)
            count += 1
            if count % _PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        return {"count": count}

    def _spread_ms(self, count: int) -> int:
        """Return when a client may come back: as for a drain, spread by how many there are."""
        settings = self._here.settings
        spread_ms = settings.drain_spread_ms_per_client * count
        return round(settings.drain_min_retry_ms + random.uniform(0, spread_ms))  # noqa: S311

    async def _revoke(self, arguments: Any) -> Mapping[str, Any]:
        """Take a revocation, and close the connections whose tokens it is about."""
        order = structure(RevokeOrder, arguments)
        revocation = Revocation.from_text(order.revocation.encode())
        self._here.revocations.add(revocation, order.until_seconds)
        return {"count": await self.close_revoked()}

    async def close_revoked(self) -> int:
        """Close all connections whose tokens were revoked; return how many."""
        count = 0
        for number, session in enumerate(tuple(self._here.sessions.values()), 1):
            if number % _PER_TURN == 0:
                await trio.lowlevel.checkpoint()
            identity = session.identity
            if identity is None or session.is_ending:
                continue
            if self._here.revocations.is_revoked(identity):
                problem = Error(ErrorCode.INVALID_TOKEN, "the token was revoked")
                session.end(INVALID_TOKEN, problem)
                count += 1
        return count

    async def _meant(
        self, request: DisconnectRequest | ConnectionsRequest
    ) -> AsyncIterator[Served]:
        """Yield the sessions of a user, or that hold a topic, or with a hash."""
        wanted_session = getattr(request, "session", None)
        stream = None
        if request.topic is not None:
            stream = self._here.hub.streams.get(Topic.parse(request.topic))
            if stream is None:
                return
        for number, session in enumerate(tuple(self._here.sessions.values()), 1):
            if number % _PER_TURN == 0:
                await trio.lowlevel.checkpoint()
            if (
                (wanted_session is None or short_hash(session.session_id) == wanted_session)
                and (request.user is None or session.outbox.user_id == request.user)
                and (stream is None or stream in session.outbox.subscriptions)
            ):
                yield session

    async def _connections(self, arguments: Any) -> Mapping[str, Any]:
        """Return a page of the connections that fit, and the count of all."""
        request = structure(ConnectionsRequest, arguments)
        fitting: list[tuple[Place, Served]] = []
        async for session in self._meant(request):
            if request.address is not None and session.remote_address != request.address:
                continue
            if request.state is not None and _state(session) is not request.state:
                continue
            fitting.append((self._place(request, session), session))
        rows = page_of(request).cut(fitting, lambda one: one[0])
        return {
            "total": len(fitting),
            "rows": [CONVERTER.unstructure(self._row(session)) for _, session in rows],
        }

    def _place(self, request: ConnectionsRequest, session: Served) -> Place:
        value: str | float
        match request.sort.value:
            case "address":
                value = session.remote_address
            case "subscriptions":
                value = len(session.outbox.subscriptions)
            case "messages_received":
                value = session.messages_received
            case "queued":
                value = session.outbox.statistics().queued
            case _:
                value = session.connected_at
        return value, short_hash(session.session_id), self._here.process_id

    def _row(self, session: Served) -> ConnectionRow:
        info = session.info()
        return ConnectionRow(
            process=self._here.process_id,
            session=info.session,
            user=session.outbox.user_id,
            address=info.remote_address,
            user_agent=info.user_agent,
            state=_state(session),
            connected_at=info.connected_at,
            idle_seconds=info.idle_seconds,
            subscriptions=len(info.subscriptions),
            topics=info.subscriptions[:MAX_SHOWN_TOPICS],
            messages_received=info.messages_received,
            delivered=info.outbox.delivered,
            queued=info.outbox.queued,
        )

    # Topics

    async def _topics(self, arguments: Any) -> Mapping[str, Any]:
        """Return the topics that fit: a page by name, or all to be sorted over all processes."""
        request = structure(TopicsRequest, arguments)
        by_name = request.sort is TopicSort.TOPIC
        rows: list[TopicRow] = []
        names: list[tuple[str, TopicStream]] = []
        for number, (topic, stream) in enumerate(tuple(self._here.hub.streams.items()), 1):
            if number % _PER_TURN == 0:
                await trio.lowlevel.checkpoint()
            if (
                request.subscription_type is None
                or topic.subscription_type is request.subscription_type
            ) and (request.topic is None or str(topic) == request.topic):
                names.append((str(topic), stream))
        if by_name:
            names = topics_page(request).cut(names, lambda one: (one[0],))
        else:
            names.sort(key=lambda one: one[1].subscriptions, reverse=True)
        for number, (name, stream) in enumerate(names[:MAX_TOPICS], 1):
            rows.append(self._topic_row(name, stream))
            if number % _PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        return {"rows": CONVERTER.unstructure(rows)}

    def _topic_row(self, name: str, stream: TopicStream) -> TopicRow:
        positioned = self._here.is_positioned(stream.topic)
        producer = None
        if positioned is not None and (stream.sequence or positioned):
            producer = "positioned" if positioned else "plain"
        return TopicRow(
            topic=name,
            subscribers=stream.subscriptions,
            producer=producer,
            publisher=None,
            epoch=stream.epoch,
            sequence=stream.sequence,
            rate=self._here.activity.rate(stream),
            last_message_at=_last_message_at(stream),
        )

    async def _info(self, arguments: Any) -> Mapping[str, Any]:
        """Return the state of this process."""
        del arguments
        await trio.lowlevel.checkpoint()
        info: Mapping[str, Any] = CONVERTER.unstructure(self._here.info())
        return info


def page_of(request: ConnectionsRequest) -> Page:
    """Return the page of connections that is asked for. Raises ApiError for a wrong cursor."""
    is_text = request.sort.value in {"connected_at", "address"}
    like: Place = ("" if is_text else 0, "", "")
    return Page.of(request.limit, request.cursor, like=like, descending=request.descending)


def topics_page(request: TopicsRequest) -> Page:
    """Return the page of topics that is asked for. Raises ApiError for a wrong cursor."""
    like: Place = ("",) if request.sort is TopicSort.TOPIC else (0, "")
    # The largest first: their places have the negative value.
    return Page.of(request.limit, request.cursor, like=like, descending=False)


def _state(session: Served) -> ConnectionState:
    if session.is_ending:
        return ConnectionState.CLOSING
    return ConnectionState.SLOW if session.outbox.blocked else ConnectionState.OPEN


def _last_message_at(stream: TopicStream) -> str | None:
    """Return the time in the last message of a topic."""
    known = list(stream.latest.values())
    if stream.history:
        known.append(stream.history[-1])
    if not known:
        return None
    last = max(known, key=lambda publication: publication.order)
    try:
        message = orjson.loads(last.text)
    except orjson.JSONDecodeError:  # it has a lone surrogate
        message = loads(last.text.decode())
    timestamp: str | None = message.get("timestamp")
    return timestamp
