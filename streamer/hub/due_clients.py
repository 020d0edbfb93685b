"""Clients with messages that wait for a rate or for bandwidth, by when these may be sent."""

from __future__ import annotations

import heapq
import itertools
from typing import Final

from streamer.hub.outbox import Outbox

_OUTDATED_ENTRIES: Final = 100
"""Entries out of date that are kept in any case while no client leaves."""


class DueClients:
    """The clients to flush at a later time, each once, ordered by that time."""

    def __init__(self) -> None:
        self._seconds: dict[Outbox, float] = {}
        self._heap: list[tuple[float, int, Outbox]] = []
        """The same in order; an entry that `_seconds` does not confirm is out of date."""
        self._numbers = itertools.count()
        """Numbers the entries, so that the heap never compares clients."""

    def __bool__(self) -> bool:
        """Whether there is any client."""
        return bool(self._seconds)

    def put(self, outbox: Outbox, due_seconds: float) -> bool:
        """Add a client, or change its time, on the hub's clock; return whether that was new."""
        if self._seconds.get(outbox) == due_seconds:
            return False
        self._seconds[outbox] = due_seconds
        heapq.heappush(self._heap, (due_seconds, next(self._numbers), outbox))
        self._drop_outdated(_OUTDATED_ENTRIES)
        return True

    def discard(self, outbox: Outbox) -> None:
        """Remove a client, if it is there."""
        if self._seconds.pop(outbox, None) is not None:
            self._drop_outdated(0)  # they would keep clients that have left

    def _drop_outdated(self, allowed: int) -> None:
        """Drop entries out of date if they outnumber the others by more than `allowed`."""
        if len(self._heap) > 2 * len(self._seconds) + allowed:
            seconds = self._seconds
            self._heap = [entry for entry in self._heap if seconds.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    @property
    def due_seconds(self) -> float | None:
        """The first client's time; None: there is none."""
        heap = self._heap
        while heap and self._seconds.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def pop(self) -> Outbox:
        """Remove and return the client with the time that `due_seconds` has just returned."""
        outbox = heapq.heappop(self._heap)[2]
        del self._seconds[outbox]
        return outbox
