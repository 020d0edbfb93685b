"""Proof from the messages alone that nothing of a stream was lost in silence.

A `Verifier` is shown the whole conversation, both what the client sends and what it receives, and
holds every message to the contract of `sequence`, `previous`, `gap` and `snapshot`. It does no I/O,
so any client can be checked with it, and it never stops at what is wrong: it counts, tells, and
goes on from what it was given.

The rules, for each topic:

- `subscribed` and `reconnected` set where the stream stands. Where the request named a position
  (`since`, `positions`), the stream goes on from that position instead, since what was missed
  follows, and only then from where it stands.
- A message follows `previous`, or else `sequence - 1`, and that is the sequence held. What lies
  between `previous` and `sequence` was merged by policy (or left out by `kinds`).
- After a `gap` the stream goes on from the gap's position, in an epoch that may be new. There is no
  other way into another epoch, nor over a hole.
- A `snapshot` is not ahead of where the stream stands, and moves nothing.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import attrs

from streamer.client.decode import Message
from streamer.client.messages import Data, MarketStatus, PriceUpdate, Streamed
from streamer.protocol import messages
from streamer.protocol.messages import GapReason, Position
from streamer.protocol.topics import KINDS, Kind, SubscriptionType, Topic, is_target

_SHARED: Final = (SubscriptionType.SECTOR, SubscriptionType.WATCHLIST)
"""Topics whose messages are about any stock, and so do not name them."""

VIOLATIONS_KEPT: Final = 100
"""Told in full; what a broken server does beyond that is only counted."""

_HOLES_KEPT: Final = 16
"""Of one topic, to tell a message that comes late from one that comes again."""


class Fault(enum.StrEnum):
    """How a message can break the contract."""

    HOLE = "unannounced hole"
    REPEAT = "repeat"
    OUT_OF_ORDER = "out of order"
    OVERLAP = "follows what is no longer the last"
    EPOCH = "new epoch without a gap"
    GAP = "gap that goes back"
    SNAPSHOT = "snapshot ahead of its stream"
    UNSOLICITED = "not subscribed"


@attrs.frozen
class Violation:
    """One message that breaks the contract."""

    fault: Fault
    topic: Topic | None
    """None: no topic could be meant by what the message is about."""
    detail: str

    def __str__(self) -> str:
        return f"{self.fault}: {self.topic or 'no topic'}: {self.detail}"


@attrs.frozen
class Account:
    """What a client received, and whether it adds up."""

    received: int
    """Data messages, those of replays and snapshots included."""
    snapshots: int
    merged: int
    """Publications that a newer one stands for, by `previous`: merged by policy, or of kinds that
    the subscription left out."""
    gaps: Mapping[GapReason, int]
    """Holes that the server announced, by reason."""
    outstanding: int
    """Topics of which a recovery has still to bring something, or to announce it as lost."""
    violations: int
    faults: Mapping[Fault, int]
    first_violations: tuple[Violation, ...]

    def __str__(self) -> str:
        gaps = sum(self.gaps.values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.gaps.items()))
        lines = [
            f"received {self.received} ({self.snapshots} snapshots)",
            f"merged by policy {self.merged}",
            f"gaps announced {gaps}" + (f" ({reasons})" if gaps else ""),
        ]
        more = self.violations - len(self.first_violations)
        if self.outstanding:
            lines.append(f"topics not yet recovered {self.outstanding}")
        lines.append(f"violations {self.violations}")
        lines += [f"  {violation}" for violation in self.first_violations]
        lines += [f"  and {more} more"] if more else []
        return "\n".join(lines)


class _Stream:
    """One topic as its messages have told of it."""

    __slots__ = ("epoch", "held", "holes", "live", "partial", "stands", "unannounced")

    def __init__(self) -> None:
        self.live = False
        """Whether the connection has a subscription to it."""
        self.partial = False
        """Whether `kinds` leaves something out."""
        self.epoch: str | None = None
        """None: no position has ever been told."""
        self.held = 0
        """The last sequence received or skipped by announcement."""
        self.stands = 0
        """The last sequence that the server has told of: ahead of `held` during a replay."""
        self.unannounced: Position | None = None
        """Where the stream has gone on, out of reach of what is held: a gap has to say so."""
        self.holes: deque[range] = deque(maxlen=_HOLES_KEPT)

    def move(self, position: Position) -> None:
        """Stand here, whatever was before."""
        if position.epoch != self.epoch:
            self.holes.clear()
        self.epoch = position.epoch
        self.held = self.stands = position.sequence
        self.unannounced = None

    @property
    def is_recovering(self) -> bool:
        return self.live and self.held != self.stands and not self.partial

    @property
    def position(self) -> Position | None:
        return None if self.epoch is None else Position(self.epoch, self.held)


class Verifier:
    """Holds one client's conversation to the contract; it lives as long as the client does.

    Show it every client message with `sent` and every decoded server message with `receive`, and
    tell it of the end of a connection with `disconnected`.
    """

    def __init__(self, on_violation: Callable[[Violation], None] | None = None) -> None:
        self._on_violation = on_violation
        self._streams: dict[Topic, _Stream] = {}
        self._shared: dict[Topic, None] = {}
        """The live ones of such topics."""
        self._requests: dict[messages.RequestId | None, messages.ClientMessage] = {}
        self._received = 0
        self._snapshots = 0
        self._merged = 0
        self._gaps: Counter[GapReason] = Counter()
        self._faults: Counter[Fault] = Counter()
        self._violations: list[Violation] = []

    def account(self) -> Account:
        """The account up to now."""
        return Account(
            received=self._received,
            snapshots=self._snapshots,
            merged=self._merged,
            gaps=dict(self._gaps),
            outstanding=sum(stream.is_recovering for stream in self._streams.values()),
            violations=self._faults.total(),
            faults=dict(self._faults),
            first_violations=tuple(self._violations),
        )

    def position(self, topic: Topic) -> Position | None:
        """The last position held of a topic: what `since` and `reconnect` ask to go on from."""
        stream = self._streams.get(topic)
        return None if stream is None else stream.position

    # The conversation

    def sent(self, message: messages.ClientMessage) -> None:
        """The client sends this; its answer is recognised by `request_id`."""
        self._requests[message.request_id] = message

    def disconnected(self) -> None:
        """The connection is over; the positions are kept, for the next to go on from."""
        self._requests.clear()
        self._shared.clear()
        for stream in self._streams.values():
            stream.live = False

    def receive(self, message: Message) -> Topic | None:
        """Check one message; returns the topic that it belongs to, where it is of a topic."""
        match message:
            case Streamed():
                return self._receive_streamed(message)
            case Data():
                self._received += 1
            case messages.Gap():
                return self._receive_gap(message)
            case messages.Subscribed():
                self._receive_subscribed(message)
            case messages.Unsubscribed():
                self._receive_unsubscribed(message)
            case messages.Reconnected():
                self._receive_reconnected(message)
            case messages.Error() | messages.Pong() | messages.TokenRefreshed():
                self._requests.pop(message.request_id, None)
            case _:
                pass
        return None

    # Answers

    def _receive_subscribed(self, message: messages.Subscribed) -> None:
        request = self._requests.pop(message.request_id, None)
        since: Mapping[str, Position] = {}
        partial = False
        if isinstance(request, messages.Subscribe):
            since = request.since or {}
            partial = _is_partial(request.subscription_type, request.kinds)
        for target in message.targets:
            topic = Topic(message.subscription_type, target)
            stands = message.positions.get(target)
            self._begin(topic, since.get(target), stands, partial=partial)

    def _receive_reconnected(self, message: messages.Reconnected) -> None:
        request = self._requests.pop(message.request_id, None)
        since = request.positions if isinstance(request, messages.Reconnect) else {}
        for subscription_type, targets in message.restored_subscriptions.items():
            for target in targets:
                topic = Topic(subscription_type, target)
                held = self._streams.get(topic)
                partial = held is not None and held.partial
                stands = message.positions.get(str(topic))
                self._begin(topic, since.get(str(topic)), stands, partial=partial)

    def _receive_unsubscribed(self, message: messages.Unsubscribed) -> None:
        self._requests.pop(message.request_id, None)
        for target in message.targets:
            topic = Topic(message.subscription_type, target)
            self._streams.pop(topic, None)
            self._shared.pop(topic, None)

    def _begin(
        self, topic: Topic, since: Position | None, stands: Position | None, *, partial: bool
    ) -> None:
        """The stream begins, or begins again, on this connection."""
        stream = self._streams.setdefault(topic, _Stream())
        if since is None and stands is not None:
            unchanged = stream.live and not stream.partial and not partial
            if unchanged and stream.epoch == stands.epoch and stream.held != stands.sequence:
                detail = f"subscribed again at {stands.sequence}, and {stream.held} is held"
                self._violate(Fault.HOLE, topic, detail)
            stream.move(stands)
        elif since is not None:
            stream.move(since)
            if stands is not None:
                stream.stands = stands.sequence
                # Further back in the same epoch is another past, too.
                if stands.epoch != since.epoch or stands.sequence < since.sequence:
                    stream.unannounced = stands
        stream.live = True
        stream.partial = partial
        if topic.subscription_type in _SHARED:
            self._shared[topic] = None

    # The stream

    def _receive_gap(self, message: messages.Gap) -> Topic:
        topic = Topic(message.subscription_type, message.target)
        self._gaps[message.reason] += 1
        stream = self._streams.get(topic)
        if stream is None or not stream.live:
            self._violate(Fault.UNSOLICITED, topic, f"a gap ({message.reason})")
            return topic
        position = Position(message.epoch, message.sequence)
        if stream.epoch == position.epoch and position.sequence < stream.held:
            detail = f"it resumes at {position.sequence}, and {stream.held} is held"
            self._violate(Fault.GAP, topic, detail)
        stream.move(position)
        return topic

    def _receive_streamed(self, message: Streamed) -> Topic | None:
        self._received += 1
        self._snapshots += message.snapshot
        topic = self._place(message)
        stream = None if topic is None else self._streams.get(topic)
        if topic is None or stream is None or not stream.live:
            detail = f"{message.type} {message.sequence} of {message.about}"
            self._violate(Fault.UNSOLICITED, topic, detail)
        elif message.snapshot:
            if message.sequence > stream.stands:
                detail = f"{message.sequence}, and the stream stands at {stream.stands}"
                self._violate(Fault.SNAPSHOT, topic, detail)
        else:
            self._advance(topic, stream, message)
        return topic

    def _advance(self, topic: Topic, stream: _Stream, message: Streamed) -> None:
        sequence, follows, held = message.sequence, message.follows, stream.held
        if stream.unannounced is not None and not self._renamed(stream, follows):
            detail = f"{sequence} comes after {held} of epoch {stream.epoch}, which has ended"
            self._violate(Fault.EPOCH, topic, detail)
            stream.move(stream.unannounced)
        elif sequence <= held:
            late = any(sequence in hole for hole in stream.holes)
            fault = Fault.OUT_OF_ORDER if late else Fault.REPEAT
            self._violate(fault, topic, f"{sequence} comes after {held}")
            return
        elif follows > held and not self._left_out(stream, follows):
            stream.holes.append(range(held + 1, follows + 1))
            missing = f"{held + 1}" if follows == held + 1 else f"{held + 1} to {follows}"
            self._violate(Fault.HOLE, topic, f"{missing} missing before {sequence}")
        elif follows < held:
            detail = f"{sequence} follows {follows}, and {held} is held"
            self._violate(Fault.OVERLAP, topic, detail)
        self._merged += max(sequence - follows - 1, 0)
        stream.held = sequence
        stream.stands = max(stream.stands, sequence)

    @staticmethod
    def _renamed(stream: _Stream, follows: int) -> bool:
        """Whether the same stream goes on under another epoch, which is then taken over.

        A server gives a topic an epoch of its own until it learns that of the topic's producers.
        """
        assert stream.unannounced is not None
        renamed = follows == stream.held <= stream.unannounced.sequence
        if renamed:
            stream.epoch = stream.unannounced.epoch
            stream.unannounced = None
        return renamed

    @staticmethod
    def _left_out(stream: _Stream, follows: int) -> bool:
        """Whether all between what is held and `follows` is of kinds that were not asked for.

        A recovery may have had nothing of the kinds wanted to bring up to where the stream stood.
        """
        return stream.partial and follows == stream.stands

    def _place(self, message: Streamed) -> Topic | None:
        """The topic of a message.

        A message says what it is about. That is its topic for stocks and markets, but a price on a
        sector or a watchlist is about any stock. Where the server names the topic beside it, that
        decides; else it belongs to the stream that it is the next of.
        """
        market = isinstance(message, MarketStatus)
        own_type = SubscriptionType.MARKET if market else SubscriptionType.STOCK
        own = Topic(own_type, message.about) if is_target(message.about) else None
        if not self._shared or not isinstance(message, PriceUpdate):
            return own
        candidates = list(self._shared)
        if own is not None and own in self._streams:
            candidates.insert(0, own)
        named = (message.extra.get("subscription_type"), message.extra.get("target"))
        for topic in candidates:
            if named == (topic.subscription_type, topic.target):
                return topic
        return next((topic for topic in candidates if self._is_next(topic, message)), candidates[0])

    def _is_next(self, topic: Topic, message: Streamed) -> bool:
        stream = self._streams[topic]
        if message.snapshot:
            return message.sequence <= stream.stands
        return message.follows == stream.held

    def _violate(self, fault: Fault, topic: Topic | None, detail: str) -> None:
        self._faults[fault] += 1
        violation = Violation(fault, topic, detail)
        if len(self._violations) < VIOLATIONS_KEPT:
            self._violations.append(violation)
        if self._on_violation is not None:
            self._on_violation(violation)


def _is_partial(subscription_type: SubscriptionType, kinds: Iterable[Kind] | None) -> bool:
    return kinds is not None and set(kinds) != set(KINDS[subscription_type])
