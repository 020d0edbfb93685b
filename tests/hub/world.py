"""A hub with real sockets in virtual time, and a model that knows what each client must receive.

`World` does to a hub what the source, the flush loop, the sessions and their writer tasks do, one
step at a time, in the order in which a test calls it. `Client` reads the other end of the sockets
and checks each message against the topics' logs; it uses only the bytes received and the requests
made.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, cast

import attrs
from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol, Opcode

from streamer.hub.fanout import FlushProgress
from streamer.hub.hub import Hub
from streamer.hub.outbox import Outbox
from streamer.hub.parts import completed
from streamer.hub.recovery import RecoveryPlan
from streamer.hub.recovery import subscribe as begin_recovery
from streamer.hub.renditions import WHOLE, Detail
from streamer.hub.sessions import SessionRecord, decode_record, encode_session
from streamer.hub.streams import LastKnown, TopicStream, whole_in_parts
from streamer.hub.subscription import Subscription, SubscriptionOptions, Want
from streamer.hub.wakeup import Wakeup
from streamer.protocol.errors import TOO_SLOW
from streamer.protocol.messages import (
    GapReason,
    Mode,
    Position,
    Reconnected,
    Resynced,
    ServerMessage,
    Subscribed,
    Unsubscribed,
)
from streamer.protocol.topics import Kind, Topic
from streamer.wire.cursor import OWED_GAP, decode_cursor
from streamer.wire.deflate import WebSocketDeflate
from streamer.wire.events import EventStream
from streamer.wire.format import WireFormat
from streamer.wire.json import WebSocketJson
from tests.helpers.rebuild import WHOLE_TYPES, content, cut, read_exactly, rebuilt
from tests.hub.bodies import body
from tests.hub.positioned import PositionedProducer

TIMESTAMP: Final = "2026-01-02T03:04:05.678Z"

WIRE: Final = WebSocketJson(lambda: TIMESTAMP)

EVENTS: Final = EventStream(lambda: TIMESTAMP)

TOPICS: Final = tuple(map(Topic.parse, ("stock:A", "stock:B", "market:M", "sector:S", "stock:P")))

POSITIONED: Final = TOPICS[-1]
"""The producers of this one place what they publish."""

LINGER_SECONDS: Final = 5.0

HISTORY_LENGTH: Final = 4
"""So little that a client that was away may have missed more."""

_MAX_KEPT: Final = 6

_SEND_BUFFER_BYTES: Final = 1
"""The kernel makes it the least it allows (some 4 KB): full after a message or two."""


@attrs.frozen(eq=False)
class Entry:
    """One publication, or a gap (kind None), of a topic's log."""

    kind: Kind | None
    epoch: str
    sequence: int
    value: int
    """Unique to the publication; -1 for a gap."""

    def follows(self, position: Position) -> bool:
        """Whether it comes after a position of the same epoch."""
        return self.epoch == position.epoch and self.sequence > position.sequence


@attrs.define(eq=False)
class Log:
    """Everything that a topic has carried since a client wanted it."""

    stream: TopicStream
    entries: list[Entry] = attrs.field(factory=list)
    first_epoch: str = attrs.field(init=False)
    cut: int = 0
    """How many of them a flush has taken up."""

    def __attrs_post_init__(self) -> None:
        self.first_epoch = self.stream.epoch

    def epoch(self, index: int) -> str:
        """The epoch that it is in after so many entries."""
        return self.entries[index - 1].epoch if index else self.first_epoch

    def behind(self, position: Position) -> int | None:
        """How many entries lie behind a position; None where a hub cannot say what followed it."""
        last = self.entries[-1].sequence if self.entries else 0
        missed = last - position.sequence
        kept = self.entries[-HISTORY_LENGTH:]
        while kept and None in [entry.kind for entry in kept]:
            kept.pop(0)  # a hole ends what a history can tell
        if position.epoch != self.epoch(len(self.entries)) or missed > len(kept):
            return None
        return len(self.entries) - missed

    def latest(self, before: int, kinds: frozenset[Kind]) -> list[Entry]:
        """The last known value of each kind among the first `before`, oldest first."""
        newest: dict[Kind, Entry] = {}
        for entry in self.entries[:before]:
            if entry.kind is None:
                newest.clear()
            elif entry.kind in kinds:
                newest.pop(entry.kind, None)
                newest[entry.kind] = entry
        return list(newest.values())


@attrs.frozen
class Options:
    """How a client holds a topic."""

    mode: Mode
    kinds: frozenset[Kind]
    interval_seconds: float
    detail: Detail = WHOLE

    def carries(self, entry: Entry) -> bool:
        """Whether the client is to hear of it at all."""
        return entry.kind is None or entry.kind in self.kinds


@attrs.define(eq=False)
class Holding:
    """The messages of one topic that the server owes a client."""

    log: Log
    options: Options
    offered: int
    """How many entries of the log are in the client's account, or came before its time."""


@attrs.frozen(eq=False)
class Ack:
    """The meaning of an answer to `subscribe`, for one topic."""

    log: Log
    index: int
    """How many entries the log had when the server answered."""
    options: Options
    since: Position | None = None
    """The position from which a restored client continues."""
    behind: int | None = None
    """How many entries lie behind that, if it is known."""
    received: int | None = None
    """How many entries lay behind what a restored client had received, if it knows."""


@attrs.define(eq=False)
class View:
    """A client's knowledge of one topic, from the messages that it has received."""

    log: Log
    options: Options
    index: int
    """How many entries lie behind it."""
    epoch: str
    sequence: int
    answered: int = 0
    """How many entries lay before the last answer."""
    narrowed: bool = False
    """Something of earlier options may be missing."""
    replayed: int = 0
    """Up to this entry, everything that it has missed must come, and before anything else."""
    replayed_kinds: frozenset[Kind] = frozenset()
    """The kinds that this holds for: those it asked for when it came back, and ever since."""

    contents: dict[Kind, dict[str, Any]] = attrs.field(factory=dict)
    """The last message of each kind, rebuilt from deltas."""

    @property
    def replaying(self) -> bool:
        """Whether something that it has missed is still to come."""
        missed = self.log.entries[self.index : self.replayed]
        return any(entry.kind in self.replayed_kinds for entry in missed)


class Writes:
    """Writes to sockets, to some of them as under TLS, and the faults of connections."""

    def __init__(self) -> None:
        self.secured: set[int] = set()
        self.lost: set[int] = set()
        """The system takes bytes for these, and they never arrive: the network is gone."""
        self.failing: dict[int, int] = {}
        """How many bytes more are taken for these before writes fail."""
        self._begun: dict[int, tuple[bytes, int]] = {}
        """Writes that the socket has not taken whole, and how much of them it has."""

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        """Write bytes; under TLS either all are taken, or none, and they have to come again."""
        if descriptor not in self.secured:
            return self._write(descriptor, data)
        begun, done = self._begun.pop(descriptor, (b"", 0))
        assert bytes(data[: len(begun)]) == begun, "OpenSSL would refuse this"
        with suppress(BlockingIOError):
            done += self._write(descriptor, data[done:])
        if done < len(data):
            self._begun[descriptor] = bytes(data), done
            raise BlockingIOError
        return done

    def _write(self, descriptor: int, data: bytes | memoryview) -> int:
        if descriptor in self.lost:
            return len(data)
        room_bytes = self.failing.get(descriptor)
        if room_bytes is None:
            return os.write(descriptor, data)
        if room_bytes == 0:
            raise ConnectionResetError
        taken = os.write(descriptor, data[:room_bytes])
        self.failing[descriptor] -= taken
        return taken

    def is_faulty(self, descriptor: int) -> bool:
        """Whether what is written does not arrive, or soon will not."""
        return descriptor in self.lost or descriptor in self.failing

    def forget(self, descriptor: int) -> None:
        """Note that the socket is closed."""
        self.secured.discard(descriptor)
        self.lost.discard(descriptor)
        self.failing.pop(descriptor, None)
        self._begun.pop(descriptor, None)


class Client:
    """One client, its outbox and the session that a real one would have."""

    def __init__(
        self,
        world: World,
        name: str,
        wire: WireFormat,
        *,
        secured: bool,
        max_queued_bytes: int,
        events: bool,
    ) -> None:
        self.world = world
        self.server_end, self.client_end = socket.socketpair()
        self.server_end.setblocking(False)
        self.client_end.setblocking(False)
        self.server_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        descriptor = self.server_end.fileno()
        if secured:
            world.writes.secured.add(descriptor)
        self.events = events
        """Whether it receives server-sent events, with cursors, and no WebSocket frames."""
        self.outbox = Outbox(
            name,
            descriptor,
            self,
            wire,
            max_queued_bytes=max_queued_bytes,
            write=world.writes.write,
        )
        self.name = name
        self.writers = 0
        self.broken = self.overflowed = self.ended = False
        self.holdings: dict[Topic, Holding] = {}
        self.former_options: list[Options] = []
        """While it changes them: what came before is still offered under these."""
        self.offered = 0
        """The model's account of what concerned this client."""
        self.acks: dict[int, dict[Topic, Ack]] = {}
        # On the client's side of the wire:
        self._frames = FrameProtocol(client=True, extensions=_extensions(wire))
        self._message = ""
        self._received_bytes = b""
        self.cursor = ""
        """The id of the last event that has one."""
        self._owed: set[Topic] = set()
        """Topics of which that cursor says that a gap is owed."""
        self.views: dict[Topic, View] = {}
        self.known: dict[Topic, dict[Kind, int]] = {}
        """The value of the last message of each kind, on this connection or on those before it."""
        self.received = self.snapshots = 0
        self.pings_sent = self.pings = 0
        self.close_code: int | None = None
        self._snapshots: list[tuple[Topic, Entry]] = []
        """Must come next, after an answer."""
        self._may_follow: list[tuple[Topic, Entry]] = []
        """Likewise, but of topics that it held before: not where it is behind in them."""
        self._answer_gaps: list[tuple[Topic, Position]] = []
        """Topics whose history after the client's position is not known: a gap must come."""
        self._after_gap: dict[Topic, list[Entry]] = {}
        """Last known values that must come right behind such a gap."""
        self._held_before: set[tuple[Topic, int]] = set()
        """After a resync: the topics and values that it held, of which some are sent again."""
        self.deltas = 0
        self.was_behind = False
        """Merging is allowed: since it last had everything, it was blocked or a flush stretched."""
        self.making: list[LastKnown] | None = None
        """Last known values that follow the last answer and are still being made."""

    # What the outbox reports

    def on_blocked(self) -> None:
        """A writer task would start."""
        self.writers += 1

    def on_broken(self) -> None:
        """The session would end."""
        self.broken = True

    def on_overflow(self) -> None:
        """The session would close."""
        self.overflowed = True
        assert any(
            options.mode is Mode.ALL or Kind.STATUS in options.kinds
            for options in [
                *self.former_options,
                *(holding.options for holding in self.holdings.values()),
            ]
        ), "what may be merged is never too much"

    @property
    def vanished(self) -> bool:
        """Whether the client's end of the connection is gone."""
        return self.client_end.fileno() < 0

    @property
    def is_faulty(self) -> bool:
        """Whether what is written to it does not arrive, or soon will not."""
        return self.world.writes.is_faulty(self.server_end.fileno())

    def has_known_values(self, topic: Topic) -> bool:
        """Whether it has the last known values of all that it wants, up to where it is."""
        view, known = self.views[topic], self.known.get(topic, {})
        return all(
            known.get(cast("Kind", entry.kind)) == entry.value
            for entry in view.log.latest(view.index, view.options.kinds)
        )

    @property
    def listened_to(self) -> bool:
        """Whether a session would still carry out what this client asks."""
        return not (self.ended or self.overflowed or self.broken)

    # The writer task, a step at a time

    def write(self) -> None:
        """One turn of the writer task, if it runs and the socket takes bytes."""
        if not self.writers or self.outbox.closed or self.broken:
            return
        hub = self.world.hub
        due_before = hub.fanout.due_seconds
        woken = self.world.wakeup.count
        if select.select([], [self.server_end], [], 0)[1]:
            hub.fanout.resume(self.outbox)
            self.writers -= not self.outbox.blocked
        due = hub.fanout.due_seconds
        if due is not None and (due_before is None or due < due_before):
            assert self.world.wakeup.count > woken, "the flush loop sleeps too long"

    # The client's side

    def read(self, max_bytes: int = 1 << 20) -> int:
        """Read what has arrived, up to so many bytes."""
        if self.vanished:
            return 0
        try:
            data = self.client_end.recv(max_bytes)
        except BlockingIOError:
            return 0
        self.feed(data)
        return len(data)

    def feed(self, data: bytes) -> None:
        """Take bytes from the wire."""
        if self.events:
            self._feed_events(data)
            return
        self._frames.receive_bytes(data)
        for frame in self._frames.received_frames():
            assert self.close_code is None, "something follows the close frame"
            if frame.opcode is Opcode.PING:
                self.pings += 1
            elif frame.opcode is Opcode.CLOSE:
                code, _ = cast("tuple[int, str]", frame.payload)
                self.close_code = code
            else:
                assert frame.opcode is Opcode.TEXT
                self._message += str(frame.payload)
                if frame.message_finished:
                    message, self._message = read_exactly(self._message), ""
                    self._receive(message)

    def _feed_events(self, data: bytes) -> None:
        *events, self._received_bytes = (self._received_bytes + data).split(b"\n\n")
        for event in events:
            if event == b":":
                self.pings += 1
                continue
            assert self.close_code is None, "something follows the last event"
            if event.startswith(b"id: "):
                self._receive_cursor(event.decode().removeprefix("id: "))
                continue
            text, _, cursor = event.decode().removeprefix("data: ").partition("\nid: ")
            message = json.loads(text)
            if message["type"] == "closed":
                self.close_code = message["code"]
                continue
            self._receive(message)
            if cursor:
                self._receive_cursor(cursor)

    def _receive_cursor(self, cursor: str) -> None:
        """Check that a cursor says exactly what has been received."""
        self.cursor = cursor
        positions = decode_cursor(cursor, TOPICS)
        self._owed = {topic for topic, position in positions.items() if position == OWED_GAP}
        awaited = {topic for topic, _ in self._answer_gaps}
        awaited |= {topic for topic, values in self._after_gap.items() if values}
        assert awaited & positions.keys() <= self._owed, "a gap is to come, and no cursor says so"
        for topic, view in self.views.items():
            # One that narrowed its options is behind where its answer says; it never resumes.
            if topic in positions and topic not in self._owed and not view.narrowed:
                assert positions[topic] == Position(view.epoch, view.sequence)

    def _receive(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "batch":
                assert message["batch_size"] == len(message["messages"]) > 1
                for inner in message["messages"]:
                    self._receive_data(inner)
            case "subscribed":
                self._receive_ack(message)
            case "unsubscribed":
                for target in message["targets"]:
                    topic = Topic(message["subscription_type"], target)
                    self.views.pop(topic, None)
                    self.known.pop(topic, None)
                    self._after_gap.pop(topic, None)
                    self._answer_gaps = [gap for gap in self._answer_gaps if gap[0] != topic]
            case "resynced":
                self._receive_resynced(message)
            case "reconnected":
                self._receive_reconnected(message)
            case "gap":
                self._receive_gap(message)
            case _:
                self._receive_data(message)

    def _receive_ack(self, message: dict[str, Any]) -> None:
        assert not self._snapshots, "snapshots are missing"
        self._may_follow = []
        for topic, ack in self.acks.pop(message["request_id"]).items():
            position = message["positions"][topic.target]
            view = self.views.get(topic)
            entries = ack.log.entries
            if view is None:
                epoch = ack.log.epoch(ack.index)
                known = [e.sequence for e in entries[: ack.index] if e.epoch == epoch]
                relevant = [
                    e.sequence
                    for e in entries[: ack.index]
                    if e.epoch == epoch and ack.options.carries(e)
                ]
                assert position["epoch"] == epoch
                assert max(relevant, default=0) <= position["sequence"] <= max(known, default=0)
                view = View(ack.log, ack.options, ack.index, epoch, position["sequence"])
                self.views[topic] = view
                self._snapshots += self._known(topic, ack)
            else:
                assert view.log is ack.log
                # Entries that its former options left out may come, too, if its position is older.
                here = Position(**position)
                missed = [
                    entry
                    for entry in entries[view.index : ack.index]
                    if view.options.carries(entry)
                    or (ack.options.carries(entry) and entry.follows(here))
                ]
                gap_is_due = topic in [of for of, _ in self._answer_gaps]
                if missed or view.narrowed or gap_is_due:  # it is behind: the answer overtook them
                    assert view.narrowed or here == Position(view.epoch, view.sequence)
                    view.epoch, view.sequence = here.epoch, here.sequence
                    view.narrowed = True
                    # The last value of a kind that is new to it may be older than what it waits
                    # for: it comes first, as the next message after its position.
                    after = (i for i, e in enumerate(entries[: view.index]) if e.follows(here))
                    view.index = next(after, view.index)
                else:
                    assert position["epoch"] == ack.log.epoch(ack.index)
                    view.index, view.sequence = ack.index, position["sequence"]
                    view.narrowed = False
                view.options, view.answered = ack.options, ack.index
                view.replayed_kinds &= ack.options.kinds
                if topic in self._after_gap:
                    self._after_gap[topic] = list(
                        filter(ack.options.carries, self._after_gap[topic])
                    )
                self._may_follow += self._known(topic, ack)

    def _receive_reconnected(self, message: dict[str, Any]) -> None:
        missed, recovered = 0, True
        for topic, ack in self.acks.pop(message["request_id"]).items():
            at = Position(**message["positions"][str(topic)])
            index = ack.index
            if ack.behind is None:
                recovered = False
                self._answer_gaps.append((topic, at))
                self._after_gap[topic] = ack.log.latest(ack.index, ack.options.kinds)
            else:
                assert at == ack.since
                index = ack.behind
                missed += sum(map(ack.options.carries, ack.log.entries[index : ack.index]))
                lost = ack.log.entries[ack.received : index] if ack.received is not None else []
                assert not any(map(ack.options.carries, lost)), "it continues after what it has"
                known = ack.log.latest(index, ack.options.kinds)
                self._may_follow += [(topic, entry) for entry in known]
            assert at.epoch == ack.log.epoch(ack.index)
            self.views[topic] = View(
                ack.log,
                ack.options,
                index,
                at.epoch,
                at.sequence,
                replayed=ack.index,
                replayed_kinds=ack.options.kinds,
            )
        assert (message["missed_messages_count"], message["recovered"]) == (missed, recovered)

    @staticmethod
    def _known(topic: Topic, ack: Ack) -> list[tuple[Topic, Entry]]:
        return [(topic, entry) for entry in ack.log.latest(ack.index, ack.options.kinds)]

    def _receive_resynced(self, message: dict[str, Any]) -> None:
        for target in message["targets"]:
            topic = Topic(message["subscription_type"], target)
            view = self.views[topic]
            if view.options.detail.delta:
                self._held_before |= {(topic, held["value"]) for held in view.contents.values()}
                view.contents.clear()  # a delta without a base sent again will be noticed
            else:
                self._may_follow += [(topic, entry) for entry in view.log.entries]

    def _receive_gap(self, message: dict[str, Any]) -> None:
        topic = Topic(message["subscription_type"], message["target"])
        position = Position(message["epoch"], message["sequence"])
        self.views[topic].contents.clear()
        self.known.pop(topic, None)
        if (topic, position) in self._answer_gaps:
            self._answer_gaps.remove((topic, position))
            return
        self.received += 1
        view = self.views[topic]
        index, entry = next(
            (i, e)
            for i, e in enumerate(view.log.entries)
            if (e.kind, e.epoch, e.sequence) == (None, position.epoch, position.sequence)
            and i >= view.index
        )
        self._advance(view, index, entry)
        view.epoch, view.sequence = message["epoch"], message["sequence"]
        assert view.sequence == entry.sequence

    def _receive_data(self, message: dict[str, Any]) -> None:
        topic, index = self.world.find(message["value"])
        view = self.views.get(topic)
        assert view is not None, "a message of what is not held"
        entry = view.log.entries[index]
        self._rebuild(view, message, entry)
        assert entry.kind is not None
        self.known.setdefault(topic, {})[entry.kind] = entry.value
        assert (entry.value, entry.sequence) == (message["value"], message["sequence"])
        if message.get("snapshot"):
            self.snapshots += 1
            if (topic, message["value"]) in self._held_before:
                return
            if topic not in [of for of, _ in self._answer_gaps] and self._after_gap.get(topic):
                assert self._after_gap[topic].pop(0) == entry
            elif (topic, entry) not in self._may_follow:
                assert self._snapshots, "a snapshot that nothing asked for"
                assert self._snapshots.pop(0) == (topic, entry)
            return
        # In mode all, what was published meanwhile follows what was missed, before other topics.
        if not view.replaying and not (view.replayed and view.options.mode is Mode.ALL):
            assert not self._answer_gaps, "an unannounced hole"
            assert not any(self._after_gap.values()), "a snapshot follows a gap at once"
            assert not self._snapshots, "snapshots follow their answer at once"
            assert not any(v.replaying for v in self.views.values()), "missed messages come first"
        self._held_before.clear()
        self.received += 1
        assert entry.kind in view.options.kinds, "a kind that was not asked for"
        assert entry.epoch == view.epoch, "a message of another epoch than was announced"
        if "previous" in message:
            assert message["previous"] == view.sequence
            assert message["previous"] != entry.sequence - 1, "previous says what goes by itself"
        else:
            assert entry.sequence == view.sequence + 1, "an unannounced hole"
        self._advance(view, index, entry)
        view.sequence = entry.sequence

    def _rebuild(self, view: View, message: dict[str, Any], entry: Entry) -> None:
        """Check that what the client holds after a message is what was published."""
        assert entry.kind is not None
        detail = view.options.detail
        if message["type"] in WHOLE_TYPES:
            assert detail.delta, "a delta that was not asked for"
            assert not message.get("snapshot"), "a snapshot is whole"
            held = rebuilt(view.contents[entry.kind], message)
            self.deltas += 1
        else:
            held = content(message)
        view.contents[entry.kind] = held
        truth = read_exactly(self.world.texts[entry.value])
        assert held == content(cut(truth, detail.depth)) | _naming(message)

    def _advance(self, view: View, index: int, entry: Entry) -> None:
        assert index >= view.index, f"{entry} is a repeat, out of order, or before its time"
        for skipped in view.log.entries[view.index : index]:
            assert skipped.kind is not None, f"{skipped}: a gap that was not announced"
            if view.options.carries(skipped) and not view.narrowed:
                assert skipped.kind is not Kind.STATUS, "a market's status is never merged"
                assert view.options.mode is Mode.LATEST, "mode all never merges"
                assert view.options.interval_seconds or self.was_behind, "nothing was to merge"
        view.index = index + 1

    def has_everything(self) -> bool:
        """Whether nothing is under way to it any more."""
        return not (self.outbox.blocked or self.outbox.statistics().queued)

    def check_up_to_date(self) -> None:
        """A client that reads gets the last value of each kind, and every gap, in the end."""
        assert self.views.keys() == self.holdings.keys()
        assert not self.acks
        assert not self._snapshots
        assert not self._answer_gaps
        assert not any(self._after_gap.values())
        assert not self._owed & self.views.keys(), "everything has come, and a gap is still owed"
        for topic, view in self.views.items():
            # What was published while narrower options held is merged away by what comes after it.
            start = max(view.index, view.answered) if view.narrowed else view.index
            assert not [e for e in view.log.entries[start:] if view.options.carries(e)]
            known = self.known.get(topic, {})
            for entry in view.log.latest(len(view.log.entries), view.options.kinds):
                assert known.get(cast("Kind", entry.kind)) == entry.value, "the last value is old"


def _naming(message: dict[str, Any]) -> dict[str, Any]:
    """The members by which the server names the topic of a sector's message."""
    return {name: message[name] for name in ("subscription_type", "target") if name in message}


@attrs.frozen(eq=False)
class Kept:
    """The record of a session, and the options of its client when it was kept."""

    client: Client
    record: SessionRecord
    options: dict[Topic, Options]


class CountingWakeup(Wakeup):
    """A wake-up that counts."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def set(self) -> None:
        """Count, and wake."""
        self.count += 1
        super().set()


class World:
    """A hub and everything around it."""

    def __init__(
        self,
        *,
        writes_per_turn: int,
        messages_per_flush: int = 1 << 20,
        clock: Callable[[], float] | None = None,
        wires: Sequence[WireFormat] = (WIRE,),
    ) -> None:
        """`wires` are the formats of clients, who take turns."""
        self.now = 1000.0
        self._wires = itertools.cycle(wires)
        self.wakeup = CountingWakeup()
        self.writes = Writes()
        self.hub = Hub(
            epoch="e",
            upstream=self,
            wakeup=self.wakeup,
            clock=clock or (lambda: self.now),
            timestamp=lambda: TIMESTAMP,
            linger_seconds=LINGER_SECONDS,
            history_length=HISTORY_LENGTH,
            max_history_bytes=1 << 20,
            writes_per_turn=writes_per_turn,
            messages_per_flush=messages_per_flush,
            write=self.writes.write,
        )
        self.clients: list[Client] = []
        self.kept: list[Kept] = []
        self.values_take_long = False
        """Whether last known values are made in several turns of the loop."""
        """The last records of sessions, some of clients that have changed since."""
        self.logs: dict[Topic, Log] = {}
        self._values: dict[int, tuple[Topic, int]] = {}
        self.texts: dict[int, bytes] = {}
        """The texts of publications by value, as they were published."""
        self._numbers = itertools.count(1)
        self._flush: Iterator[None] | None = None
        self.progress = FlushProgress()
        self._epochs: set[str] = set()

    # What the hub calls

    def join(self, topic: Topic) -> None:
        """The first client of a topic learns its position."""
        assert topic in self.logs
        if topic == POSITIONED:
            self.positioned.join()

    def want(self, stream: TopicStream) -> None:
        """Begin to keep what the topic carries."""
        assert stream.topic not in self.logs
        assert stream.epoch not in self._epochs
        self._epochs.add(stream.epoch)
        if stream.topic == POSITIONED:
            # No client knows another epoch yet, so that of the producers is taken over.
            epoch = self._new_epoch()
            self.positioned = PositionedProducer(self.hub, stream, epoch, self._came)
            assert stream.epoch == epoch
        self.logs[stream.topic] = Log(stream)

    def release(self, topic: Topic) -> None:
        """Close a topic, which no client wants any more."""
        assert not any(topic in client.holdings for client in self.clients)
        del self.logs[topic]
        if topic == POSITIONED:
            self.positioned.close()

    def find(self, value: int) -> tuple[Topic, int]:
        """Return a publication's topic, and its index in the topic's log."""
        return self._values[value]

    # The source

    def _new_epoch(self) -> str:
        epoch = self.hub.publishing.new_epoch()
        assert epoch not in self._epochs
        self._epochs.add(epoch)
        return epoch

    def _came(self, kind: Kind | None, position: Position, value: int, text: bytes) -> None:
        log = self.logs[POSITIONED]
        if kind is not None:
            self.texts[value] = text
            self._values[value] = POSITIONED, len(log.entries)
        log.entries.append(Entry(kind, position.epoch, position.sequence, value))

    def place(self, kinds: Iterable[Kind], size: int, *, heard: bool) -> None:
        """Producers publish with positions, and the link may lose it."""
        if POSITIONED in self.logs:
            for kind in kinds:
                self.positioned.publish(kind, next(self._numbers), size, heard=heard)

    def recover(self, *, trimmed: bool = False) -> None:
        """The link to the producers is good again: what it lost is read, where it is still kept."""
        if POSITIONED in self.logs:
            if trimmed:
                self.positioned.trim()
            self.positioned.catch_up()

    def begin_epoch(self) -> None:
        """Restart the producers' positions, which the next publication reveals."""
        if POSITIONED in self.logs:
            self.positioned.begin_epoch(self._new_epoch())
            self.place([Kind.PRICE], 0, heard=True)
            self.recover()

    def publish(self, topic: Topic, kind: Kind, size: int) -> None:
        """Publish; without a subscriber the publication has no receiver."""
        log = self.logs.get(topic)
        if log is None:
            return
        value = next(self._numbers)
        last = log.entries[-1] if log.entries else None
        sequence = last.sequence + 1 if last else 1
        self._values[value] = topic, len(log.entries)
        epoch = log.epoch(len(log.entries))
        log.entries.append(Entry(kind, epoch, sequence, value))
        text = self.texts[value] = json.dumps(body(topic, kind, value, size)).encode()
        self.hub.publishing.publish(log.stream, kind, text)

    def lose_source(self, topics: Iterable[Topic], *, times: int = 1) -> None:
        """The source was away, so often, and something of these topics may have been missed."""
        for topic in topics:
            if log := self.logs.get(topic):
                if topic == POSITIONED:
                    self.positioned.lose(times=times)
                    continue
                epoch = self._new_epoch()
                log.entries.append(Entry(None, epoch, 0, -1))
                self.hub.publishing.start_epoch(
                    log.stream, GapReason.SOURCE_RECONNECTED, Position(epoch, 0)
                )

    # The flush loop

    @property
    def flushing(self) -> bool:
        """Whether a flush is under way."""
        return self._flush is not None

    def flush_begin(self, *, stretched: bool) -> None:
        """Begin a flush, up to where it first hands control back."""
        assert not self.flushing
        if stretched:
            for client in self.clients:
                client.was_behind = True
        self._flush = self.hub.fanout.flush(self.progress, stretched=stretched)
        self.flush_step()
        self._cut()

    def _cut(self) -> None:
        for log in self.logs.values():
            if not log.stream.window:  # otherwise it is left to the next flush
                log.cut = len(log.entries)
        for client in self.clients:
            self._offer(client)

    def _offer(self, client: Client, *, all_of_it: bool = False) -> None:
        for holding in client.holdings.values():
            upto = len(holding.log.entries) if all_of_it else holding.log.cut
            new = holding.log.entries[holding.offered : upto]
            client.offered += sum(map(holding.options.carries, new))
            holding.offered = max(holding.offered, upto)

    def flush_step(self) -> None:
        """Continue the flush under way until it next hands control back."""
        assert self._flush is not None
        try:
            next(self._flush)
        except StopIteration:
            self._flush = None

    def flush_finish(self) -> None:
        """Let the flush under way come to its end."""
        while self.flushing:
            self.flush_step()

    # Clients

    def connect(
        self, *, secured: bool = False, max_queued_bytes: int = 1 << 20, events: bool = False
    ) -> Client:
        """A client arrives."""
        client = Client(
            self,
            f"client {next(self._numbers)}",
            EVENTS if events else next(self._wires),
            secured=secured,
            max_queued_bytes=max_queued_bytes,
            events=events,
        )
        self.clients.append(client)
        self.hub.add(client.outbox)
        return client

    def subscribe(self, client: Client, topics: Iterable[Topic], options: Options) -> None:
        """As `edge.session` carries it out, from where it does not wait any more."""
        wants = [
            Want(
                topic,
                SubscriptionOptions(
                    options.mode,
                    options.kinds & frozenset(topic.kinds),
                    options.interval_seconds,
                    detail=options.detail,
                ),
            )
            for topic in topics
        ]
        if not client.listened_to:
            return
        self.values_are_made(client)
        for want in wants:
            self.hub.stream(want.topic)
        request_id = next(self._numbers)
        self._offer(client, all_of_it=True)
        acks: dict[Topic, Ack] = {}
        former = {topic: held.options.kinds for topic, held in client.holdings.items()}
        client.former_options = [held.options for held in client.holdings.values()]
        waiting = {id(publication) for _, publication in client.outbox.backlog._pending.values()}
        for want in wants:
            log = self.logs[want.topic]
            kinds = want.options.kinds or frozenset(want.topic.kinds)
            held = attrs.evolve(options, kinds=kinds)
            client.holdings[want.topic] = Holding(log, held, len(log.entries))
            acks[want.topic] = Ack(log, len(log.entries), held)
        recovery = self._recover(client, wants)
        client.former_options = []
        subscriptions = [client.outbox.subscriptions[self.hub.stream(want.topic)] for want in wants]
        client.offered += sum(_widened(client.outbox, s, former, waiting) for s in subscriptions)
        positions = {topic.target: at for topic, at in recovery.positions.items()}
        client.acks[request_id] = acks
        answer = Subscribed(
            wants[0].topic.subscription_type, list(positions), [], positions, request_id
        )
        self._answer(client, answer, recovery)

    def _recover(self, client: Client, wants: list[Want]) -> RecoveryPlan:
        return begin_recovery(self.hub, client.outbox, wants, max_replay_bytes=1 << 20)

    def _answer(self, client: Client, answer: ServerMessage, recovery: RecoveryPlan) -> None:
        """As `edge.requests` does it."""
        self._send_before_live(client, answer, recovery.last_values)

    def _send_before_live(
        self, client: Client, answer: ServerMessage, values: list[LastKnown]
    ) -> None:
        outbox = client.outbox
        if values and self.values_take_long:
            outbox.send_control(outbox.wire.answer(answer))
            self.hub.fanout.cork(outbox)
            client.making = values
        else:
            outbox.send_control(outbox.wire.answer(answer) + _encoded(outbox, values))
            self.hub.fanout.start_replays(outbox)

    def values_are_made(self, client: Client) -> None:
        """Last known values follow an answer to a client, in a later turn of the loop."""
        values, client.making = client.making, None
        if values is not None and client.listened_to:
            client.outbox.send_control(_encoded(client.outbox, values))
            self.hub.fanout.uncork(client.outbox)

    def unsubscribe(self, client: Client, topics: list[Topic]) -> None:
        """As `edge.session` carries it out."""
        if not client.listened_to:
            return
        self.values_are_made(client)
        self.hub.unsubscribe(client.outbox, topics)
        for topic in topics:
            client.holdings.pop(topic, None)
            answer = Unsubscribed(topic.subscription_type, [topic.target], [])
            client.outbox.send_control(client.outbox.wire.answer(answer))

    def resync(self, client: Client, topics: Sequence[Topic]) -> None:
        """As `edge.requests` carries it out, for topics of one type."""
        if not client.listened_to:
            return
        self.values_are_made(client)
        held = self.hub.resync(client.outbox, topics)
        values = [(lane, publication) for lane, known in held for publication in known]
        (subscription_type,) = {topic.subscription_type for topic in topics}
        answer = Resynced(subscription_type, [lane.stream.topic.target for lane, _ in held], [])
        self._send_before_live(client, answer, values)

    def ping(self, client: Client) -> None:
        """The heartbeat."""
        client.pings_sent += 1
        self.hub.mark_ping(client.outbox)
        client.outbox.send_control(client.outbox.wire.ping(b""))

    def pong(self, client: Client) -> None:
        """The client answers the last ping, if that has arrived: so has what is then confirmed."""
        if client.pings_sent and client.pings == client.pings_sent and client.listened_to:
            self.hub.mark_pong(client.outbox)
            # What it subscribed to anew begins where its answer says, which is still on its way.
            unanswered = {topic for acks in client.acks.values() for topic in acks}
            for subscription in client.outbox.subscriptions.values():
                topic = subscription.lane.stream.topic
                view = client.views.get(topic)
                confirmed = subscription.confirmed
                if topic not in unanswered and view is not None and view.epoch == confirmed.epoch:
                    assert confirmed.sequence <= view.sequence, "confirmed and not received"

    def save(self, client: Client) -> Kept:
        """Keep the record of a client's session, as it is saved while the client is connected."""
        options = {topic: holding.options for topic, holding in client.holdings.items()}
        record = decode_record(encode_session(client.outbox))
        kept = Kept(client, record, options)
        self.kept = [*self.kept, kept][-_MAX_KEPT:]
        return kept

    def restore(
        self, old: Client, *, own_positions: bool, secured: bool, noticed: bool = True
    ) -> None:
        """A client is gone and comes back as another; the server may not have `noticed`."""
        kept = self.save(old)
        if noticed:
            self.disconnect(old)
        else:
            self.lose(old)
        self.restore_kept(kept, own_positions=own_positions, secured=secured)

    def restore_kept(self, kept: Kept, *, own_positions: bool, secured: bool) -> None:
        """A client comes back some time after its record was kept, as `edge.requests` does it.

        It has not received more than what it has read of its former connection. One that receives
        events has no session: it resumes from its cursor, and asks anew for what that lacks.
        """
        old = kept.client
        if old in self.clients:
            self.lose(old)
        client = self.connect(secured=secured, events=old.events)
        resumed = decode_cursor(old.cursor, TOPICS) if old.cursor else {}
        anew: list[Topic] = []
        wants: list[Want] = []
        acks: dict[Topic, Ack] = {}
        for held in kept.record.subscriptions:
            topic, options = held.topic, kept.options[held.topic]
            self.hub.stream(topic)
            log = self.logs[topic]
            view = old.views.get(topic)
            if view is not None and (view.narrowed or view.options != options):
                view = None
            since, unconfirmed = held.confirmed, held.unconfirmed
            if old.events:
                if view is None or topic not in resumed:
                    anew.append(topic)
                    continue
                since, unconfirmed = resumed[topic], None
            elif view is not None and own_positions and old.has_known_values(topic):
                since, unconfirmed = Position(view.epoch, view.sequence), None
            held_options = SubscriptionOptions(
                held.mode,
                frozenset(held.kinds),
                held.interval_seconds,
                snapshot=False,
                detail=held.detail,
            )
            wants.append(Want(topic, held_options, since, unconfirmed=unconfirmed))
            received = view.index if view is not None and view.log is log else None
            acks[topic] = Ack(log, len(log.entries), options, since, log.behind(since), received)
            client.holdings[topic] = Holding(log, options, len(log.entries))
            client.known[topic] = dict(old.known.get(topic, {}))
        recovery = self._recover(client, wants)
        request_id = next(self._numbers)
        client.acks[request_id] = acks
        answer = Reconnected(
            session_id=client.name,
            restored_subscriptions={},
            missed_messages_count=recovery.missed_messages,
            recovered=recovery.recovered,
            positions={str(topic): at for topic, at in recovery.positions.items()},
            request_id=request_id,
        )
        self._answer(client, answer, recovery)
        for topic in anew:
            self.subscribe(client, [topic], kept.options[topic])

    def end(self, client: Client) -> None:
        """The server gives a client up, and tells it why."""
        if not client.ended:
            client.ended = True
            self.save(client)
            self.hub.retire(client.outbox, TOO_SLOW.reason)
            client.holdings.clear()
            client.outbox.send_control(client.outbox.wire.close(TOO_SLOW.code, TOO_SLOW.reason))

    def vanish(self, client: Client) -> None:
        """Close a client's end of the connection without notifying the hub."""
        client.client_end.close()

    def lose(self, client: Client) -> None:
        """The network of a client is gone: what is written is taken, and never arrives."""
        self.writes.lost.add(client.server_end.fileno())

    def fail(self, client: Client, after_bytes: int) -> None:
        """Writes to a client fail once so many bytes more have been taken."""
        failing, descriptor = self.writes.failing, client.server_end.fileno()
        failing[descriptor] = min(failing.get(descriptor, after_bytes), after_bytes)

    def disconnect(self, client: Client) -> None:
        """A session is over."""
        if not client.ended:
            self.save(client)
        self.hub.remove(client.outbox)
        client.holdings.clear()
        self.clients.remove(client)
        self.check_account(client)
        assert client.outbox.statistics().queued == 0
        self.writes.forget(client.server_end.fileno())
        client.server_end.close()
        client.client_end.close()

    def close(self) -> None:
        """Give the sockets back, whatever has happened."""
        for client in self.clients:
            self.writes.forget(client.server_end.fileno())
            client.server_end.close()
            client.client_end.close()

    # What must always be true

    def check_account(self, client: Client) -> None:
        """Check that each message offered is delivered, merged, dropped for a reason, or waits."""
        account = client.outbox.statistics()
        assert account.offered == (
            account.delivered + account.conflated + sum(account.dropped.values()) + account.queued
        )
        assert min(account.delivered, account.conflated, account.queued_bytes) >= 0
        if not self.flushing and not client.broken:
            assert account.offered == client.offered

    def check(self) -> None:
        """Check the invariants that hold between any two steps."""
        for client in self.clients:
            self.check_account(client)
            if client.outbox.blocked or client.outbox.corked:
                client.was_behind = True
            if not client.broken:
                assert client.writers == client.outbox.blocked
        statistics = self.hub.statistics()
        by_type = statistics.subscriptions_by_type
        held = [topic for client in self.clients for topic in client.holdings]
        assert sum(by_type.values()) == len(held)
        for topic in TOPICS:
            names = [client.name for client in self.clients if topic in client.holdings]
            assert self.hub.subscribers(topic) == names
        assert statistics.topics == len(self.logs)

    def settle(self) -> None:
        """All clients read, and time passes, until there is nothing more to send."""
        self.flush_finish()
        self.recover()
        for client in [c for c in self.clients if c.broken or c.vanished or c.is_faulty]:
            self.disconnect(client)
        for _ in range(200):
            busy = False
            for client in self.clients:
                self.values_are_made(client)
                if client.overflowed:
                    self.end(client)
                busy |= client.read() > 0 or client.outbox.blocked
                client.write()
            due = self.hub.fanout.due_seconds
            if self.hub.fanout.dirty or due is not None:
                self.now = max(self.now, due or 0.0)
                self.flush_begin(stretched=False)
                self.flush_finish()
                busy = True
            self.check()
            if not busy:
                break
        else:
            raise AssertionError("there is always something more to send")
        for client in self.clients:
            assert client.has_everything()
            client.was_behind = False
            if client.ended:
                assert client.close_code == TOO_SLOW.code
            else:
                client.check_up_to_date()
                for view in client.views.values():
                    view.narrowed, view.index = False, len(view.log.entries)
                account = client.outbox.statistics()
                sent = account.delivered + account.replayed
                # A last known value that waited behind a gap is in the account, too.
                assert client.received <= sent <= client.received + client.snapshots

    def empty(self) -> None:
        """When all have gone and the linger time is over, nothing of them remains."""
        for client in tuple(self.clients):
            self.disconnect(client)
        self.now += LINGER_SECONDS
        self.hub.release_unused()
        assert not self.logs
        statistics = self.hub.statistics()
        assert not any(statistics.subscriptions_by_type.values())
        assert (statistics.topics, statistics.groups, statistics.messages_queued) == (0, 0, 0)
        assert self.hub.fanout.due_seconds is None


def _encoded(outbox: Outbox, values: list[LastKnown]) -> bytes:
    """As `edge.requests` encodes last known values."""
    snapshots = list(map(outbox.wire.snapshot, completed(whole_in_parts(values))))
    return outbox.wire.data(snapshots, outbox.positions) or outbox.wire.place(outbox.positions)


def _extensions(wire: WireFormat) -> list[Extension]:
    """A client's side of the compression: one window for all that it receives."""
    if not isinstance(wire, WebSocketDeflate):
        return []
    extension = PerMessageDeflate()
    extension.finalize("permessage-deflate; client_no_context_takeover")
    return [extension]


def _widened(
    outbox: Outbox,
    subscription: Subscription,
    former: dict[Topic, frozenset[Kind]],
    waiting: set[int],
) -> int:
    """The last values of kinds that are new to a client which is behind wait for it as well."""
    stream = subscription.lane.stream
    added = subscription.lane.kinds - former.get(stream.topic, subscription.lane.kinds)
    latest = [stream.latest[kind] for kind in added if kind in stream.latest]
    replays = outbox.backlog._replays
    missed = replays.missed(subscription) if replays else ()
    return sum(
        (subscription.epoch != stream.epoch or p.sequence > subscription.position)
        and id(p) not in waiting
        and not any(other is p for other in missed)
        for p in latest
    )
