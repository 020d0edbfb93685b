"""Make sessions of accepted connections, and keep the table of all sessions."""

from __future__ import annotations

import heapq
import logging
import random
import resource
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from operator import attrgetter
from typing import Final

import structlog
import trio

from streamer.auth.errors import TokenError
from streamer.auth.identity import Identity
from streamer.bounded_log import BoundedLog
from streamer.edge.access import identify, prepare_own_topic
from streamer.edge.addresses import counted_address, normal_address
from streamer.edge.admission import CLOSE_REASON_BY_CAUSE, Admission, Cause, Refusals
from streamer.edge.handshake import (
    HandshakeFailedError,
    Request,
    receive_nowait,
    receive_request,
)
from streamer.edge.heartbeat import Heartbeat
from streamer.edge.http_answers import HttpError
from streamer.edge.http_api import HttpApi, ReadRequest, not_admitted
from streamer.edge.http_request import HttpRequest
from streamer.edge.http_stream import HttpStream, StreamRequest
from streamer.edge.listeners import ClientListener, ClientStream
from streamer.edge.pending import Pending, PendingConnections
from streamer.edge.proxies import Proxies
from streamer.edge.proxy_protocol import ProxyProtocolError
from streamer.edge.requests import Services
from streamer.edge.served import Served
from streamer.edge.session import Session
from streamer.edge.session_ids import new_session_id, short_hash
from streamer.edge.tls import TlsStream
from streamer.edge.websocket import close_lingering
from streamer.origins import OriginRules
from streamer.protocol.errors import (
    ABUSE,
    INVALID_TOKEN,
    SHUTTING_DOWN,
    TOKEN_EXPIRED,
    UNAUTHENTICATED,
    CloseReason,
    ErrorCode,
)
from streamer.protocol.messages import Error, ServerShutdown

UNSENT_BYTES: Final = 64 * 1024
"""Bytes that the kernel may hold unsent for one client (TCP_NOTSENT_LOWAT). Its default limit, the
send buffer, grows to megabytes: a client that stalls would then receive seconds of stale prices
before the newest."""

PROBE_SECONDS: Final = 3.0
"""How long a connection has to answer a ping while a new one waits for its place."""

_FRESH_SECONDS: Final = 1.0
"""A client that sent bytes so recently is not pinged to see whether it is alive."""

_MAX_PROBED: Final = 16
"""Connections that are pinged for one that waits for a place: the longest silent ones."""

_MIN_PENDING_PER_ADDRESS: Final = 16
_PENDING_PER_PLACE: Final = 4
"""Unfinished handshakes that an address may have per connection that it may have."""

_RESERVED_DESCRIPTORS: Final = 64
"""File descriptors reserved for Redis, the HTTP listener and the server's own files."""

_LATE_HANDSHAKE_SECONDS: Final = 1.0
"""How long a handshake may take once the server stops accepting."""

_DISMISSED_PER_TURN: Final = 100
"""Sessions ended before other tasks have a turn."""

_STATUSES: Final = {
    Cause.ORIGIN: HTTPStatus.FORBIDDEN,
    Cause.ADDRESS_FULL: HTTPStatus.TOO_MANY_REQUESTS,
    Cause.SERVER_FULL: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""The answers to HTTP requests that find no place."""

Admitted = Request | StreamRequest | ReadRequest

log = structlog.get_logger()


class Acceptor:
    """Accepts connections and keeps their sessions."""

    def __init__(self, services: Services, heartbeat: Heartbeat) -> None:
        settings = services.settings
        self._services = services
        self._settings = settings
        self._heartbeat = heartbeat
        self._origins = OriginRules(settings.allowed_origins)
        self._admission = Admission(settings)
        self._http = HttpApi(services)
        self._proxies = Proxies(settings)
        per_address = settings.max_connections_per_address
        self._pending = PendingConnections(
            max_total=settings.max_handshakes,
            max_per_address=(
                per_address and max(_MIN_PENDING_PER_ADDRESS, _PENDING_PER_PLACE * per_address)
            ),
            timeout_seconds=settings.handshake_timeout_seconds,
            on_cut=self._on_cut,
        )
        self._max_descriptors = _client_descriptors()
        self._connections = 0
        """Connections that are accepted and not closed: each has a file descriptor."""
        self._accepting = trio.CancelScope()
        self._is_stopping = False
        self._log = BoundedLog(log.info)
        self.refusals = Refusals()
        self.sessions: dict[str, Served] = {}
        self.connections_total = 0
        """Sessions since the start."""
        self.closes: Counter[str] = Counter()
        """Connections that have ended since the start, by the server's close code; `client` for
        those that the client closed or that broke."""

    async def run(
        self,
        listeners: Sequence[ClientListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept and serve connections; returns when the last has ended after `stop_accepting`."""
        async with trio.open_nursery() as helpers:
            helpers.start_soon(self._pending.run)
            async with trio.open_nursery() as connections:
                with self._accepting:
                    async with trio.open_nursery() as accepting:
                        for listener in listeners:
                            accepting.start_soon(self._accept, listener, connections)
                        task_status.started()
            helpers.cancel_scope.cancel()

    def stop_accepting(self) -> None:
        """Close the listeners. Handshakes under way have a second to end, and then `dismiss`."""
        self._is_stopping = True
        self._accepting.cancel()
        self._pending.shorten(_LATE_HANDSHAKE_SECONDS)

    async def dismiss(self) -> None:
        """Tell each client a random reconnect delay, then close it."""
        for number, session in enumerate(tuple(self.sessions.values()), 1):
            self._dismiss(session)
            if number % _DISMISSED_PER_TURN == 0:
                await trio.lowlevel.checkpoint()

    def _dismiss(self, session: Served) -> None:
        settings = self._settings
        spread_ms = settings.drain_spread_ms_per_client * len(self.sessions)
        delay_ms = settings.drain_min_retry_ms + random.uniform(0, spread_ms)  # noqa: S311
        session.end(SHUTTING_DOWN, ServerShutdown(round(delay_ms)))

    @property
    def pending_handshakes(self) -> int:
        """How many connections have not finished their handshake."""
        return len(self._pending)

    # Accepting

    async def _accept(self, listener: ClientListener, connections: trio.Nursery) -> None:
        async with listener:
            while True:
                stream = await listener.accept()
                try:
                    peer = _remote_address(stream)
                except OSError:  # the client has closed it already
                    await trio.aclose_forcefully(stream)
                    continue
                if not self._has_descriptor() and not self._pending.cut_slowest():
                    self.on_exhausted(peer)
                    await trio.aclose_forcefully(stream)
                    continue
                self._connections += 1
                connections.start_soon(self._receive, stream, peer, connections.start_soon)

    def _has_descriptor(self) -> bool:
        return self._connections < self._max_descriptors

    def on_exhausted(self, address: str = "") -> None:
        """Count a connection that was closed at once for lack of a file descriptor."""
        self.refusals.add(Cause.DESCRIPTORS, address)
        self._pending.cut_slowest()

    def _on_cut(self, pending: Pending) -> None:
        self.refusals.add(Cause.HANDSHAKE, pending.address, "not finished in time")

    async def _receive(
        self, stream: ClientStream, peer: str, start_task: Callable[..., None]
    ) -> None:
        """Serve one connection, from accept to close. No exception of it leaves this method."""
        try:
            descriptor = _prepare_socket(_socket(stream))
            received = self._receive_nowait(stream, descriptor)
            admitted: tuple[Admitted, str] | None = self._admit_nowait(received, peer)
            if admitted is None:
                admitted = await self._receive_in_time(stream, descriptor, received, peer)
            if admitted is not None:
                await self._serve(stream, descriptor, *admitted, start_task)
                await _announce_end(stream)
        except HandshakeFailedError:
            pass  # it was closed before it had sent anything
        except trio.BrokenResourceError as error:
            log.debug("a connection broke", reason=str(error))
        except Exception:
            log.exception("a connection failed")
        finally:
            self._connections -= 1
            _close(stream)

    def _receive_nowait(self, stream: ClientStream, descriptor: int) -> Request | bytes:
        """Return the request if it has arrived whole, as in a storm; else what has arrived.

        A connection that is served at once needs no deadline, and none of the places of those whose
        handshake is not finished.
        """
        if type(stream) is TlsStream or self._proxies.needs_header:
            return b""
        return receive_nowait(descriptor, cookie=self._settings.auth_cookie)

    def _admit_nowait(self, received: Request | bytes, peer: str) -> tuple[Request, str] | None:
        """Take a place for a client; return its request and its address, or None if it has to wait.

        One that is refused has to wait for the answer to be sent.
        """
        if isinstance(received, bytes) or not self._origins.allow(received.origin):
            return None
        address = self._proxies.requested_address(peer, received.forwarding)
        if self._admission.enter(counted_address(address)) is not None:
            return None
        return received, address

    async def _receive_in_time(
        self, stream: ClientStream, descriptor: int, received: Request | bytes, peer: str
    ) -> tuple[Admitted, str] | None:
        """Finish the handshake of a connection, and take a place for it.

        Returns the request and the address of its client; None if it was refused, and answered.
        """
        address = peer
        pending = self._pending.enter(
            counted_address(peer), is_proxy=self._proxies.may_be_proxy(peer)
        )
        try:
            with pending.scope:
                address = await self._proxies.read_address(peer, _socket(stream))
                if not self._proxies.is_trusted(address):
                    self._pending.identify(pending, counted_address(address))
                await self._secure(stream)
                request: Request | HttpRequest
                if isinstance(received, Request):
                    request = received
                else:
                    request = await receive_request(
                        stream, descriptor, received, cookie=self._settings.auth_cookie
                    )
                address = self._proxies.requested_address(address, request.forwarding)
                self._pending.identify(pending, counted_address(address))
                admitted = await self._accept_request(stream, request, address)
                if admitted is not None:
                    return admitted, address
        except ProxyProtocolError as error:
            self.refusals.add(Cause.PROXY_PROTOCOL, peer, str(error))
        except HandshakeFailedError as error:
            if error.is_refused:
                address = self._proxies.requested_address(address, error.forwarding)
                self.refusals.add(Cause.HANDSHAKE, address, str(error))
        finally:
            self._pending.leave(pending)
        return None

    async def _secure(self, stream: ClientStream) -> None:
        if type(stream) is TlsStream:
            await stream.do_handshake(self._services.loop_budget)

    async def _accept_request(
        self, stream: ClientStream, request: Request | HttpRequest, address: str
    ) -> Admitted | None:
        """Take a place for a client; answer one that is refused."""
        if isinstance(request, HttpRequest):
            return await self._accept_http(stream, request, address)
        cause = await self._admit(counted_address(address), request)
        if cause is None:
            return request
        self.refusals.add(cause, address, request.origin)
        await self._refuse(stream, request, CLOSE_REASON_BY_CAUSE[cause])
        return None

    async def _accept_http(
        self, stream: ClientStream, request: HttpRequest, address: str
    ) -> StreamRequest | ReadRequest | None:
        """Check a plain HTTP request, and take a place for it."""
        cause = None if self._origins.allow(request.origin) else Cause.ORIGIN
        try:
            if cause is None and request.method == "OPTIONS":
                await self._http.allow(stream, request)
                return None
            if cause is None:
                checked = await self._http.check(request)
                cause = await self._admit(counted_address(address), request)
                if cause is None:
                    return checked
            raise not_admitted(_STATUSES[cause], CLOSE_REASON_BY_CAUSE[cause])
        except HttpError as error:
            refusal = Cause.HANDSHAKE if cause is None else cause
            self.refusals.add(refusal, address, f"{error.status.value}: {error.message}")
            await self._http.refuse(stream, request, error)
            return None

    # Admission

    async def _admit(self, address: str, request: Request | HttpRequest) -> Cause | None:
        """Take a place for a client, that of a silent one of its address if there is no other.

        Returns why there is no place.
        """
        if not self._origins.allow(request.origin):
            return Cause.ORIGIN
        return await self._take_place(
            partial(self._admission.enter, address),
            partial(self._admission.sessions, address),
            request.query.get("session_id"),
        )

    async def admit_user(
        self, user_id: str, session: Served, restored_id: str | None = None
    ) -> CloseReason | None:
        """Take a place of a user for a session, once its user is known.

        A silent connection of the user gives way, `restored_id` at once if it is one of them.
        Returns the reason to close the session if there is no place.
        """
        cause = await self._take_place(
            partial(self._admission.enter_user, user_id, session),
            partial(self._admission.user_sessions, user_id),
            restored_id,
        )
        if cause is None:
            return None
        self.refusals.add(cause, session.info().remote_address)
        return CLOSE_REASON_BY_CAUSE[cause]

    async def _take_place(
        self,
        enter: Callable[[], Cause | None],
        rivals: Callable[[], Sequence[Served]],
        session_id: str | None,
    ) -> Cause | None:
        """Call `enter` until it finds a place, or return the cause after some seconds.

        If there is none, the one of `rivals` that the client names by its session's id is ended at
        once. Otherwise the longest silent ones are pinged, and if one does not answer within 3 s,
        the longest silent is ended.
        """
        cause = enter()
        if cause is None:
            return None
        asked_seconds = trio.current_time()
        probed = self._probe(rivals(), session_id)
        if not probed:
            return cause
        with trio.move_on_after(PROBE_SECONDS):
            return await self._wait_for_place(enter)
        for session in probed:
            if not session.is_ending and session.is_silent_since(asked_seconds):
                self._log(
                    "gives way", "silent client gives way", session=short_hash(session.session_id)
                )
                session.give_up()
                with trio.move_on_after(PROBE_SECONDS):
                    return await self._wait_for_place(enter)
                break
        return cause

    def _probe(self, sessions: Sequence[Served], session_id: str | None) -> Sequence[Served]:
        """Ping connections that might be ended for a new one; return the longest silent first."""
        named = self.sessions.get(session_id or "")
        if named is not None and named in sessions:
            named.give_up()
            return [named]
        fresh_since = trio.current_time() - _FRESH_SECONDS
        silent = [
            session
            for session in sessions
            if not session.is_ending and session.is_silent_since(fresh_since)
        ]
        probed = heapq.nsmallest(_MAX_PROBED, silent, key=attrgetter("last_received_seconds"))
        for session in probed:
            session.ping()
        return probed

    async def _wait_for_place(self, enter: Callable[[], Cause | None]) -> Cause | None:
        while (cause := enter()) is not None:
            await self._admission.wait_left()
        return cause

    async def _refuse(
        self, stream: ClientStream, request: Request, reason: CloseReason, farewell: bytes = b""
    ) -> None:
        self.closes[str(reason.code)] += 1
        # The handshake is accepted first: a browser shows a page the close code, but not the
        # status of an HTTP answer.
        with trio.move_on_after(self._settings.close_timeout_seconds):
            await stream.send_all(
                request.accept() + farewell + self._services.wire.close(reason.code, reason.reason)
            )
            await close_lingering(stream)

    async def _read(self, stream: ClientStream, request: ReadRequest, address: str) -> None:
        try:
            await self._http.read(stream, request, address)
        finally:
            self._admission.leave(address, None)

    async def _serve(
        self,
        stream: ClientStream,
        descriptor: int,
        request: Admitted,
        address: str,
        start_task: Callable[..., None],
    ) -> None:
        """Serve a client that has a place, and give the place back."""
        if isinstance(request, ReadRequest):
            await self._read(stream, request, counted_address(address))
            return
        session: Served | None = None
        reason: CloseReason | None
        try:
            identity: Identity | None
            if isinstance(request, StreamRequest):
                identity = request.identity
                opening = self._http.answers.event_stream(request.http)
                session = HttpStream(
                    new_session_id(),
                    stream,
                    self._services,
                    request,
                    self._http.answers,
                    client_socket=stream.socket,
                    descriptor=descriptor,
                    remote_address=address,
                    start_task=start_task,
                )
            else:
                identity = await identify(self._services, request.token)
                agreement = self._services.agree(request.extensions)
                opening = request.accept(agreement)
                session = Session(
                    new_session_id(),
                    stream,
                    self._services,
                    request,
                    agreement,
                    descriptor=descriptor,
                    remote_address=address,
                    start_task=start_task,
                    admit_user=self.admit_user,
                    identity=identity,
                )
            self._admission.serve(counted_address(address), session)
            if identity is not None:
                restored_id = None
                if isinstance(request, Request):
                    restored_id = request.query.get("session_id")
                no_place = await self.admit_user(identity.user_id, session, restored_id)
                if no_place is not None:
                    session.end(no_place)
                elif isinstance(request, Request):
                    await prepare_own_topic(self._services, identity)
            reason = await self._run(session, opening)
            if reason is ABUSE:
                self.refusals.add(Cause.ABUSE, address)
        except TokenError as error:
            assert isinstance(request, Request)  # the token of any other was verified before
            self.refusals.add(Cause.TOKEN, address, error.message)
            farewell = self._services.wire.answer(Error(error.code, error.message))
            await self._refuse(stream, request, _close_reason(error), farewell)
        finally:
            self._admission.leave(counted_address(address), session)

    async def _run(self, session: Served, opening: bytes) -> CloseReason | None:
        self.sessions[session.session_id] = session
        self.connections_total += 1
        self._heartbeat.add(session)
        if log.is_enabled_for(logging.DEBUG):
            log.debug(
                "client connected",
                session=short_hash(session.session_id),
                transport=session.transport.value,
                address=session.remote_address,
            )
        if self._is_stopping:
            self._dismiss(session)
        ending = "client"  # also if the server is cancelled
        try:
            reason = await session.run(opening)
            if reason is not None:
                ending = str(reason.code)
            return reason
        finally:
            self.closes[ending] += 1
            if log.is_enabled_for(logging.DEBUG):
                log.debug("client left", session=short_hash(session.session_id), close=ending)
            self._heartbeat.remove(session)
            del self.sessions[session.session_id]


def _close_reason(error: TokenError) -> CloseReason:
    if error.code is ErrorCode.TOKEN_EXPIRED:
        return TOKEN_EXPIRED
    return INVALID_TOKEN if error.is_final else UNAUTHENTICATED


def _client_descriptors() -> float:
    """How many connections this process has file descriptors for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return float("inf")
    return max(soft - _RESERVED_DESCRIPTORS, 1)


def _socket(stream: ClientStream) -> trio.socket.SocketType:
    """Return the socket of a connection that was just accepted; TLS takes it over later."""
    return (stream.transport if type(stream) is TlsStream else stream).socket


async def _announce_end(stream: ClientStream) -> None:
    if type(stream) is TlsStream:
        await stream.aclose()  # sends close_notify: the end is no truncation


def _close(stream: ClientStream) -> None:
    if type(stream) is TlsStream:
        stream.close()
    else:
        stream.socket.close()


def _remote_address(stream: ClientStream) -> str:
    host: str = _socket(stream).getpeername()[0]
    return normal_address(host) if ":" in host else host


def _prepare_socket(client_socket: trio.socket.SocketType) -> int:
    """Set the socket's options; return its descriptor."""
    with suppress(AttributeError):  # not on every system
        client_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return client_socket.fileno()
