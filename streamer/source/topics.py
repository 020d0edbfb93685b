"""Open and close topics on demand, and recover the publications that clients have missed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NoReturn

import structlog
import trio

from streamer.bounded_log import BoundedLog
from streamer.broker.connect import RedisConnectionError
from streamer.broker.history import Entry, HistoryQuery, TopicHistory
from streamer.hub.publishing import Publishing
from streamer.hub.streams import TopicStream
from streamer.hub.upstream import Recovery, RecoveryOutcome
from streamer.protocol.messages import Position
from streamer.protocol.publications import BookChange
from streamer.protocol.topics import Kind, Topic
from streamer.slices import Slices
from streamer.source.demand import Joined, Released, TopicDemand, Wanted
from streamer.source.positions import Bus, PositionReader, channels_of
from streamer.source.reads import TopicReads
from streamer.source.router import Router
from streamer.source.sequencer import Sequencer
from streamer.source.sequencer_state import State

_ENTRIES_BEFORE: Final = 500
"""How many publications before those that a client has missed are searched for a whole order book,
if their producer publishes changes."""

_PATIENCES: Final = 4
"""How often a client's wait may take its whole time, if Redis answers other questions meanwhile."""

log = structlog.get_logger()


class TopicSource:
    """The source as the sessions see it (`streamer.hub.upstream.Source`)."""

    def __init__(
        self,
        publishing: Publishing,
        demand: TopicDemand,
        router: Router,
        bus: Bus,
        *,
        reads: TopicReads,
        positions: PositionReader | None,
        subscribe_timeout_seconds: float,
    ) -> None:
        """`positions` is None if none are stored, as with the bus inside the process."""
        self._publishing = publishing
        self._demand = demand
        self._router = router
        self._reads = reads
        self._bus = bus
        self._positions = positions
        self._subscribe_timeout_seconds = subscribe_timeout_seconds
        self._warn = BoundedLog(log.warning)

    async def run(self) -> NoReturn:
        """Open and close topics as they are wanted."""
        while True:
            await self._demand.wait()
            self.follow_demand()

    def follow_demand(self) -> None:
        """Open and close topics for the demand recorded up to now."""
        for change in self._demand.take():
            match change:
                case Wanted(stream):
                    self._router.open(stream)
                    self._bus.subscribe(channels_of(stream.topic))
                case Joined(topic):
                    self._router.join(topic)
                case Released(topic):
                    self._router.close(topic)
                    self._bus.unsubscribe(channels_of(topic))

    def prepare_nowait(
        self, topics: Collection[Topic], since: Mapping[Topic, Position]
    ) -> dict[Topic, Recovery] | None:
        """See `streamer.hub.upstream.Source`."""
        self.follow_demand()
        self._check_positions_ahead(since)
        if not self._are_ready(topics, since) or self._questions(since):
            return None
        return {topic: self._recovery(topic, None, at) for topic, at in since.items()}

    async def prepare(
        self, topics: Collection[Topic], since: Mapping[Topic, Position]
    ) -> dict[Topic, Recovery]:
        """See `streamer.hub.upstream.Source`."""
        self.follow_demand()
        self._check_positions_ahead(since)
        answers: dict[Topic, Position] = {}
        for _ in range(_PATIENCES):
            asked: list[HistoryQuery] = []
            began_seconds = trio.current_time()
            with trio.move_on_after(self._subscribe_timeout_seconds) as patience:
                await self._wait_ready(topics, since)
                asked = self._questions(since)
                if asked:
                    answers = await self._read_missed(asked)
            # Without a position it can miss nothing: a later gap serves it better than no answer.
            if not patience.cancelled_caught or not since or self._positions is None:
                break
            if self._positions.answered_seconds < began_seconds:
                if asked:
                    self._positions.note_failure()
                break
            # Redis answers: a storm of clients is what takes so long, and this one has its turn.
        self.follow_demand()
        return {
            topic: self._recovery(topic, answers.get(topic), position)
            for topic, position in since.items()
        }

    def forbidden(self, topics: Iterable[Topic]) -> list[Topic]:
        """See `streamer.hub.upstream.Source`."""
        if not self._bus.refuses_some:
            return []
        is_refused = self._bus.is_refused
        return [topic for topic in topics if any(map(is_refused, channels_of(topic)))]

    def _recovery(self, topic: Topic, answer: Position | None, since: Position) -> Recovery:
        sequencer = self._router.sequencer(topic)
        position = since if answer is None else answer
        if sequencer is None:
            outcome = RecoveryOutcome.UNAVAILABLE
        elif self._is_known(sequencer, position):
            outcome = RecoveryOutcome.RECOVERED
        elif self._is_live(sequencer) and (answer is not None or not sequencer.positioned):
            outcome = RecoveryOutcome.EXPIRED
        else:
            outcome = RecoveryOutcome.UNAVAILABLE
        return Recovery(outcome, position)

    # Readiness of topics

    async def _wait_ready(self, topics: Collection[Topic], since: Mapping[Topic, Position]) -> None:
        """Wait until no publication to these topics can be missed.

        While the source is away, only topics with a position that only the source knows are waited
        for: a subscription with a later gap serves a client better than no answer.
        """
        while not self._are_ready(topics, since):
            await self._reads.wait_progress()

    def _are_ready(self, topics: Collection[Topic], since: Mapping[Topic, Position]) -> bool:
        for topic in topics:
            sequencer = self._router.sequencer(topic)
            if not (
                sequencer is None
                or sequencer.state is State.LIVE
                or self._may_go_on(sequencer, since.get(topic))
            ):
                return False
        return True

    def _may_go_on(self, sequencer: Sequencer, since: Position | None) -> bool:
        """Whether a client need not wait until a topic is live."""
        if since is None:
            return not self._bus.connected
        return self._is_known(sequencer, since)

    def _is_live(self, sequencer: Sequencer) -> bool:
        return sequencer.state is State.LIVE

    def _is_known(self, sequencer: Sequencer, since: Position) -> bool:
        return sequencer.stream.count_missed(since) is not None

    def _check_positions_ahead(self, since: Mapping[Topic, Position]) -> None:
        """Read topics again if a client has received more of them: another server was faster."""
        for topic, position in since.items():
            sequencer = self._router.sequencer(topic)
            if sequencer is not None and sequencer.positioned:
                stream = sequencer.stream
                if position.epoch == stream.epoch and position.sequence > stream.sequence:
                    sequencer.doubt()

    # Missed publications

    def _questions(self, since: Mapping[Topic, Position]) -> list[HistoryQuery]:
        """Queries to Redis for the history after positions that the hub no longer keeps."""
        if self._positions is None or self._positions.failing:
            return []
        return [
            HistoryQuery(topic, position)
            for topic, position in since.items()
            if (sequencer := self._router.sequencer(topic)) is not None
            and sequencer.positioned
            and self._is_live(sequencer)
            and not self._is_known(sequencer, position)
        ]

    async def _read_missed(self, queries: Sequence[HistoryQuery]) -> dict[Topic, Position]:
        """Read the history after positions; return these by the names of their epochs here."""
        assert self._positions is not None  # without it, nothing is asked
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
            assert self._positions is not None  # it has read the record
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
