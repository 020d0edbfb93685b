"""From the bytes of a channel to a publication in the hub.

Each message is routed, validated and handed on once. One that does not fit its channel is counted,
logged at a bounded rate, and never forwarded.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import structlog

from streamer.bounded_log import BoundedLog
from streamer.hub.flush import FlushLoop
from streamer.hub.publishing import Publishing
from streamer.hub.streams import TopicStream
from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.messages import GapReason, Position
from streamer.protocol.topics import Kind, Topic
from streamer.source.books import BookKeeper
from streamer.source.positions import channels_of
from streamer.source.reads import TopicReads
from streamer.source.report import SourceReport, SourceStatistics
from streamer.source.sequencer import HeldRoom, Sequencer
from streamer.source.validation import Validator

log = structlog.get_logger()


class Router:
    """Passes the messages of the bus to the sequencers of their topics: a `MessageHandler`."""

    def __init__(
        self,
        publishing: Publishing,
        flush_loop: FlushLoop,
        reads: TopicReads,
        report: SourceReport,
        *,
        max_publication_bytes: int,
        max_book_levels: int = 1000,
    ) -> None:
        self._publishing = publishing
        self._flush_loop = flush_loop
        self._reads = reads
        self._report = report
        self.validator = Validator(report, max_publication_bytes=max_publication_bytes)
        self._room = HeldRoom()
        self.books = BookKeeper(
            publishing, report, max_levels=max_book_levels, max_book_bytes=max_publication_bytes
        )
        self._sequencers: dict[Topic, Sequencer] = {}
        self._routes: dict[bytes, tuple[Sequencer, Kind, str | None]] = {}
        self._received = 0
        self._unrouted = 0
        self._warn = BoundedLog(log.warning)

    # Topics

    def open(self, stream: TopicStream) -> None:
        """Route the channels of a topic to its stream."""
        topic = stream.topic
        sequencer = self._sequencers[topic] = Sequencer(
            self._publishing,
            stream,
            reads=self._reads,
            report=self._report,
            room=self._room,
            decode_entry=partial(self.validator.decode_entry, topic),
            books=self.books,
        )
        for kind in topic.kinds:
            self._routes[topic.channel(kind).encode()] = (sequencer, kind, topic.key)
        sequencer.open()

    def join(self, topic: Topic) -> None:
        """Take note that a first client learns the position of a topic."""
        self._sequencers[topic].join()

    def close(self, topic: Topic) -> None:
        """Stop routing the channels of a topic."""
        for channel in channels_of(topic):
            del self._routes[channel.encode()]
        sequencer = self._sequencers.pop(topic)
        self._reads.discard(sequencer)
        self._report.forget(topic)
        sequencer.close()
        # The hub has released the topic, and publications may have come until now.
        self._publishing.forget_history(sequencer.stream)

    def sequencer(self, topic: Topic) -> Sequencer | None:
        """Return the sequencer of a topic; None if it is not open."""
        return self._sequencers.get(topic)

    # Called by the bus

    def on_messages(self, messages: Iterable[tuple[bytes, bytes]]) -> None:
        """Take the messages of one read (channel, payload) and flush them together. Hot."""
        routes, decode = self._routes, self.validator.decode
        self._flush_loop.hold()
        try:
            for channel, payload in messages:
                route = routes.get(channel)
                if route is None:
                    self._unrouted += 1
                    continue
                sequencer, kind, key = route
                self._received += 1
                try:
                    publication = decode(kind, key, payload)
                except InvalidPublicationError as error:
                    self._report.reject(channel.decode(errors="replace"), str(error))
                    continue
                sequencer.take(kind, publication, payload)
        finally:
            self._flush_loop.release()

    def on_connected(self) -> None:
        """Take note that all channels are subscribed (again); missed publications can be read."""
        log.info("source connected")
        self._reads.note_connection()

    def on_lost(self, reason: str) -> None:
        """Take note that the bus is lost: publications from now on may be missed."""
        log.warning("source lost", reason=reason)
        for sequencer in self._sequencers.values():
            sequencer.lose()
        self._reads.note_connection()

    def on_refused(self, channel: bytes, reason: str) -> None:
        """Take note that Redis forbids a channel, whose publications are missed."""
        route = self._routes.get(channel)
        if route is not None and (stream := route[0].stream).subscriptions:
            position = Position(stream.epoch, stream.sequence)
            self._publishing.start_epoch(stream, GapReason.SOURCE_UNAVAILABLE, position)
        self._warn(
            "refused",
            "channel refused by Redis",
            channel=channel.decode(errors="replace"),
            reason=reason,
        )

    def on_accepted(self, channel: bytes) -> None:
        """Take note that a refused channel is subscribed after all; read its missed messages."""
        log.info("channel no longer refused", channel=channel.decode(errors="replace"))
        route = self._routes.get(channel)
        if route is not None:
            route[0].lose()

    def statistics(self) -> SourceStatistics:
        """Return the counts up to now."""
        return self._report.statistics(received=self._received, unrouted=self._unrouted)
