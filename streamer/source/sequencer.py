"""The sequencer of one topic: publications in order, each once, and every hole announced.

There are two kinds of producer. One that does a plain PUBLISH gives no positions: the server
numbers the publications that it reads, in an epoch of its own, and cannot recover those that it
misses. One that uses `streamer.publisher` gives each publication a position, in an epoch that Redis
keeps together with a history, from which missed ones are read. A topic may change from one kind to
the other; clients are sent a gap then, as for any other new epoch.

Theory of operation
-------------------
A sequencer passes a publication on only if it is the next one. Any other position is doubtful: a
hole, a repeat, a producer that restarted, or a faulty publisher. The sequencer holds that
publication and all that arrive after it, and requests the topic's position from Redis
(`Reads.add`). The answer decides:

- Publications in Redis' history that clients have not received are published; those that it no
  longer has become a gap.
- The question carries a digest of the last publication. Redis begins a new epoch if it has another
  publication at that position, or is behind it: it has lost publications that clients have
  received, and its positions would be ambiguous.
- Publications that were held before the question, and are beyond the position in Redis, are
  rejected: producers write position and publication in one step, so none can be ahead of Redis.
  If another server was asked than is heard, the next question goes to a new connection.
- If Redis has no position for the topic, its producers number by themselves. Then only their
  positions count: a hole is a gap, and a step back is a gap into an epoch of another name.

`streamer.source.sequencer_state` has the states, which say what may be missing while publications
are held, and the events between them.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Final, Protocol

import attrs

from streamer.broker.history import Entry, HistoryQuery, TopicHistory
from streamer.hub.publishing import Publishing
from streamer.hub.streams import TopicStream
from streamer.protocol.messages import GapReason, Position
from streamer.protocol.publications import BookChange, DecodedPublication
from streamer.protocol.topics import Kind
from streamer.source.books import BookKeeper
from streamer.source.report import SourceReport
from streamer.source.sequencer_state import TRANSITIONS, Event, ImpossibleTransition, State

TOPIC_HELD_BYTES: Final = 1 << 20
"""Bytes held for one topic while its position is read: some seconds of a busy one."""

TOTAL_HELD_BYTES: Final = 64 << 20
"""Bytes held for all topics together while Redis is slow to answer."""

_HELD_OVERHEAD_BYTES: Final = 300
"""Memory that a held publication takes besides its payload."""

_ENTRIES_IN_PART: Final = 100
"""Entries of a history that are published in one step; each change of a book may take 0.2 ms."""

_LIVE: Final = State.LIVE
"""Compared for each publication: a global is looked up faster than a member of an enum."""


class HeldRoom:
    """Counts the bytes that all sequencers of a server hold."""

    def __init__(
        self, *, topic_bytes: int = TOPIC_HELD_BYTES, total_bytes: int = TOTAL_HELD_BYTES
    ) -> None:
        self.topic_bytes = topic_bytes
        self.total_bytes = total_bytes
        self.used_bytes = 0


class Reads(Protocol):
    """Takes a sequencer's requests to Redis."""

    def add(self, sequencer: Sequencer) -> None:
        """Request the position of a topic: the reader calls `ask`, then `answer`."""

    def announce(self, stream: TopicStream) -> None:
        """Announce to other servers another name by which clients know a stream's epoch."""

    def note_behind(self) -> None:
        """Take note that Redis answered with less than has been received from it."""


DecodeEntry = Callable[[Kind, int, bytes], bytes | None]
"""From kind, sequence and JSON text of a history entry to the JSON for clients; None if invalid."""

_Held = tuple[Kind, DecodedPublication, bytes]


class Sequencer:
    """Passes the publications of one topic to the hub, in order."""

    __slots__ = (
        "_asked",
        "_books",
        "_decode_entry",
        "_epoch",
        "_held",
        "_held_bytes",
        "_last_payload",
        "_publishing",
        "_reads",
        "_recorded",
        "_report",
        "_room",
        "_state",
        "stream",
    )

    def __init__(
        self,
        publishing: Publishing,
        stream: TopicStream,
        *,
        reads: Reads,
        report: SourceReport,
        room: HeldRoom,
        decode_entry: DecodeEntry,
        books: BookKeeper,
    ) -> None:
        """Create it in state OPENING; `open` requests the position."""
        self._publishing = publishing
        self.stream = stream
        self._reads = reads
        self._report = report
        self._room = room
        self._decode_entry = decode_entry
        self._books = books
        self._state = State.OPENING
        self._epoch: str | None = None
        """The producers' name of the epoch; None: they give no positions. Clients may know it by
        another name: `stream.epoch`."""
        self._last_payload: bytes | None = None
        """The last publication as Redis has it, if known; its digest proves the position."""
        self._recorded = False
        """Whether Redis had a position for the topic when it was last asked."""
        self._held: list[_Held | None] = []
        """Publications that wait for the position; None where the connection was lost between."""
        self._held_bytes = 0
        self._asked: int | None = None
        """Length of `_held` when Redis was asked; None while no question is under way."""

    @property
    def state(self) -> State:
        """The state, which only the methods for events change."""
        return self._state

    @property
    def positioned(self) -> bool:
        """Whether the last publication had a position, or Redis has one for the topic."""
        return self._epoch is not None

    def _move(self, event: Event) -> None:
        try:
            self._state = TRANSITIONS[self._state][event]
        except KeyError:
            raise ImpossibleTransition(
                f"{self.stream.topic}: {event.value} while {self._state.value}"
            ) from None

    # Events

    def open(self) -> None:
        """Ask for the position of a new topic."""
        self._reads.add(self)

    def join(self) -> None:
        """Take note that a first client learns the position now."""
        self._move(Event.JOINED)

    def doubt(self) -> None:
        """Read the position again: a client has received more than this server."""
        self._move(Event.DOUBTED)
        self._reads.add(self)

    def lose(self) -> None:
        """Take note that the connection was lost; an answer to an earlier question is void."""
        self._move(Event.LOST)
        self._asked = None
        if self._held and self._held[-1] is not None:
            self._held.append(None)
        self._reads.add(self)

    def close(self) -> None:
        """Drop the held publications: the topic is not wanted any more."""
        self._move(Event.CLOSED)
        self._take_held()
        self._books.forget(self.stream)

    # Publications

    def take(self, kind: Kind, publication: DecodedPublication, payload: bytes) -> None:
        """Pass a publication on, or hold it until its place is known. Hot.

        `payload` is the publication as Redis carried it.
        """
        if self._state is not _LIVE:
            self._hold(kind, publication, payload)
            return
        position = publication.position
        if position is None:
            self._publish_plain(kind, publication)
            return
        stream = self.stream
        if position.epoch == self._epoch or self._names_epoch(position):
            if position.sequence == stream.sequence + 1:
                self._last_payload = payload
                if type(publication.text) is BookChange:
                    self._books.publish(stream, publication.text, position.sequence)
                    return
                self._publishing.publish_positioned(
                    stream, kind, publication.text, position.sequence
                )
                return
            if self._is_repeat(publication, payload):
                self._report.duplicates += 1
                return
        self._move(Event.DOUBTED)
        self._hold(kind, publication, payload)
        self._reads.add(self)

    def _publish_plain(self, kind: Kind, publication: DecodedPublication) -> None:
        if self._epoch is not None:
            self._begin_own_epoch()
        if type(publication.text) is BookChange:
            self._books.publish(self.stream, publication.text, None)
            return
        self._publishing.publish(self.stream, kind, publication.text)

    def _names_epoch(self, position: Position) -> bool:
        """Whether this is the stream's first publication, so that its epoch names the stream's.

        Nothing was published in the epoch that clients know, so no gap is needed.
        """
        if self._epoch is None and position.sequence == 1 and self.stream.sequence == 0:
            self._rename(position.epoch)
            return True
        return False

    def _is_repeat(self, publication: DecodedPublication, payload: bytes) -> bool | None:
        """Whether clients have received this publication; None if that is not known any more."""
        position, stream = publication.position, self.stream
        assert position is not None
        if type(publication.text) is BookChange and position.sequence != stream.sequence:
            return None  # only the book after it is kept
        if position.sequence == stream.sequence and self._last_payload is not None:
            return payload == self._last_payload
        history = stream.history
        index = len(history) - 1 - (stream.sequence - position.sequence)
        if not 0 <= index < len(history):
            return None
        return history[index].text == stream.named(publication.text)

    def _hold(self, kind: Kind, publication: DecodedPublication, payload: bytes) -> None:
        size = len(payload) + _HELD_OVERHEAD_BYTES
        self._held.append((kind, publication, payload))
        self._held_bytes += size
        room = self._room
        room.used_bytes += size
        if self._held_bytes > room.topic_bytes or room.used_bytes > room.total_bytes:
            # Those with a position can be read again; for the others there will be a gap.
            self._move(Event.OVERFLOWED)
            self._take_held()
            if self._asked is not None:
                self._asked = 0

    def _take_held(self) -> list[_Held | None]:
        held, self._held = self._held, []
        self._room.used_bytes -= self._held_bytes
        self._held_bytes = 0
        return held

    # The question and the answer

    def ask(self) -> HistoryQuery:
        """Return the question that Redis has to answer before publications are passed on."""
        self._asked = len(self._held)
        payload = self._last_payload
        return HistoryQuery(
            self.stream.topic,
            Position(self.stream.epoch, self.stream.sequence),
            digest="" if payload is None else _digest(payload),
            may_begin=self._epoch is not None,
            had_position=self._recorded,
        )

    @property
    def is_asked(self) -> bool:
        """Whether an answer to the last question still counts."""
        return self._asked is not None

    def fill_in_part(self, record: TopicHistory) -> bool:
        """Publish some of the publications that are next in the record; return whether any were.

        Thousands take a tenth of a second. Other tasks may run between two calls and before
        `answer`, which publishes the rest; until then, `is_asked` says whether it still counts.
        """
        if record.position.epoch != self.stream.epoch:
            return False
        before = self.stream.sequence
        start = bisect_right(record.entries, before, key=itemgetter(1))
        end = start + _ENTRIES_IN_PART
        if end >= len(record.entries):
            return False
        self._epoch = record.position.epoch
        part = attrs.evolve(record, entries=record.entries[start:end])
        self._report.recovered += self._fill(part, before)
        return self.stream.sequence > before

    def answer(self, record: TopicHistory | None) -> None:
        """Continue from the record in Redis; None: it has no position for the topic."""
        if self._asked is None:
            raise ImpossibleTransition(f"{self.stream.topic}: an answer without a question")
        asked, self._asked = self._asked, None
        if record is None:
            if self._state is State.RECOVERING:
                self._begin_own_epoch()
        elif record.position.epoch == self.stream.epoch:
            self._epoch = record.position.epoch
            self._report.recovered += self._fill(record, record.end)
        else:
            self._change_epoch(record)
        self._recorded = record is not None
        if record is not None and self.stream.sequence < record.position.sequence:
            complete = False
        else:
            complete = self._pass_held_on(record, asked)
        if complete:
            self._move(Event.READ)
        else:
            self._move(Event.PARTLY_READ)
            self._reads.add(self)

    def _fill(self, record: TopicHistory, end: int) -> int:
        """Publish the missed publications up to sequence `end`; those not in the record are a gap.

        Returns how many were published.
        """
        stream = self.stream
        count = 0
        for kind, sequence, payload in record.entries:
            if sequence <= stream.sequence:
                continue
            text = self._decode_entry(kind, sequence, payload)
            if text is None:
                continue
            if sequence > stream.sequence + 1:
                self._skip_to(sequence - 1, record)
            self._publish_at(kind, text, sequence)
            self._last_payload = payload
            count += 1
        if end > stream.sequence:
            self._skip_to(end, record)
        return count

    def _skip_to(self, sequence: int, record: TopicHistory) -> None:
        position = Position(self.stream.epoch, sequence)
        latest = self._valid(entry for entry in record.last if entry[1] <= sequence)
        self._begin(position, latest, reason=GapReason.HISTORY_EXPIRED)

    def _change_epoch(self, record: TopicHistory) -> None:
        stream, position = self.stream, record.position
        start = Position(position.epoch, self._start(record))
        latest = self._latest(record, start.sequence)
        if not stream.subscriptions:
            self._publishing.adopt(stream, start, latest)
        elif (
            position.sequence == 0
            and stream.sequence == 0
            and self._epoch is None
            and self._state is not State.RECOVERING
        ):
            self._rename(position.epoch)
        else:
            self._begin(start, latest)
        self._epoch = position.epoch
        self._last_payload = next(
            (payload for _, number, payload in record.entries if number == stream.sequence), None
        )
        self._fill(record, position.sequence)

    def _start(self, record: TopicHistory) -> int:
        """Return the sequence to begin at in another epoch: before the first one received.

        If the entries do not reach back to it, it is that of the record: publications received
        before are then part of the gap.
        """
        last = record.position.sequence
        first = next(
            (
                position.sequence
                for held in self._held
                if held is not None
                and (position := held[1].position) is not None
                and position.epoch == record.position.epoch
                and position.sequence <= last
            ),
            last + 1,
        )
        known = [sequence for _, sequence, _ in record.entries if sequence >= first]
        # They are in order. One that was held may be of any age, so this makes no list of all.
        return first - 1 if len(known) == last + 1 - first else last

    def _latest(self, record: TopicHistory, upto: int) -> list[Entry]:
        """Return the newest valid entry of each kind that has a last known value, for the hub."""
        latest: dict[Kind, Entry] = {}
        known = 0
        for kind, sequence, payload in record.entries:
            if sequence <= upto and not kind.is_event:
                text = self._decode_entry(kind, sequence, payload)
                if sequence != known + 1 or text is None:
                    # A change that is missing would make a wrong book of the changes after it.
                    latest.pop(Kind.ORDERBOOK, None)
                if type(text) is BookChange:
                    text = self._books.rebuilt(latest.pop(Kind.ORDERBOOK, None), text, sequence)
                if text is not None:
                    latest[kind] = (kind, sequence, text)
                known = sequence
        if known != min(upto, record.position.sequence):
            latest.pop(Kind.ORDERBOOK, None)
        earlier = self._valid(entry for entry in record.last if entry[1] <= upto)
        return sorted([*earlier, *latest.values()], key=itemgetter(1))

    def _valid(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return the valid entries of a record's `last`, for the hub; a change is not a book."""
        decoded = (
            (kind, sequence, self._decode_entry(kind, sequence, payload))
            for kind, sequence, payload in entries
        )
        return [
            (kind, sequence, text)
            for kind, sequence, text in decoded
            if text is not None and type(text) is not BookChange
        ]

    def _pass_held_on(self, record: TopicHistory | None, asked: int) -> bool:
        """Publish the held publications; False if one that came after the question is doubtful."""
        held = self._take_held()
        for index, item in enumerate(held):
            if item is None:
                # Without positions, nothing proves that it follows the one held before.
                if self._epoch is None and self.stream.sequence:
                    self._begin_own_epoch()
                continue
            kind, publication, payload = item
            position = publication.position
            if position is None:
                self._publish_plain(kind, publication)
                continue
            if record is not None and index >= asked and self._is_doubtful(position):
                for later in held[index:]:
                    if later is None:
                        self._held.append(None)
                    else:
                        self._hold(*later)
                return False
            if self._may_pass(publication, payload, record):
                self._last_payload = payload
                self._publish_at(kind, publication.text, position.sequence)
        return True

    def _publish_at(self, kind: Kind, text: bytes, sequence: int) -> None:
        if type(text) is BookChange:
            self._books.publish(self.stream, text, sequence)
        else:
            self._publishing.publish_positioned(self.stream, kind, text, sequence)

    def _is_doubtful(self, position: Position) -> bool:
        if position.epoch == self._epoch or self._names_epoch(position):
            return position.sequence > self.stream.sequence + 1
        return True

    def _may_pass(
        self, publication: DecodedPublication, payload: bytes, record: TopicHistory | None
    ) -> bool:
        """Whether a held publication is passed on next; if its place cannot be known, it is."""
        stream, position = self.stream, publication.position
        assert position is not None
        known = position.epoch == self._epoch or self._names_epoch(position)
        if known and position.sequence == stream.sequence + 1:
            return True
        behind = known and position.sequence <= stream.sequence
        repeat = self._is_repeat(publication, payload) if behind else False
        if repeat or (repeat is None and record is not None):
            self._report.duplicates += 1
            return False
        if record is not None:
            self._reject(position, record.position)
            return False
        if behind:
            reason = (
                f"sequence {position.sequence} of epoch {position.epoch} after {stream.sequence}"
            )
            self._report.step_back(stream.topic, reason)
            # A new epoch, so that clients can distinguish the two publications.
            self._begin(Position(self._publishing.new_epoch(), position.sequence - 1))
        else:
            epoch = stream.epoch if known else position.epoch
            self._begin(Position(epoch, position.sequence - 1))
        self._epoch = position.epoch
        return True

    def _reject(self, position: Position, kept: Position) -> None:
        self._reads.note_behind()
        self._report.reject(
            str(self.stream.topic),
            f"sequence {position.sequence} of epoch {position.epoch} is not the next, and Redis "
            f"is at {kept.sequence} of {kept.epoch}",
        )

    # Changes of epoch

    def _rename(self, epoch: str) -> None:
        self._epoch = epoch
        self._publishing.rename_epoch(self.stream, epoch)
        self._reads.announce(self.stream)

    def _begin_own_epoch(self) -> None:
        self._begin(Position(self._publishing.new_epoch(), 0))
        self._epoch = None

    def _begin(
        self,
        position: Position,
        latest: Iterable[Entry] = (),
        *,
        reason: GapReason = GapReason.SOURCE_RECONNECTED,
    ) -> None:
        self._publishing.start_epoch(self.stream, reason, position, latest)
        self._last_payload = None


def _digest(payload: bytes) -> str:
    """Return the digest of a publication, as Redis' scripts compute it."""
    return hashlib.sha1(payload, usedforsecurity=False).hexdigest()
