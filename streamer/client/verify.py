"""Verification that no publication of a stream was lost, repeated or reordered unannounced.

A `Verifier` is given the whole conversation, the requests that the client sends and the messages
that it receives, and checks every message against the contract of `sequence`, `previous`, `gap` and
`snapshot`. It does no I/O, so that any client can be checked with it. A violation is counted and
reported; verification continues from the message that caused it.

The rules, for each topic:

- `subscribed` and `reconnected` give the position of the stream. If the request named a position
  (`since`, `positions`), the stream continues from that position instead: the missed messages
  follow first.
- A message follows `previous`, or else `sequence - 1`, and that is the last sequence received.
  Publications between `previous` and `sequence` were merged by policy (or left out by `kinds`).
- After a `gap` the stream continues from the gap's position, in an epoch that may be new. Only a
  gap leads into another epoch or over a hole.
- A `snapshot` is not ahead of the stream, and does not move it.
- A delta changes the last message of its kind, and an order book's checksum is right then. After a
  wrong one, deltas of the topic are not verified until a whole message of the kind has come.
- A message that the client cannot read, but whose position it can, is skipped: the stream continues
  as if it had been received.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from streamer.client.account import Account, Fault, Violation
from streamer.client.decode import Message
from streamer.client.deltas import Deltas, WrongChecksumError
from streamer.client.messages import Data, Unreadable
from streamer.protocol import messages
from streamer.protocol.messages import GapReason, Position
from streamer.protocol.topics import KINDS, Kind, SubscriptionType, Topic, is_target

_CARRIERS: Final[Mapping[str, frozenset[SubscriptionType]]] = {
    model.type: frozenset(type_ for type_, kinds in KINDS.items() if kind in kinds)
    for models in (messages.DATA_MESSAGES, messages.DELTA_MESSAGES)
    for kind, model in models.items()
}
"""The types of topics that carry each type of message."""

_NAMED_BY_MESSAGE: Final[Mapping[str, SubscriptionType]] = {
    message_type: carrier
    for message_type, carriers in _CARRIERS.items()
    for carrier in carriers
    if carrier.names_itself
}
"""The type of topic that a type of message names."""

_DELTA_TYPES: Final = {
    messages.DATA_MESSAGES[kind].type: model.type for kind, model in messages.DELTA_MESSAGES.items()
}
_WHOLE_TYPES: Final = frozenset({*_DELTA_TYPES, *_DELTA_TYPES.values()})
"""The types of prices and order books, whole or not."""

VIOLATIONS_KEPT: Final = 100
"""Violations that are kept in full; further ones are only counted."""

_HOLES_KEPT: Final = 16
"""Holes of one topic that are kept, to distinguish a late message from a repeated one."""


class _Stream:
    """The state of one topic, according to its messages."""

    __slots__ = ("announced", "epoch", "held", "holes", "live", "partial", "unannounced")

    def __init__(self) -> None:
        self.live = False
        """Whether the connection has a subscription to it."""
        self.partial = False
        """Whether the subscription leaves out a kind."""
        self.epoch: str | None = None
        """None before the first position."""
        self.held = 0
        """The last sequence received, or skipped by announcement."""
        self.announced = 0
        """The last sequence that the server has announced: ahead of `held` during a replay."""
        self.unannounced: Position | None = None
        """The position of a stream that does not contain `held`: a gap must lead to it."""
        self.holes: deque[range] = deque(maxlen=_HOLES_KEPT)

    def move(self, position: Position) -> None:
        """Continue from this position, regardless of the former one."""
        if position.epoch != self.epoch:
            self.holes.clear()
        self.epoch = position.epoch
        self.held = self.announced = position.sequence
        self.unannounced = None

    @property
    def is_recovering(self) -> bool:
        return self.live and self.held != self.announced and not self.partial

    @property
    def position(self) -> Position | None:
        return None if self.epoch is None else Position(self.epoch, self.held)


class Verifier:
    """Checks one client's conversation against the contract, over all its connections.

    Call `sent` with every client message, `receive` with every decoded server message, and
    `disconnected` at the end of a connection.
    """

    def __init__(self, on_violation: Callable[[Violation], None] | None = None) -> None:
        self._on_violation = on_violation
        self._streams: dict[Topic, _Stream] = {}
        self._shared: dict[Topic, None] = {}
        """The live topics whose messages do not name them."""
        self._requests: dict[messages.RequestId | None, messages.ClientMessage] = {}
        self._deltas = Deltas()
        self._unknown: set[tuple[Topic, str]] = set()
        """The types of deltas of a topic whose base was lost by a fault that is reported."""
        self.whole: Data | None = None
        """The last data message as a whole; None if that cannot be made of a delta."""
        self._awaited: dict[Topic, None] = {}
        """The topics of the client's user that are still to be restored on this connection."""
        self._received = 0
        self._snapshots = 0
        self._merged = 0
        self._unreadable = 0
        self._last_unreadable: str | None = None
        self._gaps: Counter[GapReason] = Counter()
        self._faults: Counter[Fault] = Counter()
        self._violations: list[Violation] = []

    def account(self) -> Account:
        """Return the account up to now."""
        return Account(
            received=self._received,
            snapshots=self._snapshots,
            merged=self._merged,
            gaps=dict(self._gaps),
            unreadable=self._unreadable,
            last_unreadable=self._last_unreadable,
            outstanding=sum(stream.is_recovering for stream in self._streams.values()),
            violations=self._faults.total(),
            faults=dict(self._faults),
            first_violations=tuple(self._violations),
        )

    def position(self, topic: Topic) -> Position | None:
        """Return the last position of a topic: the one to name in `since` and `reconnect`."""
        stream = self._streams.get(topic)
        return None if stream is None else stream.position

    # The conversation

    def sent(self, message: messages.ClientMessage) -> None:
        """Note a request; its answer is recognised by `request_id`."""
        self._requests[message.request_id] = message

    def disconnected(self) -> None:
        """Note the end of the connection; the positions are kept."""
        self._requests.clear()
        self._shared.clear()
        self._deltas.clear()
        self._unknown.clear()
        self._awaited.clear()
        for stream in self._streams.values():
            stream.live = False

    def greeted(self, greeting: messages.Connected) -> list[Topic]:
        """Note the topics that the server holds for a user; return those that are to be restored.

        The others begin at once: the client has no position in them.
        """
        for name, announced in (greeting.positions or {}).items():
            topic = Topic.parse(name)
            if self.position(topic) is None:
                self._begin(topic, None, announced, partial=False)
            else:
                self._awaited[topic] = None
        return list(self._awaited)

    def is_early(self, message: Data | messages.Gap) -> bool:
        """Whether a message comes before its topic is restored, which then repeats it."""
        if not self._awaited:
            return False
        if isinstance(message, messages.Gap):
            named: tuple[object, object] = (message.subscription_type, message.target)
        else:
            named = (message.extra.get("subscription_type"), message.extra.get("target"))
        return any(named == (topic.subscription_type, topic.target) for topic in self._awaited)

    def receive(self, message: Message) -> Topic | None:
        """Verify a message; return the topic to whose stream it belongs, if any."""
        match message:
            case Data():
                self._received += 1
                self._snapshots += message.snapshot
                topic = self._receive_streamed(message)
                self.whole = None if topic is None else self._apply(topic, message)
                return topic
            case messages.Gap():
                return self._receive_gap(message)
            case messages.Subscribed():
                self._receive_subscribed(message)
            case messages.Unsubscribed():
                self._receive_unsubscribed(message)
            case messages.Reconnected():
                self._receive_reconnected(message)
            case (
                messages.Error()
                | messages.Pong()
                | messages.ConnectionOptions()
                | messages.Resynced()
                | messages.TokenRefreshed()
            ):
                self._requests.pop(message.request_id, None)
            case messages.Authenticated():
                self._receive_authenticated(message)
            case Unreadable():
                self._receive_unreadable(message)
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
            announced = message.positions.get(target)
            self._begin(topic, since.get(target), announced, partial=partial)

    def _receive_authenticated(self, message: messages.Authenticated) -> None:
        self._requests.pop(message.request_id, None)
        for name, announced in message.positions.items():
            stream = self._streams.get(topic := Topic.parse(name))
            if topic not in self._awaited and (stream is None or not stream.live):
                self._begin(topic, None, announced, partial=False)

    def _receive_reconnected(self, message: messages.Reconnected) -> None:
        request = self._requests.pop(message.request_id, None)
        since = request.positions if isinstance(request, messages.Reconnect) else {}
        for subscription_type, targets in message.restored_subscriptions.items():
            for target in targets:
                topic = Topic(subscription_type, target)
                stream = self._streams.get(topic)
                partial = stream is not None and stream.partial
                announced = message.positions.get(str(topic))
                self._begin(topic, since.get(str(topic)), announced, partial=partial)

    def _receive_unsubscribed(self, message: messages.Unsubscribed) -> None:
        self._requests.pop(message.request_id, None)
        for target in message.targets:
            topic = Topic(message.subscription_type, target)
            self._streams.pop(topic, None)
            self._shared.pop(topic, None)
            self._deltas.forget(topic)

    def _begin(
        self, topic: Topic, since: Position | None, announced: Position | None, *, partial: bool
    ) -> None:
        """Begin or resume the stream of a topic on this connection."""
        stream = self._streams.setdefault(topic, _Stream())
        self._awaited.pop(topic, None)
        if since is None and announced is not None:
            unchanged = stream.live and not stream.partial and not partial
            same_epoch = stream.epoch == announced.epoch
            if unchanged and same_epoch and stream.held != announced.sequence:
                detail = f"subscribed again at {announced.sequence}, and {stream.held} is held"
                self._violate(Fault.HOLE, topic, detail)
            stream.move(announced)
        elif since is not None:
            stream.move(since)
            if announced is not None:
                stream.announced = announced.sequence
                # A step back within the epoch means another stream, too.
                if announced.epoch != since.epoch or announced.sequence < since.sequence:
                    stream.unannounced = announced
        stream.live = True
        stream.partial = partial
        if not topic.subscription_type.names_itself:
            self._shared[topic] = None

    # The stream

    def _receive_gap(self, message: messages.Gap) -> Topic:
        topic = Topic(message.subscription_type, message.target)
        self._gaps[message.reason] += 1
        self._deltas.forget(topic)
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

    def _receive_unreadable(self, message: Unreadable) -> None:
        self._unreadable += 1
        self._last_unreadable = message.problem
        if message.type is None:
            self._violate(Fault.NO_MESSAGE, None, message.problem)
        elif message.sequence is not None and message.type in _CARRIERS:
            topic = self._receive_streamed(message)
            if topic is not None and message.type in _WHOLE_TYPES:
                self._deltas.forget(topic)  # a later delta may change what could not be read
                self._unknown.update((topic, of) for of in _WHOLE_TYPES)
        elif message.request_id is not None:
            self._requests.pop(message.request_id, None)

    def _apply(self, topic: Topic, message: Data) -> Data | None:
        """Return the message as a whole; None if its base is not known."""
        try:
            whole = self._deltas.whole(topic, message)
        except WrongChecksumError:
            self._unknown.add((topic, message.type))
            self._violate(Fault.CHECKSUM, topic, f"after {message.type} {message.sequence}")
            return None
        delta_type = _DELTA_TYPES.get(message.type, message.type)
        if whole is not None:
            self._unknown.discard((topic, delta_type))
        elif (topic, delta_type) not in self._unknown:
            self._unknown.add((topic, delta_type))
            self._violate(Fault.BASE, topic, f"{message.type} {message.sequence}")
        return whole

    def _receive_streamed(self, message: Data | Unreadable) -> Topic | None:
        topic = self._find_topic(message)
        stream = None if topic is None else self._streams.get(topic)
        sequence = message.sequence
        assert sequence is not None  # the caller has checked it
        if topic is None or stream is None or not stream.live:
            detail = f"{message.type} {sequence} of {message.about}"
            self._violate(Fault.UNSOLICITED, topic, detail)
        elif message.snapshot:
            if sequence > stream.announced:
                detail = f"{sequence}, and the stream is at {stream.announced}"
                self._violate(Fault.SNAPSHOT, topic, detail)
        else:
            self._advance(topic, stream, sequence, message.follows)
        return topic

    def _advance(self, topic: Topic, stream: _Stream, sequence: int, follows: int) -> None:
        held = stream.held
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
        stream.announced = max(stream.announced, sequence)

    @staticmethod
    def _renamed(stream: _Stream, follows: int) -> bool:
        """Whether the same stream continues under another epoch, which is then adopted.

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
        """Whether all publications after `held`, up to `follows`, are of kinds not subscribed to.

        A recovery may end with such publications, which the client then does not receive.
        """
        return stream.partial and follows == stream.announced

    def _find_topic(self, message: Data | Unreadable) -> Topic | None:
        """Return the topic of a message; None if it can belong to none.

        A message on a stock or a market names its topic. The server adds the topic to others; if it
        has not, the message belongs to the stream whose next message it is.
        """
        own_type = _NAMED_BY_MESSAGE.get(message.type or "")
        own = None
        if own_type is not None and is_target(message.about):
            own = Topic(own_type, message.about)
        if not self._shared:
            return own
        carriers = _CARRIERS.get(message.type or "", frozenset())
        candidates = [topic for topic in self._shared if topic.subscription_type in carriers]
        if not candidates:
            return own
        if own is not None and own in self._streams:
            candidates.insert(0, own)
        named = (message.extra.get("subscription_type"), message.extra.get("target"))
        for topic in candidates:
            if named == (topic.subscription_type, topic.target):
                return topic
        return next((topic for topic in candidates if self._is_next(topic, message)), candidates[0])

    def _is_next(self, topic: Topic, message: Data | Unreadable) -> bool:
        stream = self._streams[topic]
        assert message.sequence is not None
        if message.snapshot:
            return message.sequence <= stream.announced
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
