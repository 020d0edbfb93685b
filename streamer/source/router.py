"""From the bytes of a channel to a publication in the hub.

Each message is looked up, validated and handed on once. What does not fit its channel is counted by
reason, logged at a bounded rate, and never forwarded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from typing import Final, NoReturn, Protocol

import attrs
import structlog
import trio

from streamer.broker.connect import RedisConnectionError
from streamer.broker.history import HistoryQuery, RedisHistory, TopicHistory
from streamer.hub.flush import FlushLoop
from streamer.hub.hub import Hub
from streamer.hub.streams import TopicStream
from streamer.protocol.codec import decode_publication
from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.messages import Position
from streamer.protocol.topics import Kind, SubscriptionType, Topic
from streamer.source.sequencer import Sequencer

_TOPICS_PER_READ: Final = 100
"""Topics whose positions are read in one round trip."""

_RETRY_SECONDS: Final = 0.2
"""Before positions that could not be read are asked for again."""

_LOG_INTERVAL_SECONDS: Final = 1.0
"""Between two log lines about invalid publications: a broken producer must not fill the disk."""

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
        """Until nothing published to them can be missed."""


@attrs.frozen
class RouterStatistics:
    """What came from the bus."""

    received: int
    rejected: int
    """Publications that did not fit their channel."""
    last_rejection: str | None
    recovered: int
    """Publications read from the history after the source was lost."""
    duplicates: int
    """Publications that had been received before."""
    unrouted: int
    """Messages of channels that had just been released."""


class Router:
    """The hub's upstream: it asks the bus for channels and takes what they carry."""

    def __init__(
        self, *, max_publication_bytes: int, subscribe_timeout_seconds: float, history_length: int
    ) -> None:
        self._max_publication_bytes = max_publication_bytes
        self._subscribe_timeout_seconds = subscribe_timeout_seconds
        self._history_length = history_length
        self._sequencers: dict[Topic, Sequencer] = {}
        self._routes: dict[bytes, tuple[Sequencer, Kind, str | None]] = {}
        self._to_read: dict[Sequencer, None] = {}
        """Topics whose position has to be read before they go on."""
        self._something_to_read = trio.Event()
        self._something_read = trio.lowlevel.ParkingLot()
        self._renamed: list[TopicStream] = []
        self._received = 0
        self._recovered = 0
        self._rejected = 0
        self._unrouted = 0
        self._last_rejection: str | None = None
        self._log_after_seconds = 0.0
        self._unlogged = 0

    def attach(
        self, hub: Hub, flush_loop: FlushLoop, bus: Bus, history: RedisHistory | None
    ) -> None:
        """Connect them; once, before anything is received. No history: nobody keeps positions."""
        self._hub = hub
        self._flush_loop = flush_loop
        self._bus = bus
        self._history = history

    # Called by the hub

    def want(self, stream: TopicStream) -> None:
        """Route the channels of a topic to its stream."""
        topic = stream.topic
        sequencer = self._sequencers[topic] = Sequencer(
            self._hub, stream, max_held=self._history_length
        )
        # Sectors and watchlists tell of many stocks; a stock's or market's channel of itself alone.
        about_itself = topic.subscription_type in (SubscriptionType.STOCK, SubscriptionType.MARKET)
        for kind in topic.kinds:
            key = topic.target if about_itself else None
            self._routes[topic.channel(kind).encode()] = (sequencer, kind, key)
        sequencer.unproven = not self._bus.connected
        if self._history is not None:
            self._read_later(sequencer)
        self._bus.subscribe(_channels(topic))

    def join(self, topic: Topic) -> None:
        """A first client is told where the stream stands: what was missed so far, a gap tells."""
        sequencer = self._sequencers[topic]
        sequencer.unproven |= not sequencer.confirmed

    def release(self, topic: Topic) -> None:
        """Let go of the channels of a topic."""
        for channel in _channels(topic):
            del self._routes[channel.encode()]
        self._to_read.pop(self._sequencers.pop(topic), None)
        self._bus.unsubscribe(_channels(topic))

    # Called by sessions

    async def wait_ready(self, topics: Collection[Topic]) -> None:
        """Wait until nothing published to these topics can be missed.

        Not while the bus is down, and not for ever: a client is better off with its subscription
        and a gap later than with no answer.
        """
        if all(self._is_ready(topic) for topic in topics):
            return
        with trio.move_on_after(self._subscribe_timeout_seconds):
            if self._bus.connected:
                await self._bus.wait_subscribed(_channels(*topics))
            await self._wait_read(topics)
            for sequencer in filter(None, map(self._sequencers.get, topics)):
                sequencer.confirmed = self._bus.connected and not sequencer.reading

    async def _wait_read(self, topics: Collection[Topic]) -> None:
        while self._bus.connected and any(self._is_reading(topic) for topic in topics):
            await self._something_read.park()

    def _is_ready(self, topic: Topic) -> bool:
        sequencer = self._sequencers.get(topic)
        return sequencer is not None and sequencer.confirmed

    def _is_reading(self, topic: Topic) -> bool:
        sequencer = self._sequencers.get(topic)
        return sequencer is not None and sequencer.reading

    async def recover(self, topic: Topic, since: Position) -> Position:
        """Fetch what was published after a position, where the hub has forgotten it and Redis not.

        Afterwards `TopicStream.missed` may know what followed the position that is returned: the
        same place, by the name that its epoch has here. Reads no more than the history's length.
        """
        sequencer = self._sequencers.get(topic)
        if self._history is None or sequencer is None or not sequencer.positioned:
            return since
        stream = sequencer.stream
        if since.epoch == stream.epoch and since.sequence > stream.sequence:
            # Another server was faster: what the client has had is on its way to this one.
            self._read_later(sequencer)
            with trio.move_on_after(self._subscribe_timeout_seconds):
                await self._wait_read([topic])
        if stream.count_missed(since) is not None:
            return since
        try:
            (record,) = await self._history.read([HistoryQuery(topic, since)], "")
        except RedisConnectionError as error:
            log.warning("history not read", topic=str(topic), reason=str(error))
            return since
        # The stream may have moved while Redis was asked, and only its present epoch counts.
        if record is None or not record.follows or record.position.epoch != stream.epoch:
            return since
        if self._sequencers.get(topic) is not sequencer:
            return since  # it was let go meanwhile, and is another now
        oldest = stream.history[0].sequence if stream.history else stream.sequence + 1
        earlier = [entry for entry in record.entries if entry[1] < oldest]
        if [sequence for _, sequence, _ in earlier] == list(range(since.sequence + 1, oldest)):
            self._hub.extend_history(stream, earlier)
        return Position(stream.epoch, since.sequence)

    # Called by the bus

    def on_messages(self, messages: Iterable[tuple[bytes, bytes]]) -> None:
        """Take what has come at once (channel, payload), and have it flushed together: hot."""
        self._flush_loop.hold()
        for channel, payload in messages:
            self._take(channel, payload)
        self._flush_loop.release()

    def _take(self, channel: bytes, payload: bytes) -> None:
        route = self._routes.get(channel)
        if route is None:
            self._unrouted += 1
            return
        sequencer, kind, key = route
        self._received += 1
        if len(payload) > self._max_publication_bytes:
            self._reject(channel, f"{len(payload)} bytes, more than {self._max_publication_bytes}")
            return
        try:
            publication = decode_publication(kind, key, payload)
        except InvalidPublicationError as error:
            self._reject(channel, str(error))
            return
        if not sequencer.take(kind, publication):
            sequencer.unproven = True
            self._read_later(sequencer)
        elif sequencer.renamed:
            self._note_name(sequencer)

    def on_connected(self) -> None:
        """All channels are subscribed (again): streams that may have a hole fill it or say so."""
        log.info("source connected")
        if self._history is None:
            for sequencer in self._sequencers.values():
                sequencer.catch_up(None)
        self._something_to_read.set()

    def on_lost(self, reason: str) -> None:
        """The bus is gone: what is published from now on may be missed."""
        log.warning("source lost", reason=reason)
        for sequencer in self._sequencers.values():
            sequencer.unproven = True
            sequencer.confirmed = False
            sequencer.lost += 1
            if self._history is not None:
                self._read_later(sequencer)
        self._something_read.unpark_all()

    # Reading positions and histories

    def _read_later(self, sequencer: Sequencer) -> None:
        sequencer.reading = True
        self._to_read[sequencer] = None
        self._something_to_read.set()

    async def run(self) -> NoReturn:
        """Read the positions of new topics, and what was missed while the source was lost."""
        while True:
            await self._something_to_read.wait()
            self._something_to_read = trio.Event()
            await self._tell_names()
            while self._to_read and self._bus.connected:
                await self._read_some(list(islice(self._to_read, _TOPICS_PER_READ)))

    def _note_name(self, sequencer: Sequencer) -> None:
        sequencer.renamed = False
        self._renamed.append(sequencer.stream)
        self._something_to_read.set()

    async def _tell_names(self) -> None:
        streams, self._renamed = self._renamed, []
        if self._history is not None and streams:
            try:
                await self._history.tell_names(
                    [(stream.topic, stream.former_epoch, stream.epoch) for stream in streams]
                )
            except RedisConnectionError as error:
                # Clients that come to another server with the old name will be told of a gap.
                log.warning("names of epochs not told", reason=str(error))

    async def _read_some(self, sequencers: list[Sequencer]) -> None:
        assert self._history is not None  # without one, nothing is ever to be read
        # Only what is published after Redis has confirmed the subscription is sure to arrive, so
        # only what is read after that leaves no hole.
        with trio.move_on_after(self._subscribe_timeout_seconds) as waiting:
            await self._bus.wait_subscribed(_channels(*(s.stream.topic for s in sequencers)))
        if waiting.cancelled_caught:
            return
        lost = [sequencer.lost for sequencer in sequencers]
        try:
            records = await self._history.read(
                [sequencer.query for sequencer in sequencers], self._hub.new_epoch()
            )
        except RedisConnectionError as error:
            log.warning("positions not read", reason=str(error))
            await trio.sleep(_RETRY_SECONDS)
            return
        for sequencer, lost_before, record in zip(sequencers, lost, records, strict=True):
            if sequencer in self._to_read and sequencer.lost == lost_before:
                del self._to_read[sequencer]
                self._catch_up(sequencer, record)
                await trio.lowlevel.checkpoint()
        self._something_read.unpark_all()

    def _catch_up(self, sequencer: Sequencer, record: TopicHistory | None) -> None:
        before = sequencer.stream.place(sequencer.stream.epoch, sequencer.stream.sequence)
        complete = sequencer.catch_up(record)
        after = sequencer.stream.place(sequencer.stream.epoch, sequencer.stream.sequence)
        if after.epoch == before.epoch:
            self._recovered += after.sequence - before.sequence
        if not complete and after == before:
            sequencer.skip_hole()
        elif not complete:
            self._read_later(sequencer)
        if sequencer.renamed:
            self._note_name(sequencer)

    def _reject(self, channel: bytes, reason: str) -> None:
        self._rejected += 1
        self._last_rejection = f"{channel.decode(errors='replace')}: {reason}"
        now = trio.current_time()
        if now < self._log_after_seconds:
            self._unlogged += 1
            return
        log.warning(
            "publication rejected",
            channel=channel.decode(errors="replace"),
            reason=reason,
            rejected_since_last_line=self._unlogged + 1,
        )
        self._unlogged = 0
        self._log_after_seconds = now + _LOG_INTERVAL_SECONDS

    def statistics(self) -> RouterStatistics:
        """The counts up to now."""
        return RouterStatistics(
            received=self._received,
            rejected=self._rejected,
            last_rejection=self._last_rejection,
            recovered=self._recovered,
            duplicates=sum(sequencer.duplicates for sequencer in self._sequencers.values()),
            unrouted=self._unrouted,
        )


def _channels(*topics: Topic) -> list[str]:
    return [topic.channel(kind) for topic in topics for kind in topic.kinds]
