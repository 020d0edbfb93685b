"""Read from Redis what clients have missed and the hub no longer keeps, into the hub's history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import structlog
import trio

from streamer.bounded_log import BoundedLog
from streamer.broker.connect import RedisConnectionError
from streamer.broker.history import Entry, HistoryQuery, TopicHistory
from streamer.hub.publishing import Publishing
from streamer.hub.streams import TopicStream
from streamer.protocol.messages import Position
from streamer.protocol.publications import BookChange
from streamer.protocol.topics import Kind, Topic
from streamer.slices import Slices
from streamer.source.positions import PositionReader
from streamer.source.router import Router
from streamer.source.sequencer import Sequencer

_ENTRIES_BEFORE: Final = 500
"""How many publications before those that a client has missed are searched for a whole order book,
if their producer publishes changes."""

log = structlog.get_logger()


class _Read:
    """One read of a topic's history, and what it answers of those that wait for its end."""

    __slots__ = ("_after", "_epoch", "_follows", "_unread", "finished", "waiting")

    def __init__(self, after: Position) -> None:
        self._after = after
        self._epoch: str | None = None
        self._follows = False
        self._unread = 0
        """How many publications before the hub's history it did not reach."""
        self.finished = trio.Event()
        self.waiting: list[int] = []
        """The sequences, in the same epoch, after which others would read."""

    def note_other_epoch(self) -> None:
        """Note that no position in the epoch can be continued from."""
        self._epoch = self._after.epoch

    def note_read(self, epoch: str, unread: int) -> None:
        """Note the name of the epoch here, and how many publications the read did not reach."""
        self._epoch, self._follows, self._unread = epoch, True, unread

    def answer(self, after: Position) -> Position | None:
        """Return the position by the name of its epoch here; None if it has to be read itself.

        After an answer, the hub has the history after the position if it can be had at all.
        """
        if self._epoch is None:
            return None  # it failed, or was given up
        if self._follows:
            later = after.sequence - self._after.sequence
            # After an earlier position more would have been read; or less, if the read did not
            # reach the hub's history. Then it would have reached further after a later one.
            if later >= self._unread > 0 or (later < 0 and not self._unread):
                return None
        return Position(self._epoch, after.sequence)


class MissedReads:
    """Extends histories in the hub by what Redis has before them.

    When a crowd returns, its members have missed about the same. So a topic is read by one at a
    time, after the earliest position that is waited for; each for itself would be fifty times
    4 MB at once for fifty clients.
    """

    def __init__(self, publishing: Publishing, router: Router, positions: PositionReader) -> None:
        self._publishing = publishing
        self._router = router
        self._positions = positions
        self._under_way: dict[tuple[Topic, str], _Read] = {}
        """By topic and epoch."""
        self._warn = BoundedLog(log.warning)

    async def read(self, since: Mapping[Topic, Position]) -> dict[Topic, Position]:
        """Read the history after positions; return these by the names of their epochs here.

        Those that could not be read are left out.
        """
        answers: dict[Topic, Position] = {}
        wanted = since
        reads: dict[Topic, _Read] = {}
        while wanted and not self._positions.failing:
            own: dict[HistoryQuery, _Read] = {}
            for topic, after in wanted.items():
                read = self._under_way.get((topic, after.epoch))
                if read is None:
                    query = HistoryQuery(topic, _earliest(after, reads.get(topic)))
                    read = own[query] = _Read(query.after)
                else:
                    read.waiting.append(after.sequence)
                reads[topic] = read
            if own:
                await self._carry_out(own)
            for topic, after in wanted.items():
                if not reads[topic].finished.is_set():
                    await reads[topic].finished.wait()
                answer = reads[topic].answer(after)
                if answer is not None:
                    answers[topic] = answer
            wanted = {topic: after for topic, after in wanted.items() if topic not in answers}
        return answers

    async def _carry_out(self, reads: Mapping[HistoryQuery, _Read]) -> None:
        """Make these reads, and wake up those that wait for them, whatever happens."""
        for query, read in reads.items():
            self._under_way[query.topic, query.after.epoch] = read
        try:
            await self._extend_histories(reads)
        finally:
            for query, read in reads.items():
                self._finish(query, read)

    def _finish(self, query: HistoryQuery, read: _Read) -> None:
        if not read.finished.is_set():
            del self._under_way[query.topic, query.after.epoch]
            read.finished.set()

    async def _extend_histories(self, reads: Mapping[HistoryQuery, _Read]) -> None:
        queries = list(reads)
        sequencers = [self._router.sequencer(query.topic) for query in queries]
        try:
            records = await self._positions.read(queries)
        except RedisConnectionError as error:
            self._warn("history", "history not read", topics=len(queries), reason=str(error))
            return
        for query, sequencer, record in zip(queries, sequencers, records, strict=True):
            entries = await self._decoded(query, sequencer, record)
            if entries is not None:
                self._note(query, reads[query], sequencer, record, entries)
            # The others wait for one topic: hundreds that follow may take longer than they wait.
            self._finish(query, reads[query])

    def _note(
        self,
        query: HistoryQuery,
        read: _Read,
        sequencer: Sequencer | None,
        record: TopicHistory | None,
        entries: Sequence[Entry],
    ) -> None:
        read.note_other_epoch()
        if sequencer is None or self._router.sequencer(query.topic) is not sequencer:
            return  # it was released meanwhile
        # The stream may have moved on, and only its present epoch counts.
        stream = sequencer.stream
        if record is None or not record.follows or record.position.epoch != stream.epoch:
            return
        read.note_read(stream.epoch, unread=max(0, _oldest(stream) - 1 - record.end))
        self._extend(stream, entries)

    async def _decoded(
        self, query: HistoryQuery, sequencer: Sequencer | None, record: TopicHistory | None
    ) -> list[Entry] | None:
        """Return the valid publications that the hub lacks, with a whole book for each change.

        If the book before the first change is not among them, it is searched further back; None if
        Redis fails meanwhile.
        """
        if sequencer is None or record is None or not record.follows:
            return []
        oldest = _oldest(sequencer.stream)
        lacking = [entry for entry in record.entries if entry[1] < oldest]
        entries = await self._rebuilt(query.topic, lacking)
        after = query.after
        if after.sequence and any(type(text) is BookChange for _, _, text in entries):
            before = min(_ENTRIES_BEFORE, self._positions.entries_per_read)
            start = Position(after.epoch, max(0, after.sequence - before))
            try:
                (earlier,) = await self._positions.read([HistoryQuery(query.topic, start)])
            except RedisConnectionError as error:
                self._warn("history", "history not read", topics=1, reason=str(error))
                return None
            if earlier is None or earlier.position.epoch != record.position.epoch:
                return []
            # It may end before the record, which then began further back than is read at once.
            leading = [entry for entry in earlier.entries if entry[1] <= after.sequence]
            entries = await self._rebuilt(query.topic, [*leading, *lacking])
        return [
            entry
            for entry in entries
            if entry[1] > after.sequence and type(entry[2]) is not BookChange
        ]

    async def _rebuilt(self, topic: Topic, raw: Iterable[Entry]) -> list[Entry]:
        """Return the valid ones of entries as Redis has them; changes of a known book are whole."""
        decode, books = self._router.validator.decode_entry, self._router.books
        slices = Slices()
        entries: list[Entry] = []
        book: Entry | None = None
        previous = None
        for kind, sequence, payload in raw:
            await slices.end_if_long()
            if previous is not None and sequence != previous + 1:
                book = None
            previous = sequence
            text = decode(topic, kind, sequence, payload)
            if text is None:
                book = None
                continue
            if type(text) is BookChange:
                whole = None if book is None else books.rebuilt(book, text, sequence)
                book = None if whole is None else (kind, sequence, whole)
                text = text if whole is None else whole
            elif kind is Kind.ORDERBOOK:
                book = (kind, sequence, text)
            entries.append((kind, sequence, text))
        return entries

    def _extend(self, stream: TopicStream, entries: Sequence[Entry]) -> None:
        """Prepend to the hub's history the entries that lead up to it without a hole."""
        oldest = _oldest(stream)
        leading: list[Entry] = []
        for entry in reversed(entries):
            if entry[1] == oldest - 1 - len(leading):
                leading.append(entry)
        self._publishing.extend_history(stream, leading[::-1])


def _earliest(after: Position, before: _Read | None) -> Position:
    """Return the earliest position of those that `before` has left without an answer."""
    if before is None:
        return after
    waiting = (Position(after.epoch, sequence) for sequence in before.waiting)
    left = [position for position in waiting if before.answer(position) is None]
    return min([after, *left], key=lambda position: position.sequence)


def _oldest(stream: TopicStream) -> int:
    """Return the sequence from which on the hub has all publications of a topic."""
    return stream.history[0].sequence if stream.history else stream.sequence + 1
