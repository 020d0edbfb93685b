"""Read positions and histories from Redis for the topics that need them.

A topic needs it when it is new, when the source was lost, and when a publication arrived that does
not follow the last one. The router puts such topics into a `ReadQueue`; a `PositionReader` reads
them, many in one round trip, and tries again for as long as Redis does not answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, NoReturn, Protocol

import structlog
import trio

from streamer.broker.connect import RedisConnectionError
from streamer.broker.history import HistoryQuery, RedisHistory, TopicHistory
from streamer.hub.streams import TopicStream
from streamer.protocol.topics import Topic
from streamer.source.report import SourceReport
from streamer.source.sequencer import Sequencer

_TOPICS_PER_READ: Final = 100
"""Topics whose positions are read in one round trip."""

_RETRY_SECONDS: Final = 0.2
"""The pause before positions that could not be read are asked for again."""

log = structlog.get_logger()


class Bus(Protocol):
    """What carries channels: Redis, or the bus inside the process."""

    @property
    def connected(self) -> bool:
        """Whether publications arrive."""

    def subscribe(self, channels: Iterable[str]) -> None:
        """Want these channels."""

    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Want them no more."""

    async def wait_subscribed(self, channels: Iterable[str]) -> None:
        """Wait until nothing published to these channels can be missed, refused ones apart."""

    def is_refused(self, channel: str) -> bool:
        """Whether a wanted channel may not be read."""


def channels_of(*topics: Topic) -> list[str]:
    """The channels of topics."""
    return [topic.channel(kind) for topic in topics for kind in topic.kinds]


class ReadQueue:
    """The topics whose positions are to be read, and the names of epochs to announce."""

    def __init__(self) -> None:
        self.sequencers: dict[Sequencer, None] = {}
        self._renamed: list[TopicStream] = []
        self._filled = trio.Event()
        self._progress = trio.lowlevel.ParkingLot()

    def add(self, sequencer: Sequencer) -> None:
        """Have the position of a topic read."""
        sequencer.reading = True
        self.sequencers[sequencer] = None
        self._filled.set()

    def discard(self, sequencer: Sequencer) -> None:
        """Do not read the position of a topic that was released."""
        self.sequencers.pop(sequencer, None)

    def announce(self, stream: TopicStream) -> None:
        """Have other servers learn by which other name clients know the epoch of a stream."""
        self._renamed.append(stream)
        self._filled.set()

    def take_renamed(self) -> list[TopicStream]:
        """Return the streams to announce, and forget them."""
        renamed, self._renamed = self._renamed, []
        return renamed

    def wake(self) -> None:
        """Have the reader look again: the source is connected."""
        self._filled.set()

    async def wait(self) -> None:
        """Wait until there is something to do, or to try again."""
        await self._filled.wait()
        self._filled = trio.Event()

    def note_progress(self) -> None:
        """Wake those in `wait_progress`."""
        self._progress.unpark_all()

    async def wait_progress(self) -> None:
        """Wait until topics have been read, or the source was connected or lost."""
        await self._progress.park()


class PositionReader:
    """Reads what is in a `ReadQueue`, and what clients have missed."""

    def __init__(
        self,
        queue: ReadQueue,
        bus: Bus,
        history: RedisHistory,
        report: SourceReport,
        *,
        epoch: Callable[[], str],
        subscribe_timeout_seconds: float,
    ) -> None:
        """`epoch` returns an epoch that no topic has had, for one that Redis has lost."""
        self._queue = queue
        self._bus = bus
        self._history = history
        self._report = report
        self._new_epoch = epoch
        self._subscribe_timeout_seconds = subscribe_timeout_seconds
        self._failed_seconds = float("-inf")

    @property
    def failing(self) -> bool:
        """Whether Redis did not answer lately: those who ask should not wait for it again."""
        return trio.current_time() < self._failed_seconds + self._subscribe_timeout_seconds

    def note_failure(self) -> None:
        """Count Redis as failing for a while, or until it answers."""
        self._failed_seconds = trio.current_time()

    async def read(self, queries: Sequence[HistoryQuery]) -> list[TopicHistory | None]:
        """Read the records of topics, None for those without a position.

        Raises RedisConnectionError.
        """
        try:
            records = await self._history.read(queries, self._new_epoch())
        except RedisConnectionError:
            self.note_failure()
            raise
        self._failed_seconds = float("-inf")
        return records

    async def run(self) -> NoReturn:
        """Read the positions of new topics, and what was missed while the source was lost."""
        queue = self._queue
        while True:
            await queue.wait()
            await self._announce(queue.take_renamed())
            while queue.sequencers and self._bus.connected:
                await self._read_some(list(islice(queue.sequencers, _TOPICS_PER_READ)))

    async def _announce(self, streams: Sequence[TopicStream]) -> None:
        if not streams:
            return
        names = [(stream.topic, stream.former_epoch, stream.epoch) for stream in streams]
        try:
            await self._history.tell_names(names)
        except RedisConnectionError as error:
            # Clients that come to another server with the old name will be sent a gap.
            log.warning("names of epochs not announced", reason=str(error))

    async def _read_some(self, sequencers: list[Sequencer]) -> None:
        # Only what is published after Redis has confirmed the subscription is sure to arrive, so
        # only what is read after that leaves no hole.
        with trio.move_on_after(self._subscribe_timeout_seconds) as waiting:
            await self._bus.wait_subscribed(channels_of(*(s.stream.topic for s in sequencers)))
        if waiting.cancelled_caught:
            return
        lost = [sequencer.lost for sequencer in sequencers]
        try:
            records = await self.read([sequencer.query for sequencer in sequencers])
        except RedisConnectionError as error:
            log.warning("positions not read", reason=str(error))
            await trio.sleep(_RETRY_SECONDS)
            return
        for sequencer, lost_before, record in zip(sequencers, lost, records, strict=True):
            if sequencer in self._queue.sequencers and sequencer.lost == lost_before:
                self._queue.discard(sequencer)
                self._catch_up(sequencer, record)
                await trio.lowlevel.checkpoint()
        self._queue.note_progress()

    def _catch_up(self, sequencer: Sequencer, record: TopicHistory | None) -> None:
        before = sequencer.stream.position_at(sequencer.stream.epoch, sequencer.stream.sequence)
        complete = sequencer.catch_up(record)
        after = sequencer.stream.position_at(sequencer.stream.epoch, sequencer.stream.sequence)
        if after.epoch == before.epoch:
            self._report.recovered += after.sequence - before.sequence
        if not complete and after == before:
            sequencer.skip_hole()
        elif not complete:
            self._queue.add(sequencer)
        if sequencer.renamed:
            sequencer.renamed = False
            self._queue.announce(sequencer.stream)
