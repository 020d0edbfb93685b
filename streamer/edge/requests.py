"""What a client asks for, carried out: subscribe, unsubscribe, ping, restore."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, assert_never

import attrs

from streamer.config import Settings
from streamer.edge.loop_budget import LoopBudget
from streamer.edge.sessions import RestorableSessions
from streamer.hub.hub import Hub, SubscriptionRequest
from streamer.hub.outbox import Outbox, Subscription
from streamer.hub.publication import Publication
from streamer.hub.sessions import SessionRecord
from streamer.hub.upstream import Source
from streamer.protocol import messages
from streamer.protocol.codec import encode, utc_timestamp
from streamer.protocol.errors import ErrorCode, ProtocolError
from streamer.protocol.messages import (
    Gap,
    GapReason,
    Position,
    Reconnected,
    RejectedTarget,
    RequestId,
    Subscribed,
)
from streamer.protocol.topics import TARGET_RULE, SubscriptionType, Topic, is_target
from streamer.wire.batch import batch_frames
from streamer.wire.frames import text_frame

_MAX_ECHOED_CHARACTERS: Final = 80
"""Of a rejected target, which goes back to whoever sent it."""

_MAX_SESSION_ID_CHARACTERS: Final = 64
"""More than any that is given out: what is longer is not looked for."""


@attrs.frozen
class Services:
    """What all sessions of a server share."""

    hub: Hub
    settings: Settings
    source: Source
    sessions: RestorableSessions
    loop_budget: LoopBudget


@attrs.frozen
class _Want:
    """A topic to subscribe to, and from where on."""

    request: SubscriptionRequest
    since: Position | None

    @property
    def topic(self) -> Topic:
        return self.request.topic


@attrs.define
class _Entered:
    """How subscribing went, for the answer."""

    positions: dict[Topic, Position] = attrs.field(factory=dict)
    missed_messages: int = 0
    recovered: bool = True


class Requests:
    """The requests of one client, one after another."""

    __slots__ = ("_outbox", "_services", "_wait_room")

    def __init__(
        self, outbox: Outbox, services: Services, wait_room: Callable[[], Awaitable[None]]
    ) -> None:
        """`wait_room` waits until the client has read enough of its answers."""
        self._outbox = outbox
        self._services = services
        self._wait_room = wait_room

    async def carry_out(self, message: messages.ClientMessage) -> None:
        """Do what a message asks and answer it. Raises ProtocolError where it cannot be done."""
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
                await self.restore(message.session_id, message.positions, message.request_id)
            case _:  # pragma: no cover
                assert_never(message)

    def _send(self, message: messages.ServerMessage, following: bytes = b"") -> None:
        frame = text_frame(encode(message, utc_timestamp()))
        self._outbox.send_control(frame + following)

    @property
    def _subscriptions(self) -> Iterable[Subscription]:
        return self._outbox.subscriptions.values()

    # Subscribe and unsubscribe

    async def _subscribe(self, message: messages.Subscribe) -> None:
        topics, rejected = self._topics(message)
        since = message.since or {}
        interval_seconds = 0.0 if message.max_rate is None else 1.0 / message.max_rate
        kinds = frozenset(message.kinds or ())
        wants = [
            _Want(
                SubscriptionRequest(topic, message.mode, kinds, interval_seconds),
                since.get(topic.target),
            )
            for topic in topics
        ]
        room = self._room_for(wants)
        rejected += [self._no_room(want.topic) for want in wants if want not in room]

        def answer(entered: _Entered) -> Subscribed:
            positions = {topic.target: at for topic, at in entered.positions.items()}
            return Subscribed(
                message.subscription_type,
                list(positions),
                rejected,
                positions,
                message.request_id,
            )

        await self._enter(room, answer, snapshot=message.snapshot)

    def _unsubscribe(self, message: messages.Unsubscribe) -> None:
        topics, rejected = self._topics(message)
        self._services.hub.unsubscribe(self._outbox, topics)
        self._services.sessions.changed(self._outbox.name)
        self._send(
            messages.Unsubscribed(
                message.subscription_type,
                [topic.target for topic in topics],
                rejected,
                message.request_id,
            )
        )

    def _topics(
        self, message: messages.Subscribe | messages.Unsubscribe
    ) -> tuple[list[Topic], list[RejectedTarget]]:
        """The topics that a request names, and the targets that name none."""
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

    def _room_for(self, wants: Sequence[_Want]) -> list[_Want]:
        """Those for which the connection has room, in order; what it holds takes none."""
        held = {subscription.lane.stream.topic for subscription in self._subscriptions}
        room = self._services.settings.max_subscriptions - len(held)
        admitted = []
        for want in wants:
            new = want.topic not in held
            if not new or room > 0:
                admitted.append(want)
                room -= new
        return admitted

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
        """Take up a session where it was left. Raises ProtocolError where it is not known.

        `positions` (topic as `type:target`) are what the client says it holds; for the rest it is
        what the session is known to have received.
        """
        record = await self._load(session_id)
        if record is None:
            raise ProtocolError(
                ErrorCode.SESSION_RESTORATION_FAILED,
                "this session is not known, or no more; subscribe anew",
                request_id=request_id,
            )
        wants = [
            _Want(
                SubscriptionRequest(
                    Topic.parse(held.topic),
                    held.mode,
                    frozenset(held.kinds),
                    held.interval_seconds,
                ),
                positions.get(held.topic, held.confirmed),
            )
            for held in record.subscriptions
        ]

        def answer(entered: _Entered) -> Reconnected:
            restored: dict[SubscriptionType, list[str]] = {}
            for topic in entered.positions:
                restored.setdefault(topic.subscription_type, []).append(topic.target)
            return Reconnected(
                session_id=self._outbox.name,
                restored_subscriptions=restored,
                missed_messages_count=entered.missed_messages,
                recovered=entered.recovered,
                positions={str(topic): at for topic, at in entered.positions.items()},
                request_id=request_id,
            )

        await self._enter(self._room_for(wants), answer, snapshot=False)

    async def _load(self, session_id: str) -> SessionRecord | None:
        if session_id == self._outbox.name or len(session_id) > _MAX_SESSION_ID_CHARACTERS:
            return None
        return await self._services.sessions.load(session_id)

    # Entering streams

    async def _enter(
        self,
        wants: Sequence[_Want],
        answer: Callable[[_Entered], Subscribed | Reconnected],
        *,
        snapshot: bool,
    ) -> None:
        """Subscribe, answer, and send what goes before the live flow of each topic.

        That is what was missed since a position, or a gap where it is not known any more, or a
        snapshot. A client that has missed more than it may leave unread gets it in portions, each
        topic going live when its turn comes.
        """
        wants = await self._ready(wants)
        # From here to the answer nothing waits, so that no publication comes between them.
        entered = _Entered()
        now, later = self._plan(wants, entered)
        following = self._register(now, entered, snapshot=snapshot)
        self._send(answer(entered), following)
        while later:
            await self._wait_room()
            # A slow reader may take longer than what it waits for is kept in memory.
            now, later = self._plan(await self._ready(later), _Entered(), counted=True)
            self._outbox.send_control(self._register(now, _Entered(), snapshot=True))
        self._services.sessions.changed(self._outbox.name)

    async def _ready(self, wants: Sequence[_Want]) -> list[_Want]:
        """Wait until the topics are live; fetch what was missed of them where it is kept."""
        hub = self._services.hub
        since: dict[Topic, Position] = {}
        for want in wants:
            stream = hub.stream(want.topic)
            # What is held already goes on as it does: it has missed nothing.
            if want.since is not None and stream not in self._outbox.subscriptions:
                since[want.topic] = want.since
        recoveries = await self._services.source.prepare([want.topic for want in wants], since)
        return [
            attrs.evolve(
                want, since=recoveries[want.topic].position if want.topic in since else None
            )
            for want in wants
        ]

    def _missed(self, want: _Want) -> list[Publication] | None:
        return None if want.since is None else self._services.hub.missed(want.request, want.since)

    def _plan(
        self, wants: Sequence[_Want], entered: _Entered, *, counted: bool = False
    ) -> tuple[list[_Want], list[_Want]]:
        """What to do at once, and what only when the client has read that.

        For the answer all that was missed is counted, once: `counted` says that it has been.
        """
        room = self._services.settings.max_unread_replies_bytes
        now: list[_Want] = []
        later: list[_Want] = []
        for want in wants:
            if later and counted:
                later.append(want)  # its turn comes, and then what it has missed by then
                continue
            missed = self._missed(want)
            if want.since is not None:
                entered.recovered &= missed is not None
                entered.missed_messages += len(missed or ())
            size = sum(len(publication.text) for publication in missed or ())
            if size and now and size > room:
                later.append(want)
                assert want.since is not None
                entered.positions[want.topic] = want.since
            else:
                now.append(want)
                room -= size
        return now, later

    def _register(self, wants: Sequence[_Want], entered: _Entered, *, snapshot: bool) -> bytes:
        """Subscribe, and make the frames that go before the live flow."""
        hub = self._services.hub
        missed = [self._missed(want) for want in wants]
        subscriptions = hub.subscribe(self._outbox, [want.request for want in wants])
        frames: list[bytes] = []
        values: list[bytes] = []
        for want, publications, subscription in zip(wants, missed, subscriptions, strict=True):
            if want.since is not None and publications is not None:
                entered.positions[want.topic] = want.since
                frames.append(hub.replay(subscription, want.since, publications))
                continue
            at = hub.position(subscription)
            entered.positions[want.topic] = at
            if want.since is not None:
                frames.append(_gap_frame(want.topic, want.since, at))
            if snapshot or want.since is not None:
                values += hub.snapshot(subscription)
        return b"".join(frames) + batch_frames(values, utc_timestamp)


def _gap_frame(topic: Topic, since: Position, resumed: Position) -> bytes:
    """Say that what followed `since` is not known any more."""
    same_epoch = since.epoch == resumed.epoch
    gap = Gap(
        topic.subscription_type,
        topic.target,
        GapReason.HISTORY_EXPIRED if same_epoch else GapReason.SOURCE_RECONNECTED,
        resumed.epoch,
        resumed.sequence,
    )
    return text_frame(encode(gap, utc_timestamp()))
