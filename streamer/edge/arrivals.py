"""Connections between their accept and their place.

The request of each is received in time, checked, and given a place, or refused with an answer.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from http import HTTPStatus
from typing import Final

import trio

from streamer.edge.addresses import counted_address
from streamer.edge.admission import CLOSE_REASON_BY_CAUSE, Admission, Cause, Refusals
from streamer.edge.handshake import (
    HandshakeFailedError,
    Request,
    receive_nowait,
    receive_request,
)
from streamer.edge.http_answers import HttpError
from streamer.edge.http_api import HttpApi, ReadRequest, not_admitted
from streamer.edge.http_request import HttpRequest
from streamer.edge.http_stream import StreamRequest
from streamer.edge.listeners import ClientStream, stream_socket
from streamer.edge.pending import Pending, PendingConnections
from streamer.edge.places import Places
from streamer.edge.proxies import Proxies
from streamer.edge.proxy_protocol import ProxyProtocolError
from streamer.edge.requests import Services
from streamer.edge.tls import TlsStream
from streamer.edge.websocket import close_lingering
from streamer.origins import OriginRules
from streamer.protocol.errors import CloseReason

_MIN_PENDING_PER_ADDRESS: Final = 16
_PENDING_PER_PLACE: Final = 4
"""Unfinished handshakes that an address may have per connection that it may have."""

_STATUSES: Final = {
    Cause.ORIGIN: HTTPStatus.FORBIDDEN,
    Cause.ADDRESS_FULL: HTTPStatus.TOO_MANY_REQUESTS,
    Cause.SERVER_FULL: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""The answers to HTTP requests that find no place."""

Admitted = Request | StreamRequest | ReadRequest


class Arrivals:
    """Receives the requests of connections, and takes places for their clients."""

    def __init__(
        self,
        services: Services,
        admission: Admission,
        places: Places,
        *,
        http: HttpApi,
        refusals: Refusals,
        closes: Counter[str],
    ) -> None:
        """`closes` counts connections that have ended, by the close code."""
        settings = services.settings
        self._services = services
        self._settings = settings
        self._admission = admission
        self._places = places
        self._http = http
        self._refusals = refusals
        self._closes = closes
        self._origins = OriginRules(settings.allowed_origins)
        self._proxies = Proxies(settings)
        per_address = settings.max_connections_per_address
        self.pending = PendingConnections(
            max_total=settings.max_handshakes,
            max_per_address=(
                per_address and max(_MIN_PENDING_PER_ADDRESS, _PENDING_PER_PLACE * per_address)
            ),
            timeout_seconds=settings.handshake_timeout_seconds,
            on_cut=self._on_cut,
        )
        """Connections that are accepted and not served yet."""

    def _on_cut(self, pending: Pending) -> None:
        self._refusals.add(Cause.HANDSHAKE, pending.address, "not finished in time")

    async def receive(
        self, stream: ClientStream, descriptor: int, peer: str
    ) -> tuple[Admitted, str] | None:
        """Receive the request of a connection, and take a place for its client.

        `descriptor` is that of its socket, and `peer` the address. Returns the request and the
        address of the client; None if it was refused, and answered. Raises HandshakeFailedError if
        the peer has closed before it sent anything, and trio.BrokenResourceError.
        """
        received = self._receive_nowait(stream, descriptor)
        admitted = self._admit_nowait(received, peer)
        if admitted is not None:
            return admitted
        return await self._receive_in_time(stream, descriptor, received, peer)

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
        pending = self.pending.enter(
            counted_address(peer), is_proxy=self._proxies.may_be_proxy(peer)
        )
        try:
            with pending.scope:
                address = await self._proxies.read_address(peer, stream_socket(stream))
                if not self._proxies.is_trusted(address):
                    self.pending.identify(pending, counted_address(address))
                await self._secure(stream)
                request: Request | HttpRequest
                if isinstance(received, Request):
                    request = received
                else:
                    request = await receive_request(
                        stream, descriptor, received, cookie=self._settings.auth_cookie
                    )
                address = self._proxies.requested_address(address, request.forwarding)
                self.pending.identify(pending, counted_address(address))
                admitted = await self._accept_request(stream, request, address)
                if admitted is not None:
                    return admitted, address
        except ProxyProtocolError as error:
            self._refusals.add(Cause.PROXY_PROTOCOL, peer, str(error))
        except HandshakeFailedError as error:
            if error.is_refused:
                address = self._proxies.requested_address(address, error.forwarding)
                self._refusals.add(Cause.HANDSHAKE, address, str(error))
        finally:
            self.pending.leave(pending)
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
        self._refusals.add(cause, address, request.origin)
        await self.refuse(stream, request, CLOSE_REASON_BY_CAUSE[cause])
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
            self._refusals.add(refusal, address, f"{error.status.value}: {error.message}")
            await self._http.refuse(stream, request, error)
            return None

    async def _admit(self, address: str, request: Request | HttpRequest) -> Cause | None:
        """Take a place for a client, that of a silent one of its address if there is no other.

        Returns why there is no place.
        """
        if not self._origins.allow(request.origin):
            return Cause.ORIGIN
        return await self._places.take(
            partial(self._admission.enter, address),
            partial(self._admission.sessions, address),
            request.query.get("session_id"),
        )

    async def refuse(
        self, stream: ClientStream, request: Request, reason: CloseReason, farewell: bytes = b""
    ) -> None:
        """Accept a handshake, and close the connection with a reason, after a last message."""
        self._closes[str(reason.code)] += 1
        # The handshake is accepted first: a browser shows a page the close code, but not the
        # status of an HTTP answer.
        with trio.move_on_after(self._settings.close_timeout_seconds):
            await stream.send_all(
                request.accept() + farewell + self._services.wire.close(reason.code, reason.reason)
            )
            await close_lingering(stream)
