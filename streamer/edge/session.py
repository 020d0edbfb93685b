"""One client, from its first message to its close."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import structlog
import trio

from streamer.auth.identity import Identity
from streamer.edge.addresses import counted_address
from streamer.edge.extensions import Agreement
from streamer.edge.frame_reader import MessageTooLargeError
from streamer.edge.handshake import Request
from streamer.edge.limits import RateLimiter
from streamer.edge.loop_budget import is_heavy
from streamer.edge.requests import Requests, Services
from streamer.edge.served import ConnectionInfo, Served, Transport
from streamer.edge.session_ids import short_hash
from streamer.edge.websocket import (
    NO_CLOSE_FRAME,
    ConnectionEndedError,
    PeerClosedError,
    Pong,
    WebSocket,
)
from streamer.hub.outbox import Outbox
from streamer.protocol import errors, messages
from streamer.protocol.codec import decode_client, request_id_of, utc_timestamp
from streamer.protocol.endpoint import VERSION
from streamer.protocol.errors import CloseReason, ErrorCode, ProtocolError

_UNCONFIRMED_MESSAGES: Final = 250
_UNCONFIRMED_SECONDS: Final = 5.0
"""A client that has received so many messages since its last ping, or any in so long, is pinged
before its heartbeat is due."""

_USUAL_BYTES: Final = 4096
"""The size of an ordinary client message: 100 targets fit."""

_MAX_WAITING_BYTES: Final = 64 * 1024
"""Bytes of messages that may wait behind a request under way; beyond it, the client's socket is not
read."""

_ENTRY_BYTES: Final = 64
"""Memory that each waiting message takes besides its text: a tuple and its place in the queue."""

_WAITING_REQUESTS: Final = (messages.Reconnect, messages.Authenticate, messages.RefreshToken)
"""Requests that usually have to wait: for records in Redis, for keys, for a token endpoint."""

AdmitUser = Callable[[str, Served, str | None], Awaitable[CloseReason | None]]
"""Takes a place of a user for a session, perhaps that of another session of the user, which has the
id; returns why there is none."""

log = structlog.get_logger()


@attrs.define(eq=False)
class _Work:
    """A request that may wait, and the messages that have arrived after it."""

    waiting: deque[tuple[str | bytes, bool]] = attrs.field(factory=deque)
    """Messages, each with whether it is within the rate limit."""
    waiting_bytes: int = 0
    taken: trio.Event = attrs.field(factory=trio.Event)
    """Set when a message is taken from `waiting`."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ended: trio.Event = attrs.field(factory=trio.Event)

    def put(self, message: str | bytes, *, is_admitted: bool) -> None:
        """Queue a message."""
        self.waiting.append((message, is_admitted))
        self.waiting_bytes += _held_bytes(message)

    def take(self) -> tuple[str | bytes, bool]:
        """Remove and return the first message."""
        message, is_admitted = self.waiting.popleft()
        self.waiting_bytes -= _held_bytes(message)
        self.taken.set()
        self.taken = trio.Event()
        return message, is_admitted


def _held_bytes(message: str | bytes) -> int:
    """Return the memory that a waiting message takes, its entry included."""
    return sys.getsizeof(message) + _ENTRY_BYTES


class Session:
    """Carries out the requests of one client, in order.

    One task reads. A request that may wait (for Redis, or for the client to read its answers) is
    carried out by a second task, so that pings, pongs and a close are read meanwhile.
    """

    __slots__ = (
        "_admit_user",
        "_connected_at",
        "_connected_seconds",
        "_ending",
        "_hub",
        "_is_broken",
        "_is_closing",
        "_is_held_up",
        "_is_open",
        "_limiter",
        "_messages_received",
        "_opening_identity",
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
        "_start_task",
        "_user_agent",
        "_websocket",
        "_work",
        "outbox",
        "session_id",
    )

    def __init__(
        self,
        session_id: str,
        stream: trio.abc.Stream,
        services: Services,
        request: Request,
        agreement: Agreement | None,
        *,
        descriptor: int,
        remote_address: str,
        start_task: Callable[..., None],
        admit_user: AdmitUser,
        identity: Identity | None = None,
    ) -> None:
        """Take over a connection whose handshake is read and not yet answered.

        `agreement` says how the two sides compress, None if not at all.
        `descriptor` is that of its socket.
        `start_task` starts a task in a nursery that all connections share: one of its own would
        double the memory of a quiet client, and a writer or a waiting request is rare.
        """
        settings = services.settings
        now = trio.current_time()
        self.session_id = session_id
        self._services = services
        self._hub = services.hub
        self._start_task = start_task
        self._settings = settings
        self._remote_address = remote_address
        self._user_agent = request.user_agent
        self._restore_id = request.query.get("session_id")
        self._connected_at = utc_timestamp()
        self._connected_seconds = now
        self._messages_received = 0
        self._limiter = RateLimiter(
            rate=settings.rate_limit,
            burst=settings.rate_limit_burst,
            max_violations=settings.rate_limit_max_violations,
            now_seconds=now,
        )
        self.outbox = Outbox(
            session_id,
            descriptor,
            self,
            services.wire_for(agreement),
            max_queued_bytes=settings.max_outbound_bytes,
            max_replay_bytes=settings.max_replay_bytes,
            traffic=services.hub.traffic,
            write=services.hub.write,
        )
        self._websocket = WebSocket(
            stream,
            services.hub.fanout,
            self.outbox,
            max_message_bytes=settings.max_message_bytes,
            inflates=agreement is not None,
            max_unread_bytes=settings.max_unread_replies_bytes,
            trailing=request.trailing,
            limiter=self._limiter,
            loop_budget=services.loop_budget,
        )
        self._admit_user = admit_user
        self._opening_identity = identity
        self._requests = Requests(self, self.outbox, services)
        self._work: _Work | None = None
        self._pings = 0
        self._pongs = 0
        """The last ping that was answered."""
        self._pinged_delivered = 0
        """Messages that had been delivered at the last ping."""
        self._pinged_seconds = now
        self._scope = trio.CancelScope()
        self._ending: tuple[CloseReason, bytes] | None = None
        self._is_broken = False
        self._is_closing = False
        """Whether a close frame has been sent or received: none may follow it."""
        self._is_open = False
        """Whether the answer to the handshake has been sent: nothing may precede it."""
        self._is_held_up = False
        """Whether the socket is not read, since much has arrived after a waiting request."""

    async def run(self, opening: bytes) -> CloseReason | None:
        """Serve the client until one side closes; afterwards the hub has no trace of it.

        `opening` is the answer to its handshake, which is sent with the first message. Returns why
        the server closed the connection; None if the client did, or the connection broke.
        """
        self._hub.add(self.outbox)
        try:
            self._requests.access.begin(self._opening_identity)
            self._is_open = True
            self.outbox.send_control(opening + self._greeting())
            if self._ending is None:
                with self._scope:
                    await self._read()
            await self._stop_work()
            if self._is_broken:
                # Thousands of clients may leave together, each with hundreds of topics.
                await self._services.loop_budget.wait_for(self.outbox.subscriptions)
            elif self._ending is not None:
                timeout_seconds = self._settings.close_timeout_seconds
                self._scope = trio.CancelScope(deadline=trio.current_time() + timeout_seconds)
                with self._scope:
                    await self._finish(*self._ending)
            return None if self._ending is None else self._ending[0]
        finally:
            if self._work is not None:
                with trio.CancelScope(shield=True):
                    await self._stop_work()
            self._keep_record()
            self._requests.access.end()
            self._hub.remove(self.outbox)

    def _keep_record(self) -> None:
        """Keep the record of the session, for a restore, among those of its address."""
        self._services.sessions.ended(self.outbox, address=counted_address(self._remote_address))

    async def _finish(self, reason: CloseReason, farewell: bytes) -> None:
        self.outbox.send_control(farewell)
        if reason is errors.SHUTTING_DOWN:
            # A client that follows the protocol still receives everything written before.
            await self._websocket.wait_written()
        self._keep_record()
        self._hub.retire(self.outbox, reason.reason)
        self._is_closing = True
        await self._websocket.finish(reason)

    async def _read(self) -> None:
        try:
            if self._restore_id is not None:
                self._start_work(self._requests.restore(self._restore_id, {}))
            while True:
                message = await self._websocket.receive()
                if isinstance(message, Pong):
                    self._on_pong(message.payload)
                    continue
                await self._take(message)
                if self._websocket.has_received_more:
                    # One read can hold hundreds of requests, and other tasks must have a turn.
                    await trio.lowlevel.checkpoint()
        except PeerClosedError as closed:
            await self._answer_close(closed.code)
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

    async def _answer_close(self, code: int) -> None:
        await self._stop_work()
        if is_heavy(self.outbox.subscriptions):  # else, the turn that the read waited for will do
            await self._services.loop_budget.wait_for(self.outbox.subscriptions)
        if self._ending is not None:
            return  # the server closes, too, and sends its own close frame
        self._keep_record()
        self._is_closing = True
        self._hub.retire(self.outbox, errors.NORMAL.reason)
        if code == NO_CLOSE_FRAME:
            return
        with trio.move_on_after(self._settings.close_timeout_seconds):
            await self._websocket.answer_close(code)

    # Requests

    async def _take(self, message: str | bytes) -> None:
        """Carry out a message now, or queue it behind the request that is under way."""
        self._messages_received += 1
        is_admitted = self._websocket.admit()
        work = self._work
        if work is None:
            await self._begin(message, is_admitted=is_admitted)
            return
        work.put(message, is_admitted=is_admitted)
        while work.waiting_bytes > _MAX_WAITING_BYTES:
            self._is_held_up = True
            await work.taken.wait()
        self._is_held_up = False

    async def _begin(self, message: str | bytes, *, is_admitted: bool) -> None:
        """Carry out a message, in a task of its own if it may wait."""
        try:
            request = self._decode(message, is_admitted=is_admitted)
        except ProtocolError as error:
            self._send_error(error)
        else:
            if isinstance(request, _WAITING_REQUESTS):
                self._start_work(self._requests.carry_out(request), request.request_id)
                return
            if isinstance(request, messages.Subscribe):
                rest = self._subscribe(request)
                if rest is not None:
                    self._start_work(rest, request.request_id)
                    return
            else:
                await self._answer_errors(self._requests.carry_out(request), request.request_id)
        if not self._websocket.has_room:
            self._start_work(None)

    def _decode(self, message: str | bytes, *, is_admitted: bool) -> messages.ClientMessage:
        if not is_admitted:
            raise self._refusal(message)
        if isinstance(message, bytes):
            raise ProtocolError(
                ErrorCode.INVALID_MESSAGE, "binary messages mean nothing here; send text"
            )
        return decode_client(message)

    def _start_work(
        self, request: Awaitable[None] | None, request_id: messages.RequestId | None = None
    ) -> None:
        self._work = _Work()
        self._start_task(self._run_work, self._work, request, request_id)

    async def _run_work(
        self, work: _Work, request: Awaitable[None] | None, request_id: messages.RequestId | None
    ) -> None:
        """Carry out a request, if any, and then the messages after it, at the client's pace."""
        try:
            with work.scope:
                if request is not None:
                    await self._answer_errors(request, request_id)
                await self._websocket.wait_room()
                while work.waiting:
                    if self._services.loop_budget.is_long:
                        await self._services.loop_budget.wait()
                    message, is_admitted = work.take()
                    await self._carry_out(message, is_admitted=is_admitted)
                    await self._websocket.wait_room()
                    await trio.lowlevel.checkpoint()
        finally:
            self._work = None
            work.taken.set()
            work.ended.set()

    async def _carry_out(self, message: str | bytes, *, is_admitted: bool) -> None:
        try:
            request = self._decode(message, is_admitted=is_admitted)
        except Exception as error:  # noqa: BLE001 - in a nursery of all connections
            self._answer_failure(error, None)
            return
        await self._answer_errors(self._requests.carry_out(request), request.request_id)

    def _subscribe(self, request: messages.Subscribe) -> Awaitable[None] | None:
        """Carry out a subscribe at once, or return what is left of it if that has to wait."""
        try:
            return self._requests.subscribe(request)
        except Exception as error:  # noqa: BLE001 - answered, and logged where it is a fault
            self._answer_failure(error, request.request_id)
            return None

    async def _answer_errors(
        self, request: Awaitable[None], request_id: messages.RequestId | None
    ) -> None:
        try:
            await request
        except Exception as error:  # noqa: BLE001 - answered, and logged where it is a fault
            self._answer_failure(error, request_id)

    def _answer_failure(self, error: Exception, request_id: messages.RequestId | None) -> None:
        if isinstance(error, ProtocolError):
            self._send_error(error)
            return
        log.error("a request failed", session=short_hash(self.session_id), exc_info=error)
        reason = "a fault of this server, which is logged"
        self._send(messages.Error(ErrorCode.INTERNAL_ERROR, reason, request_id=request_id))

    async def _stop_work(self) -> None:
        """Cancel the request under way, and wait for its end: it may use the hub's objects."""
        if self._work is not None:
            self._work.scope.cancel()
            # No deadline: the work ends as soon as it is cancelled.
            with trio.CancelScope(shield=True):
                await self._work.ended.wait()

    def end(self, reason: CloseReason, farewell: messages.ServerMessage | None = None) -> None:
        """Close the connection with a reason, and a message before it. Does not wait.

        Does nothing if it is being closed already: no frame may follow a close frame.
        """
        if self._ending is None and not self._is_closing:
            data = b"" if farewell is None else self.outbox.wire.answer(farewell)
            self._ending = (reason, data)
            self._scope.cancel()

    @property
    def transport(self) -> Transport:
        """How the client is served."""
        return Transport.WEBSOCKET

    @property
    def remote_address(self) -> str:
        """The address of the client."""
        return self._remote_address

    @property
    def connected_at(self) -> str:
        """When it connected: RFC 3339, in UTC."""
        return self._connected_at

    @property
    def identity(self) -> Identity | None:
        """The identity in the client's token; None for an anonymous client."""
        return self._requests.access.identity

    @property
    def messages_received(self) -> int:
        """Messages from the client so far."""
        return self._messages_received

    @property
    def messages_refused(self) -> int:
        """Messages over the rate limit."""
        return self._limiter.refused

    # Reports of the outbox

    def on_blocked(self) -> None:
        """Start the writer task, which runs while the socket is full."""
        self._start_task(self._websocket.write_blocked)

    def on_broken(self) -> None:
        """End the session: nothing can be written any more, not even a close frame."""
        self._is_broken = True
        self._services.loop_budget.call_later(self._cancel)

    def _cancel(self) -> None:
        self._scope.cancel()

    def on_overflow(self) -> None:
        """Close the connection with 4008: more messages wait than the settings allow."""
        self.end(errors.TOO_SLOW)

    # Heartbeat

    @property
    def last_received_seconds(self) -> float:
        """When anything last came from the client, on trio's clock."""
        return self._websocket.last_received_seconds

    @property
    def is_ending(self) -> bool:
        """Whether the connection is broken or being closed."""
        return self._is_broken or self._is_closing or self._ending is not None

    def is_silent_since(self, seconds: float) -> bool:
        """Whether the client has given no sign of life since then, on trio's clock.

        One that waits for its greeting has been sent no ping, and is not silent. One whose socket
        is not read, since it has sent too many messages after a request that waits, may have
        answered all the same: it is alive while its socket takes bytes. So is one whose answer has
        arrived, but was not read yet: an overloaded server that cut its clients would have their
        return as a load besides.
        """
        websocket = self._websocket
        if not self._is_open:
            return False
        if websocket.last_received_seconds >= seconds:
            return False
        if self._is_held_up or websocket.is_held_up:
            return self.outbox.blocked and websocket.last_written_seconds < seconds
        return not websocket.has_unread

    def ping(self) -> None:
        """Ask the client for a sign of life, ahead of any waiting data."""
        if self._is_open and not self._is_closing:
            self._pings += 1
            self._pinged_seconds = trio.current_time()
            self._pinged_delivered = self.outbox.account[1]
            self._hub.mark_ping(self.outbox)
            self.outbox.send_control(self.outbox.wire.ping(self._ping_payload))

    def is_confirmation_due(self, now_seconds: float) -> bool:
        """Whether the last ping has been answered, and much has been delivered since."""
        if self._pongs != self._pings or self.is_ending:
            return False
        delivered = self.outbox.account[1] - self._pinged_delivered
        is_late = now_seconds - self._pinged_seconds >= _UNCONFIRMED_SECONDS
        return delivered >= _UNCONFIRMED_MESSAGES or (is_late and delivered > 0)

    @property
    def _ping_payload(self) -> bytes:
        return b"%d" % self._pings

    def _on_pong(self, payload: bytes) -> None:
        if self._pongs == self._pings or payload != self._ping_payload:
            self._websocket.admit()  # an unsolicited pong counts against the rate limit
            return
        self._pongs = self._pings
        self._services.ping_times.observe(trio.current_time() - self._pinged_seconds)
        self._hub.mark_pong(self.outbox)
        self._services.sessions.changed(self.session_id)

    def give_up(self) -> None:
        """Cut the connection of a silent client, which would not read a close frame either."""
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
                "max_book_levels": settings.max_book_levels,
                "rate_limit": settings.rate_limit,
                "rate_limit_burst": settings.rate_limit_burst,
            },
            user_id=self.user_id,
            expires_in=self._requests.access.expires_in,
            positions=self._requests.access.positions or None,
        )
        return self.outbox.wire.answer(connected)

    @property
    def user_id(self) -> str | None:
        """The user that the client has proved to be; None for an anonymous client."""
        return self.outbox.user_id

    async def admit_user(self, user_id: str) -> bool:
        """Take one of the places of a user; close the connection if there is none."""
        reason = await self._admit_user(user_id, self, self._restore_id)
        if reason is not None:
            self.end(reason)
        return reason is None

    def send_event(self, message: messages.ServerMessage) -> None:
        """Send a message of the server, ahead of any waiting data."""
        if not self._is_closing:
            self._send(message)

    def _send(self, message: messages.ServerMessage) -> None:
        self.outbox.send_control(self.outbox.wire.answer(message))

    def _send_error(self, error: ProtocolError) -> None:
        self._send(messages.Error(error.code, error.message, error.details, error.request_id))

    def _refusal(self, message: str | bytes) -> ProtocolError:
        settings = self._settings
        return ProtocolError(
            ErrorCode.RATE_LIMIT_EXCEEDED,
            f"at most {settings.rate_limit:g} messages a second, "
            f"and {settings.rate_limit_burst:g} at once",
            details={
                "rate_limit": settings.rate_limit,
                "rate_limit_burst": settings.rate_limit_burst,
            },
            # Parsing a rejected message costs time, so only one of usual size is parsed.
            request_id=request_id_of(message) if len(message) <= _USUAL_BYTES else None,
        )

    def info(self) -> ConnectionInfo:
        """Return the present state of the connection."""
        now = trio.current_time()
        return ConnectionInfo(
            session=short_hash(self.session_id),
            transport=self.transport,
            user_id=self.user_id,
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
