"""Producers that give positions, the history that Redis keeps of them, and a scripted connection.

`PositionedProducer` does to a `Sequencer` what the router and the reader of positions do, through
the same methods, a step at a time. Beside that it keeps a model of what must come out: the
connection delivers in order, what it lost is read from the history, and what the history has lost
as well is a gap.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from streamer.broker.history import Entry, TopicHistory
from streamer.hub.hub import Hub
from streamer.hub.streams import TopicStream
from streamer.protocol.messages import Position
from streamer.protocol.publications import DecodedPublication
from streamer.protocol.topics import Kind
from streamer.source.books import BookKeeper
from streamer.source.report import SourceReport
from streamer.source.sequencer import HeldRoom, Sequencer
from streamer.source.sequencer_state import State
from tests.hub.bodies import body

MAX_HELD_BYTES = 2000
"""So few that what is held overflows."""

MAX_READ = 4
"""So few that it takes several reads to catch up."""

Came = Callable[[Kind | None, Position, int, bytes], None]
"""Called with what the hub must have received: a publication, its value and text, or a gap (no
kind)."""


class PositionedProducer:
    """The producer of one topic, from when a client wants it."""

    def __init__(self, hub: Hub, stream: TopicStream, epoch: str, came: Came) -> None:
        """`came` is called with what the clients of the topic must receive, in order."""
        self._came = came
        self._asks = False
        """Whether the sequencer wants its position read."""
        report = SourceReport(lambda: 0.0)
        self._sequencer = Sequencer(
            hub.publishing,
            stream,
            reads=self,
            report=report,
            room=HeldRoom(topic_bytes=MAX_HELD_BYTES),
            decode_entry=lambda _kind, _sequence, payload: payload,
            books=BookKeeper(hub.publishing, report, max_levels=10, max_book_bytes=1 << 18),
        )
        self._stream = stream
        self._position = Position(epoch, 0)
        """The position of the producers."""
        self._history: list[Entry] = []
        self._values: dict[int, tuple[int, bytes]] = {}
        self._at = self._position
        """The position that the hub must have reached."""
        self._reading = True
        self._sequencer.open()
        self.catch_up()

    # What the sequencer calls

    def add(self, sequencer: Sequencer) -> None:
        """The position has to be read."""
        assert sequencer is self._sequencer
        self._asks = True

    def announce(self, stream: TopicStream) -> None:
        """Clients know the epoch by another name: no other server is there to learn of it."""

    def note_behind(self) -> None:
        """A publication that Redis does not have was rejected."""

    # What happens to it

    def join(self) -> None:
        """The topic has its first client."""
        self._sequencer.join()

    def close(self) -> None:
        """The topic is released."""
        self._sequencer.close()

    def publish(self, kind: Kind, value: int, size: int, *, heard: bool) -> None:
        """Take the next position, keep it, and publish; the connection may lose it."""
        epoch, sequence = self._position.epoch, self._position.sequence + 1
        self._position = Position(epoch, sequence)
        members = body(self._stream.topic, kind, value, size)
        text = json.dumps(members | {"epoch": epoch, "sequence": sequence}).encode()
        self._history.append((kind, sequence, text))
        self._values[sequence] = value, text
        if not heard:
            return
        if not self._reading:
            if self._at == Position(epoch, sequence - 1):
                self._publication(kind, sequence)
            else:
                self._reading = True
        self._sequencer.take(kind, DecodedPublication(text, self._position), text)
        assert self._reading == (self._sequencer.state is not State.LIVE) == self._asks

    def lose(self, *, times: int = 1) -> None:
        """Lose the connection; more than once before positions are read, maybe after a question."""
        self._reading = True
        for time in range(times):
            self._sequencer.lose()
            if time + 1 < times:
                self._sequencer.ask()

    def trim(self) -> None:
        """The history forgets all but the last publication."""
        del self._history[:-1]

    def begin_epoch(self, epoch: str) -> None:
        """The producers lost their positions, while the connection was good."""
        self.catch_up()
        self._position = Position(epoch, 0)
        self._history.clear()

    def catch_up(self) -> None:
        """Read what was missed, in as many portions as that takes."""
        if not self._reading:
            return
        self._expect()
        while self._asks:
            self._asks = False
            after = self._sequencer.ask().after
            follows = after.epoch == self._position.epoch
            found = [entry for entry in self._history if entry[1] > after.sequence]
            entries = found[:MAX_READ] if follows else self._history[-MAX_READ:]
            end = self._position.sequence
            if follows and len(found) > MAX_READ:
                end = entries[-1][1]
            self._sequencer.answer(TopicHistory(self._position, follows, entries, end))
        assert self._sequencer.state is State.LIVE
        assert (self._stream.epoch, self._stream.sequence) == (self._at.epoch, self._at.sequence)

    def _expect(self) -> None:
        self._reading = False
        if self._at.epoch != self._position.epoch:
            # At most one publication of a new epoch was published before it is read, and heard.
            self._gap(Position(self._position.epoch, 0))
        for kind, sequence, _ in self._history:
            if sequence > self._at.sequence:
                if sequence > self._at.sequence + 1:
                    self._gap(Position(self._position.epoch, sequence - 1))
                self._publication(kind, sequence)

    def _gap(self, position: Position) -> None:
        self._at = position
        self._came(None, position, -1, b"")

    def _publication(self, kind: Kind, sequence: int) -> None:
        self._at = Position(self._at.epoch, sequence)
        self._came(kind, self._at, *self._values[sequence])
