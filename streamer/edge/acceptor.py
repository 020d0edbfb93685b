"""Make sessions of accepted connections, and keep the table of all sessions."""

from __future__ import annotations

import logging
import random
import resource
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import structlog
import trio

from streamer.auth.errors import TokenError
from streamer.auth.identity import Identity
from streamer.edge.access import identify, prepare_own_topic
from streamer.edge.addresses import counted_address, normal_address
from streamer.edge.admission import CLOSE_REASON_BY_CAUSE, Admission, Cause, Refusals
from streamer.edge.arrivals import Admitted, Arrivals
from streamer.edge.handshake import (
    HandshakeFailedError,
    Request,
)
from streamer.edge.heartbeat import Heartbeat
from streamer.edge.http_api import HttpApi, ReadRequest
from streamer.edge.http_stream import HttpStream, StreamRequest
from streamer.edge.listeners import ClientListener, ClientStream, stream_socket
from streamer.edge.places import Places
from streamer.edge.requests import Services
from streamer.edge.served import Served
from streamer.edge.session import Session
from streamer.edge.session_ids import new_session_id, short_hash
from streamer.edge.tls import TlsStream
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

_RESERVED_DESCRIPTORS: Final = 64
"""File descriptors reserved for Redis, the HTTP listener and the server's own files."""

_LATE_HANDSHAKE_SECONDS: Final = 1.0
"""How long a handshake may take once the server stops accepting."""

_DISMISSED_PER_TURN: Final = 100
"""Sessions ended before other tasks have a turn."""

log = structlog.get_logger()


class Acceptor:
    """Accepts connections and keeps their sessions."""

    def __init__(self, services: Services, heartbeat: Heartbeat) -> None:
        settings = services.settings
        self._services = services
        self._settings = settings
        self._heartbeat = heartbeat
        self._max_descriptors = _client_descriptors()
        self._connections = 0
        """Connections that are accepted and not closed: each has a file descriptor."""
        self._accepting = trio.CancelScope()
        self._is_stopping = False
        self.refusals = Refusals()
        self.sessions: dict[str, Served] = {}
        self.connections_total = 0
        """Sessions since the start."""
        self.closes: Counter[str] = Counter()
        """Connections that have ended since the start, by the server's close code; `client` for
        those that the client closed or that broke."""
        self._admission = Admission(settings)
        self._places = Places(self._admission, self.sessions)
        self._http = HttpApi(services)
        self._arrivals = Arrivals(
            services,
            self._admission,
            self._places,
            http=self._http,
            refusals=self.refusals,
            closes=self.closes,
        )

    async def run(
        self,
        listeners: Sequence[ClientListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept and serve connections; returns when the last has ended after `stop_accepting`."""
        async with trio.open_nursery() as helpers:
            helpers.start_soon(self._arrivals.pending.run)
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
        self._arrivals.pending.shorten(_LATE_HANDSHAKE_SECONDS)

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
        return len(self._arrivals.pending)

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
                if not self._has_descriptor() and not self._arrivals.pending.cut_slowest():
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
        self._arrivals.pending.cut_slowest()

    async def _receive(
        self, stream: ClientStream, peer: str, start_task: Callable[..., None]
    ) -> None:
        """Serve one connection, from accept to close. No exception of it leaves this method."""
        try:
            descriptor = _prepare_socket(stream_socket(stream))
            admitted = await self._arrivals.receive(stream, descriptor, peer)
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

    async def admit_user(
        self, user_id: str, session: Served, restored_id: str | None = None
    ) -> CloseReason | None:
        """Take a place of a user for a session, once its user is known.

        A silent connection of the user gives way, `restored_id` at once if it is one of them.
        Returns the reason to close the session if there is no place.
        """
        cause = await self._places.take(
            partial(self._admission.enter_user, user_id, session),
            partial(self._admission.user_sessions, user_id),
            restored_id,
        )
        if cause is None:
            return None
        self.refusals.add(cause, session.info().remote_address)
        return CLOSE_REASON_BY_CAUSE[cause]

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
            await self._arrivals.refuse(stream, request, _close_reason(error), farewell)
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


async def _announce_end(stream: ClientStream) -> None:
    if type(stream) is TlsStream:
        await stream.aclose()  # sends close_notify: the end is no truncation


def _close(stream: ClientStream) -> None:
    if type(stream) is TlsStream:
        stream.close()
    else:
        stream.socket.close()


def _remote_address(stream: ClientStream) -> str:
    host: str = stream_socket(stream).getpeername()[0]
    return normal_address(host) if ":" in host else host


def _prepare_socket(client_socket: trio.socket.SocketType) -> int:
    """Set the socket's options; return its descriptor."""
    with suppress(AttributeError):  # not on every system
        client_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return client_socket.fileno()
