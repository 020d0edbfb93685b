"""Read from Redis what clients have missed and the hub no longer keeps, into the hub's history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

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


class MissedReads:
    """Extends histories in the hub by what Redis has before them."""

    def __init__(self, publishing: Publishing, router: Router, positions: PositionReader) -> None:
        self._publishing = publishing
        self._router = router
        self._positions = positions
        self._warn = BoundedLog(log.warning)

    async def read(self, queries: Sequence[HistoryQuery]) -> dict[Topic, Position]:
        """Read the history after positions; return these by the names of their epochs here."""
        sequencers = [self._router.sequencer(query.topic) for query in queries]
        try:
            records = await self._positions.read(queries)
        except RedisConnectionError as error:
            self._warn("history", "history not read", topics=len(queries), reason=str(error))
            return {}
        missed = [
            await self._decoded(query, sequencer, record)
            for query, sequencer, record in zip(queries, sequencers, records, strict=True)
        ]
        answers = {}
        for query, sequencer, record, entries in zip(
            queries, sequencers, records, missed, strict=True
        ):
            answers[query.topic] = query.after
            if sequencer is None or self._router.sequencer(query.topic) is not sequencer:
                continue  # it was released meanwhile
            # The stream may have moved on, and only its present epoch counts.
            if record is None or not record.follows:
                continue
            if record.position.epoch == sequencer.stream.epoch:
                answers[query.topic] = Position(record.position.epoch, query.after.sequence)
                self._extend(sequencer.stream, query.after.sequence, entries)
        return answers

    async def _decoded(
        self, query: HistoryQuery, sequencer: Sequencer | None, record: TopicHistory | None
    ) -> list[Entry]:
        """Return the valid publications that the hub lacks, with a whole book for each change.

        If the book before the first change is not among them, it is searched further back.
        """
        if sequencer is None or record is None or not record.follows:
            return []
        # Without a checkpoint where no book has to be rebuilt: of many clients that ask for the
        # same, the first extends the hub's history, and nothing is left to decode for the others.
        decode, oldest = self._router.validator.decode_entry, _oldest(sequencer.stream)
        entries = [
            (kind, sequence, text)
            for kind, sequence, payload in record.entries
            if sequence < oldest
            and (text := decode(query.topic, kind, sequence, payload)) is not None
        ]
        if not any(type(text) is BookChange for _, _, text in entries):
            return entries
        entries = await self._rebuilt(query.topic, record)
        after = query.after
        if any(type(text) is BookChange for _, _, text in entries) and after.sequence:
            start = Position(after.epoch, max(0, after.sequence - _ENTRIES_BEFORE))
            try:
                (record,) = await self._positions.read([HistoryQuery(query.topic, start)])
            except RedisConnectionError as error:
                self._warn("history", "history not read", topics=1, reason=str(error))
                return []
            if record is None or not record.follows:
                return []
            entries = await self._rebuilt(query.topic, record)
        return [
            entry
            for entry in entries
            if entry[1] > after.sequence and type(entry[2]) is not BookChange
        ]

    async def _rebuilt(self, topic: Topic, record: TopicHistory) -> list[Entry]:
        """Return the valid entries of a record; changes of a book that it has are whole books."""
        decode, books = self._router.validator.decode_entry, self._router.books
        slices = Slices()
        entries: list[Entry] = []
        book: Entry | None = None
        previous = None
        for kind, sequence, payload in record.entries:
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

    def _extend(self, stream: TopicStream, after: int, entries: Sequence[Entry]) -> None:
        """Prepend the entries after `after` to the hub's history, if there is no hole between."""
        oldest = _oldest(stream)
        earlier = [entry for entry in entries if entry[1] < oldest]
        if [sequence for _, sequence, _ in earlier] == list(range(after + 1, oldest)):
            self._publishing.extend_history(stream, earlier)


def _oldest(stream: TopicStream) -> int:
    """Return the sequence from which on the hub has all publications of a topic."""
    return stream.history[0].sequence if stream.history else stream.sequence + 1
