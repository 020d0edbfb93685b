"""From an accepted connection to a session, and the list of all sessions."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

import structlog
import trio

from streamer.edge.admission import Admission
from streamer.edge.handshake import HandshakeFailedError, Request, receive_request
from streamer.edge.heartbeat import Heartbeat
from streamer.edge.requests import Services
from streamer.edge.session import Session
from streamer.edge.websocket import close_lingering
from streamer.protocol.errors import CloseReason

UNSENT_BYTES: Final = 64 * 1024
"""What the kernel may hold unsent for one client (TCP_NOTSENT_LOWAT). Its own measure, the send
buffer, grows to megabytes: a client that stalls would then be sent seconds of stale prices where it
should get the newest."""

log = structlog.get_logger()

ClientStream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class Acceptor:
    """Receives connections and keeps the sessions that come of them."""

    def __init__(self, services: Services, heartbeat: Heartbeat) -> None:
        self._services = services
        self._settings = services.settings
        self._heartbeat = heartbeat
        self._writers: trio.Nursery
        self.admission = Admission(services.settings)
        self.sessions: dict[str, Session] = {}
        self.connections_total = 0
        """Sessions since the start."""

    def open(self, nursery: trio.Nursery) -> None:
        """Give the place where writer tasks run; once, before the first connection."""
        self._writers = nursery

    async def receive(self, stream: ClientStream) -> None:
        """Serve one connection, from accept to close. Whatever goes wrong in it ends here."""
        try:
            descriptor = _prepare_socket(stream)
            request = None
            with trio.move_on_after(self._settings.handshake_timeout_seconds):
                request = await receive_request(stream, descriptor)
            if request is not None:
                await self._admit(stream, descriptor, request)
        except (HandshakeFailedError, trio.BrokenResourceError) as error:
            log.debug("no websocket", reason=str(error))
        except Exception:
            log.exception("a connection failed")
        finally:
            await trio.aclose_forcefully(stream)

    async def _admit(self, stream: ClientStream, descriptor: int, request: Request) -> None:
        address = _remote_address(stream)
        refusal = self.admission.enter(address, request.origin)
        if refusal is not None:
            log.info("connection refused", address=address, code=refusal.code)
            await self._refuse(stream, request, refusal)
            return
        try:
            await self._serve(stream, descriptor, request, address)
        finally:
            self.admission.leave(address)

    async def _serve(
        self, stream: ClientStream, descriptor: int, request: Request, address: str
    ) -> None:
        session = Session(
            f"s-{secrets.token_urlsafe(12)}",
            stream,
            self._services,
            request,
            descriptor=descriptor,
            remote_address=address,
            start_writer=self._writers.start_soon,
        )
        self.sessions[session.session_id] = session
        self.connections_total += 1
        self._heartbeat.add(session)
        try:
            await session.run(request.accept())
        finally:
            del self.sessions[session.session_id]

    async def _refuse(self, stream: ClientStream, request: Request, refusal: CloseReason) -> None:
        # The handshake is accepted first: a browser shows a page the close code, but not the
        # status of an HTTP answer.
        with trio.move_on_after(self._settings.close_timeout_seconds):
            frame = self._services.wire.close(refusal.code, refusal.reason)
            await stream.send_all(request.accept() + frame)
            await close_lingering(stream)


def _socket(stream: ClientStream) -> trio.socket.SocketType:
    return (stream.transport_stream if isinstance(stream, trio.SSLStream) else stream).socket


def _remote_address(stream: ClientStream) -> str:
    client_socket = _socket(stream)
    try:
        host: str = client_socket.getpeername()[0]
    except OSError as error:  # it has gone already
        raise trio.BrokenResourceError from error
    if client_socket.family == socket.AF_INET:
        return host
    address = ip_address(host.partition("%")[0])
    return str(getattr(address, "ipv4_mapped", None) or address)


def _prepare_socket(stream: ClientStream) -> int:
    """Set the socket's options; returns the descriptor for direct writes, -1 where TLS forbids."""
    client_socket = _socket(stream)
    with suppress(AttributeError):  # not on every system
        client_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return -1 if isinstance(stream, trio.SSLStream) else client_socket.fileno()
