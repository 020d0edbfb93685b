"""The record of wanted topics, which the hub writes and the source reads.

It is made before both, so that neither needs the other in its constructor.
"""

from __future__ import annotations

import attrs
import trio

from streamer.hub.streams import TopicStream
from streamer.protocol.topics import Topic


@attrs.frozen
class Wanted:
    """A topic is wanted."""

    stream: TopicStream


@attrs.frozen
class Joined:
    """A topic has its first subscriber."""

    topic: Topic


@attrs.frozen
class Released:
    """A topic is not wanted any more."""

    topic: Topic


DemandChange = Wanted | Joined | Released


class TopicDemand:
    """The changes of demand that the source has not taken yet, in order: the hub's `Upstream`."""

    def __init__(self) -> None:
        self._changes: list[DemandChange] = []
        self._changed = trio.Event()

    def want(self, stream: TopicStream) -> None:
        """See `streamer.hub.upstream.Upstream`."""
        self._record(Wanted(stream))

    def join(self, topic: Topic) -> None:
        """See `streamer.hub.upstream.Upstream`."""
        self._record(Joined(topic))

    def release(self, topic: Topic) -> None:
        """See `streamer.hub.upstream.Upstream`."""
        self._record(Released(topic))

    def _record(self, change: DemandChange) -> None:
        self._changes.append(change)
        self._changed.set()

    def take(self) -> list[DemandChange]:
        """Return the changes since the last call, oldest first."""
        changes = self._changes
        if changes:
            self._changes = []
            self._changed = trio.Event()
        return changes

    async def wait(self) -> None:
        """Wait until there is something to take."""
        await self._changed.wait()
