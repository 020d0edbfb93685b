"""How the publications of one topic come in: in order, each once, and every hole announced.

There are two kinds of producer. One that does a plain PUBLISH gives no positions: the server
numbers what it reads, in an epoch of its own, and what it did not read is lost to it. One that uses
`streamer.publisher` places each publication in an epoch that Redis keeps, with the recent
ones in a history: what was missed can be read from there. A topic may go from one kind to the
other; clients are told of that as of any other new epoch, by a gap.
"""

from __future__ import annotations

from streamer.broker.history import Entry, HistoryQuery, TopicHistory
from streamer.hub.hub import Hub
from streamer.hub.streams import TopicStream
from streamer.protocol.codec import DecodedPublication
from streamer.protocol.messages import GapReason, Position
from streamer.protocol.topics import Kind
from streamer.source.report import SourceReport


class Sequencer:
    """The way of one topic into the hub."""

    __slots__ = (
        "_held",
        "_hub",
        "_max_held",
        "_report",
        "lost",
        "positioned",
        "reading",
        "renamed",
        "stream",
        "unproven",
    )

    def __init__(
        self, hub: Hub, stream: TopicStream, report: SourceReport, *, max_held: int
    ) -> None:
        """`max_held`: publications kept while the position is being read."""
        self._hub = hub
        self.stream = stream
        self._report = report
        self._max_held = max_held
        self.positioned = False
        """Whether the producers place their publications."""
        self.unproven = False
        """Whether something may have been missed."""
        self.reading = False
        """Whether the position has to be read first: what arrives meanwhile is held."""
        self.lost = 0
        """How often the source was lost: an answer to an earlier question is void."""
        self.renamed = False
        """Whether clients of this server know the epoch by another name, of which Redis has still
        to be told: they may come to another server with it."""
        self._held: list[tuple[Kind, DecodedPublication]] = []

    def take(self, kind: Kind, publication: DecodedPublication) -> bool:
        """Pass a publication on; False: something before it is missing, and has to be read."""
        if self.reading:
            self._hold(kind, publication)
            return True
        hub, stream, position = self._hub, self.stream, publication.position
        if position is None:
            if self.positioned:
                self._begin(Position(hub.new_epoch(), 0))
                self.positioned = False
            hub.publish(stream, kind, publication.text)
            return True
        if position.epoch != stream.epoch:
            before = Position(position.epoch, position.sequence - 1)
            if before.sequence == 0 and stream.sequence == 0 and not self.positioned:
                self._rename(position.epoch)
            else:
                self._begin(before)
            self.positioned = True
        if position.sequence > stream.sequence + 1:
            self._hold(kind, publication)
            return False
        if position.sequence <= stream.sequence:
            self._report.duplicates += 1
        else:
            hub.publish_positioned(stream, kind, publication.text, position.sequence)
        return True

    def _hold(self, kind: Kind, publication: DecodedPublication) -> None:
        self._held.append((kind, publication))
        if len(self._held) > self._max_held:
            # Those with a place can be read again; for the others a gap will say it.
            self._held.clear()
            self.unproven = True

    def _rename(self, epoch: str) -> None:
        self.renamed = True
        self._hub.rename_epoch(self.stream, epoch)

    def _begin(self, position: Position, latest: list[Entry] | None = None) -> None:
        reason = GapReason.SOURCE_RECONNECTED
        self._hub.start_epoch(self.stream, reason, position, latest or ())

    @property
    def query(self) -> HistoryQuery:
        """What has to be known of the topic before it can go on."""
        after = Position(self.stream.epoch, self.stream.sequence)
        return HistoryQuery(
            self.stream.topic, after, may_have_lost=self.positioned and self.unproven
        )

    def catch_up(self, record: TopicHistory | None) -> bool:
        """Go on from what was read; False: there is still something missing."""
        if record is None:
            self._go_on_unpositioned()
        elif record.position.epoch == self.stream.epoch:
            self._fill(record)
        else:
            self._change_epoch(record)
        self.unproven = False
        self.reading = False
        held, self._held = self._held, []
        for index, (kind, publication) in enumerate(held):
            if not self.take(kind, publication):
                self._held += held[index + 1 :]
                return False
        return record is None or self.stream.sequence >= record.position.sequence

    def skip_hole(self) -> None:
        """Go on behind a hole that Redis cannot fill: those publications are nowhere any more."""
        held, self._held = self._held, []
        self.reading = False
        for kind, publication in held:
            position = publication.position
            if position is not None and position.sequence > self.stream.sequence + 1:
                self._begin(Position(position.epoch, position.sequence - 1))
            self.take(kind, publication)

    def _go_on_unpositioned(self) -> None:
        if self.unproven:
            self._begin(Position(self._hub.new_epoch(), 0))
        self.positioned = False

    def _fill(self, record: TopicHistory) -> None:
        """Publish what was missed; what the history has lost of it becomes a gap."""
        hub, stream = self._hub, self.stream
        self.positioned = True
        for kind, sequence, text in record.entries:
            if sequence > stream.sequence + 1:
                self._skip(Position(stream.epoch, sequence - 1))
            hub.publish_positioned(stream, kind, text, sequence)
        if not record.entries and record.position.sequence > stream.sequence:
            self._skip(record.position)

    def _skip(self, position: Position) -> None:
        self._hub.start_epoch(self.stream, GapReason.HISTORY_EXPIRED, position)

    def _change_epoch(self, record: TopicHistory) -> None:
        stream = self.stream
        self.positioned = True
        if not stream.subscriptions:
            self._hub.adopt(stream, record.position, record.latest)
        elif record.position.sequence == 0 and stream.sequence == 0 and not self.unproven:
            self._rename(record.position.epoch)
        else:
            self._begin(record.position, record.latest)
