"""The requests of a client: subscribe, unsubscribe, ping, restore."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, assert_never

import attrs
import trio

from streamer.auth.authenticator import Authenticator
from streamer.auth.permissions import Permissions
from streamer.config import Settings
from streamer.edge.access import Access, IdentifiedSession
from streamer.edge.extensions import Agreement, Offer, agree
from streamer.edge.loop_budget import LoopBudget, is_heavy
from streamer.edge.sessions import RestorableSessions
from streamer.edge.token_expiry import TokenExpiry
from streamer.histogram import Histogram
from streamer.hub.hub import Hub
from streamer.hub.outbox import Outbox
from streamer.hub.parts import Walk
from streamer.hub.publication import Publication
from streamer.hub.recovery import RecoveryPlan, subscribe
from streamer.hub.renditions import WHOLE, Detail
from streamer.hub.sessions import SessionRecord
from streamer.hub.streams import LastKnown, whole_in_parts
from streamer.hub.subscription import Subscription, SubscriptionOptions, Want
from streamer.hub.upstream import Recovery, RecoveryOutcome, Source
from streamer.protocol import messages
from streamer.protocol.errors import ERROR_MEANINGS, ErrorCode, ProtocolError
from streamer.protocol.messages import (
    Position,
    Reconnected,
    RejectedTarget,
    RequestId,
    Subscribed,
)
from streamer.protocol.topics import SubscriptionType, Topic, shared_topic, target_problem
from streamer.session_store import StoreUnavailableError
from streamer.wire.deflate import Compression
from streamer.wire.format import WireFormat

_MAX_SESSION_ID_CHARACTERS: Final = 64
"""Characters of a session id; a longer one is not looked up."""

_OVER: Final = object()
"""In place of another part, where there is none."""


@attrs.frozen
class Services:
    """The parts of a server that all its sessions share."""

    hub: Hub
    settings: Settings
    source: Source
    sessions: RestorableSessions
    loop_budget: LoopBudget
    wire: WireFormat
    """The wire format of clients that do not ask for another."""
    events: WireFormat
    """The wire format of streams over HTTP."""
    authenticator: Authenticator
    permissions: Permissions
    compression: Compression | None
    """Makes the formats of clients that offer to inflate; None: nothing is compressed."""
    expiry: TokenExpiry
    ping_times: Histogram = attrs.field(factory=Histogram)
    """How long clients take to answer pings."""

    def agree(self, offers: Sequence[Offer]) -> Agreement | None:
        """Return what a client that offers extensions and the server agree to, if anything."""
        if self.compression is None:
            return None
        return agree(
            offers,
            max_window_bits=self.settings.compression_window_bits,
            takeover=self.compression.has_takeover,
        )

    def wire_for(self, agreement: Agreement | None) -> WireFormat:
        """Return the format of clients with such an agreement."""
        if agreement is None or self.compression is None:
            return self.wire
        return self.compression.format(agreement.window)


Answer = Callable[[RecoveryPlan], bytes]
"""Makes the bytes of the answer to a request from the plan of what follows it."""


class Requests:
    """The requests of one client, one after another."""

    __slots__ = ("_names_bandwidth", "_outbox", "_services", "access")

    def __init__(
        self, session: IdentifiedSession | None, outbox: Outbox, services: Services
    ) -> None:
        self._outbox = outbox
        self._services = services
        self._names_bandwidth = False
        """Whether the client has asked for a bandwidth on this connection."""
        self.access = Access(session, outbox, services)

    async def carry_out(self, message: messages.ClientMessage) -> None:
        """Carry out a message and answer it. Raises ProtocolError if that is impossible."""
        match message:
            case messages.Subscribe():
                if (rest := self.subscribe(message)) is not None:
                    await rest
            case messages.Unsubscribe():
                await self._services.loop_budget.wait_for(message.targets)
                self._unsubscribe(message)
            case messages.Resync():
                await self._resync(message)
            case messages.Ping():
                self._send(messages.Pong(message.request_id))
            case messages.SetOptions():
                self._limit_bandwidth(message.max_bandwidth)
                self._send(
                    messages.ConnectionOptions(self._outbox.max_bandwidth, message.request_id)
                )
            case messages.Authenticate():
                await self.access.authenticate(message)
            case messages.RefreshToken():
                await self.access.refresh(message)
            case messages.Reconnect():
                await self.restore(message.session_id, message.positions, message.request_id)
            case _:  # pragma: no cover
                assert_never(message)

    def _send(self, message: messages.ServerMessage) -> None:
        self._outbox.send_control(self._outbox.wire.answer(message))

    @property
    def _subscriptions(self) -> Iterable[Subscription]:
        return self._outbox.subscriptions.values()

    # Options of the connection

    def _limit_bandwidth(self, bytes_per_second: float | None) -> None:
        if bytes_per_second is None:
            return
        self._names_bandwidth = True
        if bytes_per_second != self._outbox.max_bandwidth:
            self._services.hub.fanout.limit_bandwidth(self._outbox, bytes_per_second)
            self._services.sessions.changed(self._outbox.name)

    # Subscribe and unsubscribe

    def subscribe(self, message: messages.Subscribe) -> Awaitable[None] | None:
        """Subscribe to topics, at once if they are live; else return the rest of the work."""
        named, rejected = self._topics(message)
        detail = self._detail(message)
        self._limit_bandwidth(message.max_bandwidth)
        topics = named
        if refused := self.access.forbidden(named):
            rejected += map(forbidden_target, refused)
            held_back = frozenset(refused)
            topics = [topic for topic in named if topic not in held_back]
        options = SubscriptionOptions(
            message.mode,
            frozenset(message.kinds or ()),
            0.0 if message.max_rate is None else 1.0 / message.max_rate,
            snapshot=message.snapshot,
            detail=detail,
        )
        since = message.since or {}
        wants = [Want(topic, options, since.get(topic.target)) for topic in topics]
        room, surplus = self._room_for(wants)
        rejected += [self._no_room(want.topic) for want in surplus]

        forbidden: list[Topic] = []

        def answer(plan: RecoveryPlan) -> bytes:
            positions = {topic.target: at for topic, at in plan.positions.items()}
            return self._outbox.wire.answer(
                Subscribed(
                    message.subscription_type,
                    list(positions),
                    rejected + [forbidden_target(topic) for topic in forbidden],
                    positions,
                    message.request_id,
                )
            )

        return self.enter(room, answer, forbidden)

    def _unsubscribe(self, message: messages.Unsubscribe) -> None:
        named, rejected = self._topics(message)
        topics = [topic for topic in named if not self.access.is_own(topic)]
        rejected += [_kept(topic) for topic in named if topic not in topics]
        self._services.hub.unsubscribe(self._outbox, topics)
        self._services.sessions.changed(self._outbox.name)
        self._send(
            messages.Unsubscribed(
                message.subscription_type,
                [topic.target for topic in topics],
                rejected,
                request_id=message.request_id,
            )
        )

    def _detail(self, message: messages.Subscribe) -> Detail:
        limit = self._services.settings.max_book_levels
        if message.depth is not None and message.depth > limit:
            raise ProtocolError(
                ErrorCode.INVALID_MESSAGE,
                f"a depth of {message.depth}, where {limit} levels are allowed",
                details={"max_book_levels": limit},
                request_id=message.request_id,
            )
        if not message.delta and message.depth is None:
            return WHOLE
        return Detail(message.delta, message.depth)

    async def _resync(self, message: messages.Resync) -> None:
        await self._services.loop_budget.wait_for(message.targets)
        topics, rejected = self._topics(message)
        held = self._services.hub.resync(self._outbox, topics)
        answer = messages.Resynced(
            message.subscription_type,
            [lane.stream.topic.target for lane, _ in held],
            rejected,
            message.request_id,
        )
        values = [(lane, publication) for lane, known in held for publication in known]
        rest = self._send_before_live(self._outbox.wire.answer(answer), values)
        if rest is not None:
            await rest

    def _topics(
        self, message: messages.Subscribe | messages.Unsubscribe | messages.Resync
    ) -> tuple[list[Topic], list[RejectedTarget]]:
        """Return the topics of a request, and its targets that are rejected."""
        limit = self._services.settings.max_targets_per_request
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
            try:
                topics[shared_topic(message.subscription_type, target)] = None
            except (ValueError, TypeError):  # of a list or an object
                problem = target_problem(target) or ""
                rejected.append(RejectedTarget(target, ErrorCode.INVALID_TARGET, problem))
        return list(topics), rejected

    def _room_for(self, wants: Sequence[Want]) -> tuple[Sequence[Want], Sequence[Want]]:
        """Return the wants that fit the connection's limit, and the others, both in order.

        Topics that are held always fit.
        """
        limit = self._services.settings.max_subscriptions
        if len(self._outbox.subscriptions) + len(wants) <= limit:
            return wants, ()  # nearly always
        is_own = self.access.is_own
        held = {subscription.lane.stream.topic for subscription in self._subscriptions}
        room = limit - sum(not is_own(topic) for topic in held)
        admitted, surplus = [], []
        for want in wants:
            new = want.topic not in held
            if not new or room > 0:
                admitted.append(want)
                room -= new
            else:
                surplus.append(want)
        return admitted, surplus

    def _no_room(self, topic: Topic) -> RejectedTarget:
        limit = self._services.settings.max_subscriptions
        return RejectedTarget(
            topic.target,
            ErrorCode.SUBSCRIPTION_LIMIT_EXCEEDED,
            f"a connection holds at most {limit} subscriptions",
        )

    # Restore

    async def restore(
        self,
        session_id: str,
        positions: Mapping[str, Position],
        request_id: RequestId | None = None,
    ) -> None:
        """Restore a session. Raises ProtocolError if it is not known, or cannot be read.

        `positions` (topic as `type:target`) are those that the client names; for other topics the
        last confirmed position of the session is used.
        """
        sessions, name = self._services.sessions, self._outbox.name
        held = [subscription.lane.stream.topic for subscription in self._subscriptions]
        if all(map(self.access.is_own, held)):  # the client has not subscribed to anything
            sessions.suspend(name)
        try:
            await self._restore(session_id, positions, request_id)
        except ProtocolError:
            sessions.resume(name)  # the client will subscribe anew
            raise
        sessions.resume(name)

    async def _restore(
        self,
        session_id: str,
        positions: Mapping[str, Position],
        request_id: RequestId | None,
    ) -> None:
        record = await self._load(session_id, request_id)
        if not self._names_bandwidth:
            self._limit_bandwidth(record.max_bandwidth)
        topics = {held.topic: held for held in record.subscriptions}
        rejected = self.access.forbidden(topics)
        held_back = frozenset(rejected)
        wants = []
        for topic, held in topics.items():
            if topic in held_back:
                continue
            options = SubscriptionOptions(
                held.mode,
                held.kinds,
                held.interval_seconds,
                snapshot=False,
                detail=held.detail,
            )
            named = positions.get(str(topic))
            # A client that names a position has what it was sent up to there.
            wants.append(
                Want(topic, options, held.confirmed, unconfirmed=held.unconfirmed)
                if named is None
                else Want(topic, options, named)
            )
        room, surplus = self._room_for(wants)

        forbidden: list[Topic] = []

        def answer(plan: RecoveryPlan) -> bytes:
            restored: dict[SubscriptionType, list[str]] = {}
            for topic in plan.positions:
                restored.setdefault(topic.subscription_type, []).append(topic.target)
            refused: dict[SubscriptionType, list[RejectedTarget]] = {}
            for topic in rejected + forbidden:
                refused.setdefault(topic.subscription_type, []).append(forbidden_target(topic))
            for want in surplus:
                refusal = self._no_room(want.topic)
                refused.setdefault(want.topic.subscription_type, []).append(refusal)
            return self._outbox.wire.answer(
                Reconnected(
                    session_id=self._outbox.name,
                    restored_subscriptions=restored,
                    missed_messages_count=plan.missed_messages,
                    recovered=plan.recovered and not refused,
                    positions={str(topic): at for topic, at in plan.positions.items()},
                    rejected=refused or None,
                    request_id=request_id,
                )
            )

        if (rest := self.enter(room, answer, forbidden)) is not None:
            await rest

    async def _load(self, session_id: str, request_id: RequestId | None) -> SessionRecord:
        """Return the record of a session. Raises ProtocolError if there is none to be had."""
        record = None
        problem = "this session is not known, or no more; subscribe anew"
        is_possible = len(session_id) <= _MAX_SESSION_ID_CHARACTERS and session_id.isascii()
        if is_possible and session_id != self._outbox.name:
            try:
                record = await self._services.sessions.load(session_id, self._outbox.user_id)
            except StoreUnavailableError:
                problem = "sessions cannot be read now; try again, or subscribe anew"
        if record is None:
            raise ProtocolError(
                ErrorCode.SESSION_RESTORATION_FAILED, problem, request_id=request_id
            )
        return record

    # Entering streams

    def enter(
        self, wants: Sequence[Want], answer: Answer, forbidden: list[Topic]
    ) -> Awaitable[None] | None:
        """Subscribe and answer, at once if the topics are live; else return the rest of the work.

        Topics that the server itself may not read are added to `forbidden` before the answer.
        """
        services = self._services
        if is_heavy(wants) and services.loop_budget.defers(wants):
            return self._enter_later(wants, answer, forbidden)
        topics, since = self._wanted(wants)
        recoveries = services.source.prepare_nowait(topics, since)
        if recoveries is None:
            return self._enter_later(wants, answer, forbidden)
        return self._enter_now(wants, recoveries, answer, forbidden)

    async def _enter_later(
        self, wants: Sequence[Want], answer: Answer, forbidden: list[Topic]
    ) -> None:
        """Wait until the topics are live; fetch missed publications from Redis; then subscribe."""
        topics, since = self._wanted(wants)
        recoveries = await prepare(self._services, topics, since)
        if (rest := self._enter_now(wants, recoveries, answer, forbidden)) is not None:
            await rest

    def _wanted(self, wants: Sequence[Want]) -> tuple[list[Topic], dict[Topic, Position]]:
        """Return the topics of wants, and the positions to recover from."""
        hub = self._services.hub
        since: dict[Topic, Position] = {}
        for want in wants:
            stream = hub.stream(want.topic)
            # A topic that is held already continues unchanged: it has missed nothing. Only the
            # user's own was begun without the position that the client has.
            if want.since is not None and (
                stream not in self._outbox.subscriptions or self.access.is_own(want.topic)
            ):
                since[want.topic] = want.since
        return [want.topic for want in wants], since

    def _enter_now(
        self,
        wants: Sequence[Want],
        recoveries: Mapping[Topic, Recovery],
        answer: Answer,
        forbidden: list[Topic],
    ) -> Awaitable[None] | None:
        """Subscribe, answer, and begin to send the messages before the live flow of each topic.

        Nothing here waits, so no publication comes between the answer and the live flow. Returns
        the rest of the work if the last known values take long.
        """
        forbidden += self._services.source.forbidden([want.topic for want in wants])
        held_back = frozenset(forbidden)
        admitted = [
            want if want.since is None else continued(want, recoveries)
            for want in wants
            if want.topic not in held_back
        ]
        hub, outbox = self._services.hub, self._outbox
        resumed = [want.topic for want in admitted if want.since is not None]
        if resumed := list(filter(self.access.is_own, resumed)):
            hub.unsubscribe(outbox, resumed)  # `subscribe` begins it again at the named position
        plan = subscribe(
            hub, outbox, admitted, max_replay_bytes=self._services.settings.max_replay_bytes
        )
        rest = self._send_before_live(answer(plan), plan.last_values)
        self._services.sessions.changed(outbox.name)
        return rest

    def _send_before_live(
        self, answer: bytes, values: Sequence[LastKnown]
    ) -> Awaitable[None] | None:
        """Send an answer, then last known values, and begin to send missed messages.

        Returns the rest of the work if there are many order books to be cut to a depth.
        """
        making = Walk(whole_in_parts(values))
        parts = iter(making)
        if next(parts, _OVER) is _OVER:
            self._outbox.send_control(answer + self._encoded(making.result))
            self._services.hub.fanout.start_replays(self._outbox)
            return None
        self._outbox.send_control(answer)
        self._services.hub.fanout.cork(self._outbox)
        return self._send_later(making, parts)

    async def _send_later(self, making: Walk[list[Publication]], parts: Iterator[None]) -> None:
        """Make last known values in several turns of the loop, send them, and go on.

        If this is cancelled, the connection ends, and nothing may be sent in front of them.
        """
        loop_budget, fanout = self._services.loop_budget, self._services.hub.fanout
        is_over = False
        while not is_over:
            await trio.lowlevel.checkpoint()
            if loop_budget.is_long:
                await loop_budget.wait(is_heavy=True)
            is_over = next(parts, _OVER) is _OVER
        self._outbox.send_control(self._encoded(making.result))
        fanout.uncork(self._outbox)

    def _encoded(self, values: Iterable[Publication]) -> bytes:
        """Return the bytes of last known values, or those that say where the client is."""
        wire, positions = self._outbox.wire, self._outbox.positions
        return wire.data(list(map(wire.snapshot, values)), positions) or wire.place(positions)


async def prepare(
    services: Services, topics: Sequence[Topic], since: Mapping[Topic, Position]
) -> Mapping[Topic, Recovery]:
    """Prepare topics as `Source.prepare` does, and return in a turn that is not long.

    The caller must not wait before it uses the result.
    """
    hub, loop_budget = services.hub, services.loop_budget
    with hub.awaiting(topics) as streams:
        recoveries = await services.source.prepare(topics, since)
        # Hundreds of clients may have waited for the same topics, or for one reply of Redis.
        if await loop_budget.wait_for(topics) and streams != list(map(hub.stream, topics)):
            # Some were released meanwhile, for lack of room.
            recoveries = await services.source.prepare(topics, since)
    return recoveries


def forbidden_target(topic: Topic) -> RejectedTarget:
    """Return the entry of `rejected` for a topic that may not be had."""
    return RejectedTarget(topic.target, ErrorCode.FORBIDDEN, ERROR_MEANINGS[ErrorCode.FORBIDDEN])


def _kept(topic: Topic) -> RejectedTarget:
    return RejectedTarget(
        topic.target,
        ErrorCode.FORBIDDEN,
        "every connection of a user holds the user's own topic",
    )


def continued(want: Want, recoveries: Mapping[Topic, Recovery]) -> Want:
    """Return what is wanted with the position that the source has found for it."""
    recovery = recoveries.get(want.topic)
    if recovery is None:
        return want if want.since is None else attrs.evolve(want, since=None)
    unavailable = recovery.outcome is RecoveryOutcome.UNAVAILABLE
    return attrs.evolve(want, since=recovery.position, unavailable=unavailable)
