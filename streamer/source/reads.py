"""The topics whose positions are to be read from Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NoReturn, Protocol

import trio

from streamer.hub.streams import TopicStream
from streamer.source.sequencer import Sequencer

_RENEWAL_SECONDS: Final = 1.0
"""The least time between two connections that are opened since Redis is behind."""


class TopicReads(Protocol):
    """Takes requests to read topics, and lets callers wait until they are read."""

    def add(self, sequencer: Sequencer) -> None:
        """Request the position of a topic."""

    def discard(self, sequencer: Sequencer) -> None:
        """Withdraw the request for a topic that was closed."""

    def announce(self, stream: TopicStream) -> None:
        """Announce to other servers another name by which clients know a stream's epoch."""

    def note_connection(self) -> None:
        """Take note that the bus was connected, or lost."""

    def note_behind(self) -> None:
        """Take note that Redis answered with less than has been received from it."""

    async def wait_progress(self) -> None:
        """Wait until topics have been read, or the bus was connected or lost."""


class NoReads:
    """A `TopicReads` without stored positions: each request is answered at once."""

    def add(self, sequencer: Sequencer) -> None:
        """Answer that there is no position."""
        sequencer.ask()
        sequencer.answer(None)

    def discard(self, sequencer: Sequencer) -> None:
        """Do nothing: no topic ever waits."""

    def announce(self, stream: TopicStream) -> None:
        """Do nothing: no other server has these topics."""

    def note_connection(self) -> None:
        """Do nothing: no task waits for it."""

    def note_behind(self) -> None:
        """Do nothing: there is no answer."""

    async def wait_progress(self) -> NoReturn:
        """Wait for ever: there is never any progress."""
        await trio.sleep_forever()


class ReadQueue:
    """A `TopicReads` that queues the topics to read and the names to announce."""

    def __init__(self, renew_connection: Callable[[], None]) -> None:
        """`renew_connection` has topics read over a new connection from then on.

        It is called when the bus is connected: another server may have taken the place of the one
        that answered before. One that is behind still answers, and publications that go beyond its
        positions are rejected.
        """
        self._renew_connection = renew_connection
        self._renewed_seconds = float("-inf")
        self._sequencers: dict[Sequencer, None] = {}
        self._renamed: list[TopicStream] = []
        self._filled = trio.Event()
        self._progress = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._sequencers)

    def __iter__(self) -> Iterator[Sequencer]:
        """Iterate over the topics to read, the longest waiting first."""
        return iter(self._sequencers)

    def __contains__(self, sequencer: Sequencer) -> bool:
        return sequencer in self._sequencers

    def add(self, sequencer: Sequencer) -> None:
        """See `TopicReads`."""
        self._sequencers[sequencer] = None
        self._filled.set()

    def discard(self, sequencer: Sequencer) -> None:
        """See `TopicReads`."""
        self._sequencers.pop(sequencer, None)

    def postpone(self, sequencer: Sequencer) -> None:
        """Let the others go first, if the topic is not closed."""
        if sequencer in self._sequencers:
            del self._sequencers[sequencer]
            self._sequencers[sequencer] = None

    def announce(self, stream: TopicStream) -> None:
        """See `TopicReads`."""
        self._renamed.append(stream)
        self._filled.set()

    def take_renamed(self) -> list[TopicStream]:
        """Return the streams to announce, and forget them."""
        renamed, self._renamed = self._renamed, []
        return renamed

    def note_connection(self) -> None:
        """See `TopicReads`."""
        self._renew_connection()
        self._filled.set()
        self.note_progress()

    def note_behind(self) -> None:
        """See `TopicReads`."""
        # Anybody may publish what goes beyond Redis: that must not cost a connection each time.
        if trio.current_time() >= self._renewed_seconds + _RENEWAL_SECONDS:
            self._renewed_seconds = trio.current_time()
            self._renew_connection()

    async def wait(self) -> None:
        """Wait until there are topics to read or names to announce, or the bus was connected."""
        await self._filled.wait()
        self._filled = trio.Event()

    def note_progress(self) -> None:
        """Wake those in `wait_progress`."""
        self._progress.unpark_all()

    async def wait_progress(self) -> None:
        """See `TopicReads`."""
        await self._progress.park()
