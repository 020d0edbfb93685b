"""One client, from its first message to its close."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, assert_never

import attrs
import structlog
import trio

from streamer.config import Settings
from streamer.edge.limits import RateLimiter
from streamer.edge.transport import (
    ConnectionEndedError,
    MessageTooLargeError,
    PeerClosedError,
    Transport,
)
from streamer.hub.hub import Hub, SubscriptionRequest
from streamer.hub.outbox import Outbox, OutboxStatistics, Subscription, batch_frame
from streamer.protocol import errors, messages
from streamer.protocol.codec import decode_client, encode, utc_timestamp
from streamer.protocol.errors import CloseReason, ErrorCode, ProtocolError
from streamer.protocol.frames import ping_frame, text_frame
from streamer.protocol.messages import Mode, RejectedTarget
from streamer.protocol.topics import KINDS, TARGET_RULE, Kind, Topic, is_target

PROTOCOL_VERSION: Final = 1

_MAX_ECHOED_CHARACTERS: Final = 80
"""Of a rejected target, which goes back to whoever sent it."""

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
        "_connected_at",
        "_connected_seconds",
        "_ending",
        "_hub",
        "_limiter",
        "_messages_received",
        "_nursery",
        "_reading",
        "_remote_address",
        "_settings",
        "_transport",
        "_user_agent",
        "_wait_ready",
        "outbox",
        "session_id",
    )

    def __init__(
        self,
        session_id: str,
        stream: trio.abc.Stream,
        hub: Hub,
        settings: Settings,
        *,
        descriptor: int,
        trailing: bytes,
        remote_address: str,
        user_agent: str | None,
        wait_ready: Callable[[Iterable[Topic]], Awaitable[None]],
    ) -> None:
        """Take over a connection whose handshake is done.

        `descriptor`: of its socket, or -1 where bytes must go through the stream (TLS).
        `wait_ready` waits until nothing that is published to these topics can be missed any more.
        """
        now = trio.current_time()
        self.session_id = session_id
        self._hub = hub
        self._settings = settings
        self._remote_address = remote_address
        self._user_agent = user_agent
        self._wait_ready = wait_ready
        self._connected_at = utc_timestamp()
        self._connected_seconds = now
        self._messages_received = 0
        self._limiter = RateLimiter(
            rate=settings.rate_limit, burst=settings.rate_limit_burst, now_seconds=now
        )
        self.outbox = Outbox(
            session_id, descriptor, self, max_queued_bytes=settings.max_outbound_bytes
        )
        self._transport = Transport(
            stream,
            hub,
            self.outbox,
            max_message_bytes=settings.max_message_bytes,
            trailing=trailing,
            admit_frame=self._admit,
        )
        self._reading = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._ending: tuple[CloseReason, bytes] | None = None

    async def run(self, opening: bytes) -> None:
        """Serve the client until one side ends it; nothing of it remains in the hub.

        `opening` is the answer to its handshake, which goes out with the first message.
        """
        self._hub.add(self.outbox)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self.outbox.send_control(opening + self._greeting())
                with self._reading:
                    await self._read()
                if self._ending is not None:
                    with trio.move_on_after(self._settings.close_timeout_seconds):
                        await self._finish(*self._ending)
                nursery.cancel_scope.cancel()
        finally:
            self._hub.remove(self.outbox)

    async def _finish(self, reason: CloseReason, farewell: bytes) -> None:
        self.outbox.send_control(farewell)
        if reason is errors.SHUTTING_DOWN:
            # A client that does as it is told still gets what it has not read yet.
            await self._transport.wait_written()
        self._hub.retire(self.outbox, reason.reason)
        await self._transport.finish(reason)

    async def _read(self) -> None:
        transport = self._transport
        limit = self._settings.max_unread_replies_bytes
        try:
            while True:
                for message in transport.messages():
                    await self._receive(message)
                    # A client that asks but does not read its answers is not read either.
                    while self.outbox.control_bytes > limit:
                        await transport.wait_progress()
                await transport.receive()
        except PeerClosedError as closed:
            transport.answer_close(closed.code)
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

    def end(self, reason: CloseReason, farewell: messages.ServerMessage | None = None) -> None:
        """Close the connection with a reason, and a message before it. Does not wait."""
        if self._ending is None:
            frame = b"" if farewell is None else text_frame(encode(farewell, utc_timestamp()))
            self._ending = (reason, frame)
            self._reading.cancel()

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
        assert self._nursery is not None  # nothing is written before run()
        self._nursery.start_soon(self._transport.write_blocked)

    def on_broken(self) -> None:
        """Nothing can be written any more, a close frame included."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def on_overflow(self) -> None:
        """More waits than the settings allow."""
        self.end(errors.TOO_SLOW)

    # Heartbeat

    @property
    def last_received_seconds(self) -> float:
        """When anything last came from the client, on trio's clock."""
        return self._transport.last_received_seconds

    def ping(self) -> None:
        """Ask the client for a sign of life, ahead of any waiting data."""
        self.outbox.send_control(ping_frame())

    def give_up(self) -> None:
        """The client has been silent for too long: it would not read a close frame either."""
        log.info("client silent", session_id=self.session_id)
        self.on_broken()

    # Messages

    def _greeting(self) -> bytes:
        settings = self._settings
        connected = messages.Connected(
            session_id=self.session_id,
            protocol=PROTOCOL_VERSION,
            heartbeat_interval=settings.heartbeat_interval_seconds,
            limits={
                "max_message_bytes": settings.max_message_bytes,
                "max_targets_per_request": settings.max_targets_per_request,
                "max_subscriptions": settings.max_subscriptions,
                "rate_limit": settings.rate_limit,
                "rate_limit_burst": settings.rate_limit_burst,
            },
        )
        return text_frame(encode(connected, utc_timestamp()))

    def _send(self, message: messages.ServerMessage, following: bytes = b"") -> None:
        frame = text_frame(encode(message, utc_timestamp()))
        self.outbox.send_control(frame + following)

    def _admit(self) -> bool:
        """Count a frame against the rate limit; going on after many refusals ends in 1008."""
        allowed = self._limiter.allow(trio.current_time())
        if not allowed and self._limiter.violations > self._settings.rate_limit_max_violations:
            raise ConnectionEndedError(errors.POLICY)
        return allowed

    async def _receive(self, message: str | bytes) -> None:
        self._messages_received += 1
        try:
            if self._admit():
                await self._carry_out(decode_client(_text(message)))
            else:
                self._send(self._refusal())
        except ProtocolError as error:
            self._send(messages.Error(error.code, error.message, error.details, error.request_id))

    def _refusal(self) -> messages.Error:
        settings = self._settings
        return messages.Error(
            ErrorCode.RATE_LIMIT_EXCEEDED,
            f"at most {settings.rate_limit:g} messages a second, "
            f"and {settings.rate_limit_burst:g} at once",
            details={
                "rate_limit": settings.rate_limit,
                "rate_limit_burst": settings.rate_limit_burst,
            },
        )

    async def _carry_out(self, message: messages.ClientMessage) -> None:
        match message:
            case messages.Subscribe():
                await self._subscribe(message)
            case messages.Unsubscribe():
                self._unsubscribe(message)
            case messages.Ping():
                self._send(messages.Pong(message.request_id))
            case messages.RefreshToken():
                raise ProtocolError(
                    ErrorCode.INVALID_TOKEN,
                    "this server does not ask for tokens, so it has none to refresh",
                    request_id=message.request_id,
                )
            case messages.Reconnect():
                raise ProtocolError(
                    ErrorCode.SESSION_RESTORATION_FAILED,
                    "this server keeps no sessions; subscribe anew",
                    request_id=message.request_id,
                )
            case _:  # pragma: no cover
                assert_never(message)

    async def _subscribe(self, message: messages.Subscribe) -> None:
        kinds, interval_seconds = self._options(message)
        topics, rejected = self._topics(message)
        held = {subscription.lane.stream.topic for subscription in self._subscriptions}
        room = self._settings.max_subscriptions - len(held)
        requests: dict[Topic, SubscriptionRequest] = {}
        for topic in topics:
            if topic not in held and topic not in requests:
                if room == 0:
                    rejected.append(self._no_room(topic))
                    continue
                room -= 1
            requests[topic] = SubscriptionRequest(topic, message.mode, kinds, interval_seconds)
        for topic in requests:
            self._hub.stream(topic)
        await self._wait_ready(requests)
        # From here to the ack nothing waits: no publication can come between position and stream.
        subscriptions = self._hub.subscribe(self.outbox, requests.values())
        positions = {
            subscription.lane.stream.topic.target: messages.Position(
                subscription.lane.stream.epoch, subscription.position
            )
            for subscription in subscriptions
        }
        values: list[bytes] = []
        if message.snapshot:
            for subscription in subscriptions:
                values += self._hub.snapshot(subscription)
        self._send(
            messages.Subscribed(
                message.subscription_type, list(positions), rejected, positions, message.request_id
            ),
            following=batch_frame(values, utc_timestamp) if values else b"",
        )

    @property
    def _subscriptions(self) -> Iterable[Subscription]:
        return self.outbox.subscriptions.values()

    def _options(self, message: messages.Subscribe) -> tuple[frozenset[Kind], float]:
        """The kinds and the seconds between messages that are asked for, if they make sense."""
        carried = KINDS[message.subscription_type]
        kinds = frozenset(message.kinds or carried)
        problem = None
        if not kinds.issubset(carried):
            problem = f"kinds of a {message.subscription_type} are {', '.join(carried)}"
        elif message.max_rate is not None and not message.max_rate > 0:
            problem = "max_rate is more than 0"
        elif message.max_rate is not None and message.mode is Mode.ALL:
            problem = "max_rate merges on purpose, and mode all never does"
        if problem is not None:
            raise ProtocolError(
                ErrorCode.INVALID_MESSAGE,
                f"invalid subscribe: {problem}",
                request_id=message.request_id,
            )
        return kinds, 0.0 if message.max_rate is None else 1.0 / message.max_rate

    def _unsubscribe(self, message: messages.Unsubscribe) -> None:
        topics, rejected = self._topics(message)
        self._hub.unsubscribe(self.outbox, topics)
        targets = [topic.target for topic in topics]
        self._send(
            messages.Unsubscribed(message.subscription_type, targets, rejected, message.request_id)
        )

    def _topics(
        self, message: messages.Subscribe | messages.Unsubscribe
    ) -> tuple[list[Topic], list[RejectedTarget]]:
        """The topics that a request names, and the targets that name none."""
        limit = self._settings.max_targets_per_request
        if len(message.targets) > limit:
            raise ProtocolError(
                ErrorCode.TOO_MANY_TARGETS,
                f"{len(message.targets)} targets in one request, where {limit} are allowed",
                details={"max_targets_per_request": limit},
                request_id=message.request_id,
            )
        topics: dict[Topic, None] = {}
        rejected = []
        for target in message.targets:
            if is_target(target):
                topics[Topic(message.subscription_type, target)] = None
            else:
                echo = target if isinstance(target, str) else repr(target)
                rejected.append(
                    RejectedTarget(
                        echo[:_MAX_ECHOED_CHARACTERS],
                        ErrorCode.INVALID_TARGET,
                        f"a target is {TARGET_RULE}",
                    )
                )
        return list(topics), rejected

    def _no_room(self, topic: Topic) -> RejectedTarget:
        return RejectedTarget(
            topic.target,
            ErrorCode.SUBSCRIPTION_LIMIT_EXCEEDED,
            f"a connection holds at most {self._settings.max_subscriptions} subscriptions",
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
            subscriptions=sorted(str(s.lane.stream.topic) for s in self._subscriptions),
            messages_received=self._messages_received,
            messages_refused=self._limiter.refused,
            outbox=self.outbox.statistics(),
        )


def _text(message: str | bytes) -> str:
    if isinstance(message, str):
        return message
    raise ProtocolError(ErrorCode.INVALID_MESSAGE, "binary messages mean nothing here; send text")
