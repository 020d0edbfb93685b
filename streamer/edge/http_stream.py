"""One stream of server-sent events, from its first event to its end.

A client of a stream sends nothing after its request, so there is little of a WebSocket's session
here: it subscribes once, is written to by the same groups as all clients, and ends when the client
disconnects, when its token expires, or when the server closes it. It has no session to restore: the
id of its last event is enough to resume, here or on another server.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Final

import attrs
import trio

from streamer.auth.identity import Identity
from streamer.edge.acknowledged import seconds_since_acknowledged
from streamer.edge.http_answers import HttpAnswers, HttpError
from streamer.edge.http_request import HttpRequest
from streamer.edge.requests import Requests, Services, forbidden_target
from streamer.edge.served import ConnectionInfo, Transport
from streamer.edge.session_ids import short_hash
from streamer.edge.websocket import close_lingering, receive_some
from streamer.edge.writer import BlockedWriter
from streamer.hub.outbox import Outbox
from streamer.hub.recovery import RecoveryPlan
from streamer.hub.subscription import Want
from streamer.protocol import errors, messages
from streamer.protocol.codec import utc_timestamp
from streamer.protocol.errors import CloseReason, ErrorCode
from streamer.protocol.messages import RejectedTarget, Subscribed
from streamer.protocol.topics import SubscriptionType, Topic

RETRY_MS: Final = (1_000, 5_000)
"""The delays before a browser reconnects, one of them for each client: when a server has failed,
its clients do not come back all at once."""

_MAX_DISCARDED_BYTES: Final = 64 * 1024
"""Bytes that a client may send after its request, such as a body that GET does not have."""

_ACKNOWLEDGED_MARGIN_SECONDS: Final = 0.05
"""How much later than its time an acknowledgement may seem to have come: the system counts in
ticks."""


@attrs.frozen
class StreamRequest:
    """A request for a stream that has been checked."""

    http: HttpRequest
    wants: list[Want]
    rejected: list[Topic]
    """Topics that the client may not have."""
    identity: Identity | None


class HttpStream:
    """Sends the topics of one client as events."""

    def __init__(
        self,
        session_id: str,
        stream: trio.abc.Stream,
        services: Services,
        request: StreamRequest,
        answers: HttpAnswers,
        *,
        client_socket: trio.socket.SocketType | socket.socket,
        descriptor: int,
        remote_address: str,
        start_task: Callable[..., None],
    ) -> None:
        """Take over a connection whose request has been read.

        `descriptor` is that of its socket; `start_task` starts a task that ends with the
        connection.
        """
        settings = services.settings
        self.session_id = session_id
        self._stream = stream
        self._services = services
        self._request = request
        self._answers = answers
        self._socket = client_socket
        self.remote_address = remote_address
        self._start_task = start_task
        self.connected_at = utc_timestamp()
        self._connected_seconds = trio.current_time()
        self.outbox = Outbox(
            session_id,
            descriptor,
            self,
            services.events,
            max_queued_bytes=settings.max_outbound_bytes,
            max_replay_bytes=settings.max_replay_bytes,
            traffic=services.hub.traffic,
            write=services.hub.write,
        )
        self._writer = BlockedWriter(stream, services.hub.fanout, self.outbox, services.loop_budget)
        self._requests = Requests(None, self.outbox, services)
        self._requests.access.identity = request.identity
        if request.identity is not None:
            self.outbox.user_id = request.identity.user_id
        self._opening = b""
        """The head of the answer, until it is sent with the first event."""
        self._is_open = False
        """Whether it has been sent: nothing may precede it."""
        self._scope = trio.CancelScope()
        self._ending: tuple[CloseReason, messages.ServerMessage | None] | None = None
        self._is_broken = False
        self._is_closing = False

    async def run(self, opening: bytes) -> CloseReason | None:
        """Serve the client until one side closes; afterwards the hub has no trace of it.

        `opening` is the head of the answer, which is sent with the first event. Returns why the
        server closed the stream; None if the client did, or the connection broke.
        """
        hub = self._services.hub
        self._opening = opening + b"retry: %d\n\n" % random.randint(*RETRY_MS)  # noqa: S311
        hub.add(self.outbox)
        if self.identity is not None:
            self._services.expiry.watch(self, self.identity)
        try:
            if self._ending is None:
                with self._scope:
                    await self._serve()
            if self._is_broken or self._ending is None:
                await self._services.loop_budget.wait_for(self.outbox.subscriptions)
            else:
                timeout_seconds = self._services.settings.close_timeout_seconds
                self._scope = trio.CancelScope(deadline=trio.current_time() + timeout_seconds)
                with self._scope:
                    await self._finish(*self._ending)
            return None if self._ending is None else self._ending[0]
        finally:
            self._services.expiry.forget(self)
            hub.remove(self.outbox)

    async def _serve(self) -> None:
        forbidden: list[Topic] = []

        def answer(plan: RecoveryPlan) -> bytes:
            if not plan.positions:
                raise all_forbidden(forbidden)
            return self._take_opening() + b"".join(
                map(self.outbox.wire.answer, self._subscribed(plan, forbidden))
            )

        try:
            rest = self._requests.enter(self._request.wants, answer, forbidden)
            if rest is not None:
                await rest
        except HttpError as error:
            self._is_closing = True
            self.outbox.send_control(self._answers.error(self._request.http, error))
            with trio.move_on_after(self._services.settings.close_timeout_seconds):
                await self._writer.wait_written()
                await close_lingering(self._stream)
            return
        await self._wait_disconnect()

    def _take_opening(self) -> bytes:
        """Return the head of the answer, which is sent next; empty if it has been sent."""
        opening, self._opening = self._opening, b""
        self._is_open = True
        return opening

    def _subscribed(self, plan: RecoveryPlan, forbidden: list[Topic]) -> list[Subscribed]:
        """Return the first events: the answer for the topics of each type."""
        targets: dict[SubscriptionType, list[str]] = {}
        rejected: dict[SubscriptionType, list[RejectedTarget]] = {}
        for topic in plan.positions:
            targets.setdefault(topic.subscription_type, []).append(topic.target)
        for topic in (*self._request.rejected, *forbidden):
            rejected.setdefault(topic.subscription_type, []).append(forbidden_target(topic))
        return [
            Subscribed(
                subscription_type,
                targets.get(subscription_type, []),
                rejected.get(subscription_type, []),
                {
                    topic.target: position
                    for topic, position in plan.positions.items()
                    if topic.subscription_type is subscription_type
                },
            )
            for subscription_type in dict.fromkeys((*targets, *rejected))
        ]

    async def _wait_disconnect(self) -> None:
        discarded = 0
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while discarded <= _MAX_DISCARDED_BYTES and (
                data := await receive_some(
                    self._stream, self.outbox.descriptor, self._services.loop_budget
                )
            ):
                discarded += len(data)

    async def _finish(self, reason: CloseReason, farewell: messages.ServerMessage | None) -> None:
        wire = self.outbox.wire
        last = b"" if farewell is None else wire.answer(farewell)
        self.outbox.send_control(self._take_opening() + last)
        if reason is errors.SHUTTING_DOWN:
            # A client that keeps up still receives everything written before.
            await self._writer.wait_written()
        self._is_closing = True
        self._services.hub.retire(self.outbox, reason.reason)
        self.outbox.send_control(wire.close(reason.code, reason.reason))
        await self._writer.wait_written()
        await close_lingering(self._stream)

    def send_event(self, message: messages.ServerMessage) -> None:
        """Send a message that answers no request."""
        if self._is_open and not self._is_closing:
            self.outbox.send_control(self.outbox.wire.answer(message))

    def end(self, reason: CloseReason, farewell: messages.ServerMessage | None = None) -> None:
        """Close the stream with a reason, and a message before it. Does not wait.

        Does nothing if it is being closed already, as after an answer that is an error.
        """
        if self._ending is None and not self._is_closing:
            self._ending = reason, farewell
            self._scope.cancel()

    @property
    def identity(self) -> Identity | None:
        """The identity in the client's token; None for an anonymous client."""
        return self._request.identity

    @property
    def transport(self) -> Transport:
        """How the client is served."""
        return Transport.HTTP

    @property
    def messages_received(self) -> int:
        """Messages from the client: its request is none."""
        return 0

    messages_refused = messages_received

    # Reports of the outbox

    def on_blocked(self) -> None:
        """Start the writer task, which runs while the socket is full."""
        self._start_task(self._writer.write_blocked)

    def on_broken(self) -> None:
        """End the stream: nothing can be written any more, not even a last event."""
        self._is_broken = True
        self._services.loop_budget.call_later(self._cancel)

    def _cancel(self) -> None:
        self._scope.cancel()

    def on_overflow(self) -> None:
        """Close the stream with 4008: more messages wait than the settings allow."""
        self.end(errors.TOO_SLOW)

    # Heartbeat

    @property
    def is_ending(self) -> bool:
        """Whether the connection is broken or being closed."""
        return self._is_broken or self._is_closing or self._ending is not None

    @property
    def last_received_seconds(self) -> float:
        """When the client's system last acknowledged anything, on trio's clock.

        Where that is not known, when the client connected.
        """
        since_seconds = seconds_since_acknowledged(self._socket)
        if since_seconds is None:
            return self._connected_seconds
        return trio.current_time() - since_seconds

    def is_silent_since(self, seconds: float) -> bool:
        """Whether the client has given no sign of life since then, on trio's clock.

        One that does not read is silent, although its system acknowledges what arrives. Where the
        system does not report acknowledgements, any other client counts as alive, and so does one
        that waits for its answer: it has been sent nothing to acknowledge.
        """
        if not self._is_open:
            return False
        if self.outbox.blocked:
            return self._writer.last_written_seconds < seconds
        since_seconds = seconds_since_acknowledged(self._socket)
        if since_seconds is None:
            return False
        acknowledged = trio.current_time() - since_seconds
        return acknowledged + _ACKNOWLEDGED_MARGIN_SECONDS < seconds

    def is_confirmation_due(self, now_seconds: float) -> bool:  # noqa: ARG002
        """Return False: what a client has received is in the cursor that it sends."""
        return False

    def ping(self) -> None:
        """Send a comment, which proxies and the client's system notice, and nobody else."""
        if self._is_open and not self._is_closing:
            self.outbox.send_control(self.outbox.wire.ping(b""))

    def give_up(self) -> None:
        """Cut the connection of a silent client."""
        self.on_broken()

    def info(self) -> ConnectionInfo:
        """Return the present state of the connection."""
        now = trio.current_time()
        return ConnectionInfo(
            session=short_hash(self.session_id),
            transport=self.transport,
            user_id=self.outbox.user_id,
            remote_address=self.remote_address,
            user_agent=self._request.http.user_agent,
            connected_at=self.connected_at,
            connected_seconds=now - self._connected_seconds,
            idle_seconds=now - self.last_received_seconds,
            subscriptions=sorted(
                str(subscription.lane.stream.topic)
                for subscription in self.outbox.subscriptions.values()
            ),
            messages_received=self.messages_received,
            messages_refused=self.messages_refused,
            outbox=self.outbox.statistics(),
        )


def all_forbidden(topics: Sequence[Topic]) -> HttpError:
    """Make the error for a request of which nothing is allowed."""
    return HttpError(
        HTTPStatus.FORBIDDEN,
        errors.ERROR_MEANINGS[ErrorCode.FORBIDDEN],
        code=ErrorCode.FORBIDDEN,
        details={
            "rejected": [{"topic": str(topic), "code": ErrorCode.FORBIDDEN} for topic in topics]
        },
    )
