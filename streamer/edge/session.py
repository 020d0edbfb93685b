"""One client, from its first message to its close."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import structlog
import trio

from streamer.edge.handshake import Request
from streamer.edge.limits import RateLimiter
from streamer.edge.requests import Requests, Services
from streamer.edge.websocket import (
    ConnectionEndedError,
    MessageTooLargeError,
    PeerClosedError,
    WebSocket,
)
from streamer.hub.outbox import Outbox, OutboxStatistics
from streamer.protocol import errors, messages
from streamer.protocol.codec import decode_client, request_id_of, utc_timestamp
from streamer.protocol.endpoint import VERSION
from streamer.protocol.errors import CloseReason, ErrorCode, ProtocolError

_UNCONFIRMED_MESSAGES: Final = 250
_UNCONFIRMED_SECONDS: Final = 5.0
"""After so many messages, or so long with any, a client is pinged before its heartbeat is due."""

_USUAL_BYTES: Final = 4096
"""Of a client message: 100 targets fit."""

log = structlog.get_logger()


@attrs.frozen
class ConnectionInfo:
    """One connection, as the list of connections shows it."""

    session_id: str
    remote_address: str
    user_agent: str | None
    connected_at: str
    connected_seconds: float
    idle_seconds: float
    """Since anything came from the client."""
    subscriptions: list[str]
    messages_received: int
    messages_refused: int
    """Over the rate limit."""
    outbox: OutboxStatistics


class Session:
    """Carries out what one client asks, in the order in which it asks."""

    __slots__ = (
        "_broken",
        "_connected_at",
        "_connected_seconds",
        "_ending",
        "_hub",
        "_limiter",
        "_messages_received",
        "_pinged_delivered",
        "_pinged_seconds",
        "_pings",
        "_pongs",
        "_remote_address",
        "_requests",
        "_restore_id",
        "_scope",
        "_services",
        "_settings",
        "_start_writer",
        "_user_agent",
        "_websocket",
        "outbox",
        "session_id",
    )

    def __init__(
        self,
        session_id: str,
        stream: trio.abc.Stream,
        services: Services,
        request: Request,
        *,
        descriptor: int,
        remote_address: str,
        start_writer: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        """Take over a connection whose handshake is read and not yet answered.

        `descriptor`: of its socket, or -1 where bytes must go through the stream (TLS).
        `start_writer` starts the writer task, in a nursery that all connections share: one of its
        own would double what a quiet client costs, and a writer lives only while its socket is
        full and ends with it.
        """
        settings = services.settings
        now = trio.current_time()
        self.session_id = session_id
        self._services = services
        self._hub = services.hub
        self._start_writer = start_writer
        self._settings = settings
        self._remote_address = remote_address
        self._user_agent = request.user_agent
        self._restore_id = request.query.get("session_id")
        self._connected_at = utc_timestamp()
        self._connected_seconds = now
        self._messages_received = 0
        self._limiter = RateLimiter(
            rate=settings.rate_limit, burst=settings.rate_limit_burst, now_seconds=now
        )
        self.outbox = Outbox(
            session_id,
            descriptor,
            self,
            services.wire,
            max_queued_bytes=settings.max_outbound_bytes,
        )
        self._websocket = WebSocket(
            stream,
            services.hub.fanout,
            self.outbox,
            max_message_bytes=settings.max_message_bytes,
            trailing=request.trailing,
            admit_frame=self._admit,
            on_pong=self._on_pong,
            loop_budget=services.loop_budget,
        )
        self._requests = Requests(self.outbox, services, self._wait_room)
        self._pings = 0
        self._pongs = 0
        """The last ping that was answered."""
        self._pinged_delivered = 0
        """Messages that had been delivered at the last ping."""
        self._pinged_seconds = now
        self._scope = trio.CancelScope()
        self._ending: tuple[CloseReason, bytes] | None = None
        self._broken = False

    async def run(self, opening: bytes) -> None:
        """Serve the client until one side ends it; nothing of it remains in the hub.

        `opening` is the answer to its handshake, which goes out with the first message.
        """
        self._hub.add(self.outbox)
        try:
            self.outbox.send_control(opening + self._greeting())
            with self._scope:
                await self._read()
            if self._ending is not None and not self._broken:
                timeout_seconds = self._settings.close_timeout_seconds
                self._scope = trio.CancelScope(deadline=trio.current_time() + timeout_seconds)
                with self._scope:
                    await self._finish(*self._ending)
        finally:
            self._services.sessions.ended(self.outbox, address=self._remote_address)
            self._hub.remove(self.outbox)

    async def _finish(self, reason: CloseReason, farewell: bytes) -> None:
        self.outbox.send_control(farewell)
        if reason is errors.SHUTTING_DOWN:
            # A client that does as it is told still gets what it has not read yet.
            await self._websocket.wait_written()
        self._services.sessions.ended(self.outbox, address=self._remote_address)
        self._hub.retire(self.outbox, reason.reason)
        await self._websocket.finish(reason)

    async def _read(self) -> None:
        websocket = self._websocket
        try:
            if self._restore_id is not None:
                await self._answer_errors(self._requests.restore(self._restore_id, {}))
            while True:
                for message in websocket.messages():
                    await self._receive(message)
                    await self._wait_room()
                    # One read can hold hundreds of requests, and others want their turn.
                    await trio.lowlevel.checkpoint()
                await websocket.receive()
        except PeerClosedError as closed:
            websocket.answer_close(closed.code)
        except MessageTooLargeError:
            limit = self._settings.max_message_bytes
            self.end(
                errors.TOO_LARGE,
                messages.Error(
                    ErrorCode.MESSAGE_TOO_LARGE,
                    f"a message has at most {limit} bytes",
                    details={"max_message_bytes": limit},
                ),
            )
        except ConnectionEndedError as ended:
            self.end(ended.reason)

    async def _wait_room(self) -> None:
        """A client that asks but does not read its answers is not read either."""
        while self.outbox.control_bytes > self._settings.max_unread_replies_bytes:
            await self._websocket.wait_progress()

    def end(self, reason: CloseReason, farewell: messages.ServerMessage | None = None) -> None:
        """Close the connection with a reason, and a message before it. Does not wait."""
        if self._ending is None:
            data = b"" if farewell is None else self.outbox.wire.answer(farewell)
            self._ending = (reason, data)
            self._scope.cancel()

    @property
    def messages_received(self) -> int:
        """Messages from the client so far."""
        return self._messages_received

    @property
    def messages_refused(self) -> int:
        """Those over the rate limit."""
        return self._limiter.refused

    # What the outbox reports

    def on_blocked(self) -> None:
        """Start the writer task, which lives while the socket is full."""
        self._start_writer(self._websocket.write_blocked)

    def on_broken(self) -> None:
        """Nothing can be written any more, a close frame included."""
        self._broken = True
        self._services.loop_budget.call_later(self._cancel)

    def _cancel(self) -> None:
        self._scope.cancel()

    def on_overflow(self) -> None:
        """More waits than the settings allow."""
        self.end(errors.TOO_SLOW)

    # Heartbeat

    @property
    def last_received_seconds(self) -> float:
        """When anything last came from the client, on trio's clock."""
        return self._websocket.last_received_seconds

    def ping(self) -> None:
        """Ask the client for a sign of life, ahead of any waiting data."""
        self._pings += 1
        self._pinged_seconds = trio.current_time()
        self._pinged_delivered = self.outbox.account[1]
        self._hub.mark_ping(self.outbox)
        self.outbox.send_control(self.outbox.wire.ping(self._ping_payload))

    def is_confirmation_due(self, now_seconds: float) -> bool:
        """Whether much has been delivered since the last ping, which has been answered."""
        if self._pongs != self._pings or self.outbox.closed:
            return False
        delivered = self.outbox.account[1] - self._pinged_delivered
        is_late = now_seconds - self._pinged_seconds >= _UNCONFIRMED_SECONDS
        return delivered >= _UNCONFIRMED_MESSAGES or (is_late and delivered > 0)

    @property
    def _ping_payload(self) -> bytes:
        return b"%d" % self._pings

    def _on_pong(self, payload: bytes) -> None:
        if self._pings and payload == self._ping_payload:
            self._pongs = self._pings
            self._hub.mark_pong(self.outbox)
            self._services.sessions.changed(self.session_id)

    def give_up(self) -> None:
        """The client has been silent for too long: it would not read a close frame either."""
        log.info("client silent", session_id=self.session_id)
        self.on_broken()

    # Messages

    def _greeting(self) -> bytes:
        settings = self._settings
        connected = messages.Connected(
            session_id=self.session_id,
            protocol=VERSION,
            heartbeat_interval=settings.heartbeat_interval_seconds,
            limits={
                "max_message_bytes": settings.max_message_bytes,
                "max_targets_per_request": settings.max_targets_per_request,
                "max_subscriptions": settings.max_subscriptions,
                "rate_limit": settings.rate_limit,
                "rate_limit_burst": settings.rate_limit_burst,
            },
        )
        return self.outbox.wire.answer(connected)

    def _send(self, message: messages.ServerMessage) -> None:
        self.outbox.send_control(self.outbox.wire.answer(message))

    def _admit(self) -> bool:
        """Count a frame against the rate limit; going on after many refusals ends in 1008."""
        allowed = self._limiter.allow(trio.current_time())
        if not allowed and self._limiter.violations > self._settings.rate_limit_max_violations:
            raise ConnectionEndedError(errors.POLICY)
        return allowed

    async def _receive(self, message: str | bytes) -> None:
        self._messages_received += 1
        if self._admit():
            await self._answer_errors(self._carry_out(message))
        else:
            self._send(self._refusal(message))

    async def _carry_out(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            raise ProtocolError(
                ErrorCode.INVALID_MESSAGE, "binary messages mean nothing here; send text"
            )
        await self._requests.carry_out(decode_client(message))

    async def _answer_errors(self, request: Awaitable[None]) -> None:
        try:
            await request
        except ProtocolError as error:
            self._send(messages.Error(error.code, error.message, error.details, error.request_id))
        except Exception:
            log.exception("a request failed", session_id=self.session_id)
            self._send(
                messages.Error(ErrorCode.INTERNAL_ERROR, "a fault of this server, which is logged")
            )

    def _refusal(self, message: str | bytes) -> messages.Error:
        settings = self._settings
        return messages.Error(
            ErrorCode.RATE_LIMIT_EXCEEDED,
            f"at most {settings.rate_limit:g} messages a second, "
            f"and {settings.rate_limit_burst:g} at once",
            details={
                "rate_limit": settings.rate_limit,
                "rate_limit_burst": settings.rate_limit_burst,
            },
            # To read it costs something, which a message of usual size is worth.
            request_id=request_id_of(message) if len(message) <= _USUAL_BYTES else None,
        )

    def info(self) -> ConnectionInfo:
        """The connection as it is now."""
        now = trio.current_time()
        return ConnectionInfo(
            session_id=self.session_id,
            remote_address=self._remote_address,
            user_agent=self._user_agent,
            connected_at=self._connected_at,
            connected_seconds=now - self._connected_seconds,
            idle_seconds=now - self.last_received_seconds,
            subscriptions=sorted(
                str(subscription.lane.stream.topic)
                for subscription in self.outbox.subscriptions.values()
            ),
            messages_received=self._messages_received,
            messages_refused=self._limiter.refused,
            outbox=self.outbox.statistics(),
        )
