"""Producers that place what they publish, the history that Redis keeps of it, and a scripted link.

`PositionedProducer` does to a `Sequencer` what `streamer.source.router` does, a step at a time.
Beside that it keeps a model of what has to come out: the link delivers in order, what it lost is
read from the history, and what the history has lost as well is a gap.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from streamer.broker.history import Entry, TopicHistory
from streamer.hub.hub import Hub
from streamer.hub.streams import TopicStream
from streamer.protocol.codec import DecodedPublication
from streamer.protocol.messages import Position
from streamer.protocol.topics import Kind
from streamer.source.report import SourceReport
from streamer.source.sequencer import Sequencer

MAX_HELD = 3
"""So few that what is held overflows."""

MAX_READ = 4
"""So few that it takes several reads to catch up."""

Came = Callable[[Kind | None, Position, int], None]
"""What the hub must have been given: a publication with its value, or a gap (no kind)."""


class PositionedProducer:
    """One topic, from when somebody wants it."""

    def __init__(self, hub: Hub, stream: TopicStream, epoch: str, came: Came) -> None:
        """`came` is told what the clients of the topic are to hear, in order."""
        self._came = came
        self._sequencer = Sequencer(hub, stream, SourceReport(), max_held=MAX_HELD)
        self._stream = stream
        self._position = Position(epoch, 0)
        """The producers'."""
        self._history: list[Entry] = []
        self._values: dict[int, int] = {}
        self._at = self._position
        """Up to where the hub must have it."""
        self._reading = False
        self._sequencer.reading = True
        self.catch_up()

    def publish(self, kind: Kind, value: int, size: int, *, heard: bool) -> None:
        """Take the next position, keep it, and publish; the link may lose it."""
        epoch, sequence = self._position.epoch, self._position.sequence + 1
        self._position = Position(epoch, sequence)
        members = {"type": kind, "value": value, "pad": "x" * size}
        text = json.dumps(members | {"epoch": epoch, "sequence": sequence}).encode()
        self._history.append((kind, sequence, text))
        self._values[sequence] = value
        if not heard:
            return
        if not self._reading:
            if self._at.epoch != epoch:
                self._gap(Position(epoch, sequence - 1))
            if sequence == self._at.sequence + 1:
                self._publication(kind, sequence)
            else:
                self._reading = True
        if not self._sequencer.take(kind, DecodedPublication(text, self._position)):
            self.lose()
        assert self._sequencer.reading == self._reading

    def lose(self) -> None:
        """The link is cut, or has a hole: the position has to be read."""
        self._sequencer.unproven = self._sequencer.reading = self._reading = True

    def trim(self) -> None:
        """The history forgets all but the last publication."""
        del self._history[:-1]

    def begin_epoch(self, epoch: str) -> None:
        """The producers lost their place, while the link was good."""
        self.catch_up()
        self._position = Position(epoch, 0)
        self._history.clear()

    def catch_up(self) -> None:
        """Read what was missed, in as many portions as that takes."""
        if not self._sequencer.reading:
            return
        self._expect()
        complete = False
        while not complete:
            after = self._sequencer.query.after
            follows = after.epoch == self._position.epoch
            found = [entry for entry in self._history if entry[1] > after.sequence]
            entries = found[:MAX_READ] if follows else self._history[-MAX_READ:]
            self._sequencer.reading = True
            complete = self._sequencer.catch_up(TopicHistory(self._position, follows, entries))
        assert (self._stream.epoch, self._stream.sequence) == (self._at.epoch, self._at.sequence)

    def _expect(self) -> None:
        self._reading = False
        if self._at.epoch != self._position.epoch:
            self._gap(self._position)
        for kind, sequence, _ in self._history:
            if sequence > self._at.sequence:
                if sequence > self._at.sequence + 1:
                    self._gap(Position(self._position.epoch, sequence - 1))
                self._publication(kind, sequence)

    def _gap(self, position: Position) -> None:
        self._at = position
        self._came(None, position, -1)

    def _publication(self, kind: Kind, sequence: int) -> None:
        self._at = Position(self._at.epoch, sequence)
        self._came(kind, self._at, self._values[sequence])
