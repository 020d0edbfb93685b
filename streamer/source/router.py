"""From the bytes of a channel to a publication in the hub.

Each message is looked up, validated and handed on once. What does not fit its channel is counted by
reason, logged at a bounded rate, and never forwarded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import structlog
import trio

from streamer.hub.flush import FlushLoop
from streamer.hub.hub import Hub
from streamer.hub.streams import TopicStream
from streamer.protocol.codec import decode_publication
from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.messages import GapReason, Position
from streamer.protocol.topics import Kind, Topic
from streamer.source.positions import ReadQueue, channels_of
from streamer.source.report import SourceReport, SourceStatistics
from streamer.source.sequencer import Sequencer

_REFUSAL_LOG_INTERVAL_SECONDS: Final = 1.0
"""Between two log lines about refused channels: clients may ask for thousands."""

log = structlog.get_logger()


class Router:
    """Takes what the bus carries to the sequencer of its topic."""

    def __init__(
        self,
        hub: Hub,
        flush_loop: FlushLoop,
        report: SourceReport,
        *,
        max_publication_bytes: int,
        history_length: int,
        keeps_positions: bool,
    ) -> None:
        """`keeps_positions`: whether the positions of topics are kept somewhere (in Redis)."""
        self._hub = hub
        self._flush_loop = flush_loop
        self._max_publication_bytes = max_publication_bytes
        self._history_length = history_length
        self._keeps_positions = keeps_positions
        self._sequencers: dict[Topic, Sequencer] = {}
        self._routes: dict[bytes, tuple[Sequencer, Kind, str | None]] = {}
        self.reads = ReadQueue()
        self._report = report
        self._received = 0
        self._unrouted = 0
        self._refused = 0
        self._log_refusals_at = -math.inf

    # Which topics there are

    def open(self, stream: TopicStream, *, connected: bool) -> None:
        """Route the channels of a topic to its stream; `connected`: whether the bus is."""
        topic = stream.topic
        sequencer = self._sequencers[topic] = Sequencer(
            self._hub, stream, self._report, max_held=self._history_length
        )
        for kind in topic.kinds:
            self._routes[topic.channel(kind).encode()] = (sequencer, kind, topic.key)
        sequencer.unproven = not connected
        if self._keeps_positions:
            self.reads.add(sequencer)

    def join(self, topic: Topic) -> None:
        """Take note that a first client learns the position of a topic."""
        sequencer = self._sequencers[topic]
        sequencer.unproven |= sequencer.reading

    def close(self, topic: Topic) -> None:
        """Stop routing the channels of a topic."""
        for channel in channels_of(topic):
            del self._routes[channel.encode()]
        self.reads.discard(self._sequencers.pop(topic))

    def sequencer(self, topic: Topic) -> Sequencer | None:
        """The sequencer of a topic that is open."""
        return self._sequencers.get(topic)

    # Called by the bus

    def on_messages(self, messages: Iterable[tuple[bytes, bytes]]) -> None:
        """Take what has come at once (channel, payload), and have it flushed together: hot."""
        self._flush_loop.hold()
        try:
            for channel, payload in messages:
                self._take(channel, payload)
        finally:
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
            self.reads.add(sequencer)
        elif sequencer.renamed:
            sequencer.renamed = False
            if self._keeps_positions:
                self.reads.announce(sequencer.stream)

    def on_connected(self) -> None:
        """Every channel is subscribed (again): read what was missed."""
        log.info("source connected")
        self.reads.wake()
        self.reads.note_progress()

    def on_lost(self, reason: str) -> None:
        """The bus is gone: what is published from now on may be missed."""
        log.warning("source lost", reason=reason)
        for sequencer in self._sequencers.values():
            sequencer.unproven = True
            sequencer.lost += 1
            if self._keeps_positions:
                self.reads.add(sequencer)
        self.reads.note_progress()

    def on_refused(self, channel: bytes, reason: str) -> None:
        """Redis forbids a channel: what is published there is missed."""
        self._refused += 1
        route = self._routes.get(channel)
        if route is not None and (stream := route[0].stream).subscriptions:
            position = Position(stream.epoch, stream.sequence)
            self._hub.start_epoch(stream, GapReason.SOURCE_UNAVAILABLE, position)
        now = trio.current_time()
        if now >= self._log_refusals_at:
            self._log_refusals_at = now + _REFUSAL_LOG_INTERVAL_SECONDS
            log.warning(
                "channel refused by Redis",
                channel=channel.decode(errors="replace"),
                reason=reason,
                refused_in_all=self._refused,
            )

    def on_accepted(self, channel: bytes) -> None:
        """A refused channel is subscribed after all: read what was missed."""
        log.info("channel no longer refused", channel=channel.decode(errors="replace"))
        route = self._routes.get(channel)
        if route is not None:
            sequencer = route[0]
            sequencer.unproven = True
            sequencer.lost += 1
            self.reads.add(sequencer)

    def _reject(self, channel: bytes, reason: str) -> None:
        self._report.reject(channel.decode(errors="replace"), reason)

    def statistics(self) -> SourceStatistics:
        """The counts up to now."""
        return self._report.statistics(received=self._received, unrouted=self._unrouted)
