"""Read positions and histories from Redis for the topics that need them.

A topic needs it when it is new, when the source was lost, and when a publication arrived that does
not follow the last one. Its sequencer adds it to the `ReadQueue`; the `PositionReader` reads many
topics in one round trip, and tries again for as long as Redis does not answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
from typing import Final, NoReturn, Protocol

import structlog
import trio

from streamer.bounded_log import BoundedLog
from streamer.broker.connect import RedisConnectionError
from streamer.broker.history import HistoryQuery, RedisHistory, TopicHistory, Unanswered
from streamer.protocol.topics import Topic
from streamer.slices import Slices
from streamer.source.reads import ReadQueue
from streamer.source.sequencer import Sequencer

_TOPICS_PER_READ: Final = 100
"""Topics whose positions are read in one round trip."""

_RETRY_SECONDS: Final = 0.2
"""The pause before positions that could not be read are requested again."""

_Record = TopicHistory | Unanswered | None
_Read = Callable[[Sequence[HistoryQuery], str], Awaitable[list[_Record]]]

log = structlog.get_logger()


class Bus(Protocol):
    """A carrier of channels: Redis, or the bus inside the process."""

    @property
    def connected(self) -> bool:
        """Whether publications arrive."""

    def subscribe(self, channels: Iterable[str]) -> None:
        """Subscribe to channels."""

    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Unsubscribe from channels."""

    def is_settled(self, channels: Iterable[str]) -> bool:
        """Whether no publication to these channels can be missed, except to refused ones."""

    async def wait_answer(self) -> None:
        """Wait until one more channel is settled."""

    @property
    def refuses_some(self) -> bool:
        """Whether any wanted channel may not be read."""

    def is_refused(self, channel: str) -> bool:
        """Whether a wanted channel may not be read."""


def channels_of(*topics: Topic) -> list[str]:
    """Return the channels of topics."""
    return [topic.channel(kind) for topic in topics for kind in topic.kinds]


class PositionReader:
    """Reads the topics in a `ReadQueue`, and the publications that clients have missed."""

    def __init__(
        self,
        queue: ReadQueue,
        bus: Bus,
        history: RedisHistory,
        *,
        new_epoch: Callable[[], str],
        subscribe_timeout_seconds: float,
    ) -> None:
        """`new_epoch` returns an unused epoch, to begin after Redis has lost data."""
        self._queue = queue
        self._bus = bus
        self._history = history
        self._new_epoch = new_epoch
        self._subscribe_timeout_seconds = subscribe_timeout_seconds
        self._warn = BoundedLog(log.warning)
        self._failed_seconds = float("-inf")
        self.answered_seconds = float("-inf")
        """When Redis answered last, on trio's clock."""

    @property
    def failing(self) -> bool:
        """Whether Redis did not answer lately, so that callers should not wait for it again."""
        return trio.current_time() < self._failed_seconds + self._subscribe_timeout_seconds

    @property
    def entries_per_read(self) -> int:
        """The most publications of a topic that are read at once."""
        return self._history.entries_per_read

    def note_failure(self) -> None:
        """Count Redis as failing for a while, or until it answers."""
        self._failed_seconds = trio.current_time()

    async def read(self, queries: Sequence[HistoryQuery]) -> list[TopicHistory | None]:
        """Read the records of topics, None for those without a position.

        Raises RedisConnectionError, also if Redis cannot answer about one of them now.
        """
        records: list[TopicHistory | None] = []
        for record in await self._asked(queries, self._history.read):
            if isinstance(record, Unanswered):
                self.note_failure()
                raise RedisConnectionError(record.reason)
            records.append(record)
        return records

    async def _asked(self, queries: Sequence[HistoryQuery], read: _Read) -> list[_Record]:
        try:
            records = await read(queries, self._new_epoch())
        except RedisConnectionError:
            self.note_failure()
            raise
        if all(isinstance(record, Unanswered) for record in records):
            self.note_failure()
        else:
            self._failed_seconds = float("-inf")
            self.answered_seconds = trio.current_time()
        return records

    async def run(self) -> NoReturn:
        """Read positions of new topics, and publications missed while the source was lost."""
        queue = self._queue
        while True:
            await queue.wait()
            await self._announce_names()
            while queue and self._bus.connected:
                await self._read_some()
                await self._announce_names()

    async def _announce_names(self) -> None:
        streams = self._queue.take_renamed()
        if not streams:
            return
        names = [(stream.topic, stream.former_epoch, stream.epoch) for stream in streams]
        try:
            await self._history.announce_names(names)
        except RedisConnectionError as error:
            # Clients that reconnect to another server with the old name will be sent a gap.
            self._warn("names", "names of epochs not announced", reason=str(error))

    async def _read_some(self) -> None:
        sequencers = self._settled()
        if not sequencers:
            with trio.move_on_after(_RETRY_SECONDS):
                await self._bus.wait_answer()
            return
        queries = [sequencer.ask() for sequencer in sequencers]
        try:
            # A part of long histories: the sequencers ask for the rest.
            records = await self._asked(queries, self._history.read_part)
        except RedisConnectionError as error:
            self._warn("positions", "positions not read", reason=str(error))
            await trio.sleep(_RETRY_SECONDS)
            return
        slices = Slices()
        for sequencer, record in zip(sequencers, records, strict=True):
            if isinstance(record, Unanswered):
                self._warn("positions", "positions not read", reason=record.reason)
                self._queue.postpone(sequencer)
                continue
            # During the request, the topic may have been closed, or the connection lost.
            while self._still_asks(sequencer) and record and sequencer.fill_in_part(record):
                await slices.end_if_long()
            if self._still_asks(sequencer):
                self._queue.discard(sequencer)
                sequencer.answer(record)
                await slices.end_if_long()
        self._queue.note_progress()
        if all(isinstance(record, Unanswered) for record in records):
            await trio.sleep(_RETRY_SECONDS)

    def _still_asks(self, sequencer: Sequencer) -> bool:
        return sequencer in self._queue and sequencer.is_asked

    def _settled(self) -> list[Sequencer]:
        """Return those in the queue whose channels are settled, as many as are read at once.

        Only publications after that are sure to arrive, so only a read after that leaves no hole.
        A topic for which Redis gives no answer does not hold up the others.
        """
        settled = (
            sequencer
            for sequencer in self._queue
            if self._bus.is_settled(channels_of(sequencer.stream.topic))
        )
        return list(islice(settled, _TOPICS_PER_READ))
