"""Messages that wait for the rate of their subscription (`max_rate`)."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator
from typing import Generic, Protocol, TypeVar

from streamer.hub.publication import Publication


class Limited(Protocol):
    """A subscription with a limited rate, as the queue sees it."""

    interval_seconds: float
    """The least time between two messages of one kind."""
    due_seconds: float
    """When the next message may be sent, on the hub's clock."""
    waiting: dict[object, Publication] | None
    """The messages that wait, by kind where they may be merged; kept by the queue."""
    scheduled: bool
    """Whether the queue has a time for them; kept by the queue."""


S = TypeVar("S", bound=Limited)


class RateQueue(Generic[S]):
    """The messages of one client that wait for their time, ordered by it."""

    __slots__ = ("_count", "_heap", "_pushed", "size_bytes")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, S]] = []
        """Subscriptions by when their messages may be sent."""
        self._pushed = 0
        """Counts entries of the heap, so that it never compares subscriptions."""
        self._count = 0
        self.size_bytes = 0
        """The size of the messages that may not be merged."""

    def __len__(self) -> int:
        """How many messages wait."""
        return self._count

    @property
    def due_seconds(self) -> float | None:
        """When the first message may be sent; None: none waits."""
        return self._heap[0][0] if self._heap else None

    def put(self, subscription: S, publication: Publication, *, merge: bool) -> bool:
        """Queue a message; return whether, with `merge`, it replaced an older one."""
        waiting = subscription.waiting
        if waiting is None:
            waiting = subscription.waiting = {}
        key: object = publication.kind if merge else publication
        replaced = waiting.pop(key, None) is not None
        waiting[key] = publication
        self._count += not replaced
        if not merge:
            self.size_bytes += len(publication.text)
        if not subscription.scheduled:
            subscription.scheduled = True
            self._pushed += 1
            heapq.heappush(self._heap, (subscription.due_seconds, self._pushed, subscription))
        return replaced

    def take_due(self, now_seconds: float) -> Iterator[tuple[S, Publication]]:
        """Remove and yield the messages that may be sent now."""
        while self._heap and self._heap[0][0] <= now_seconds:
            subscription = heapq.heappop(self._heap)[2]
            subscription.scheduled = False
            if subscription.waiting:
                subscription.due_seconds = now_seconds + subscription.interval_seconds
                for _, publication in self._remove(subscription):
                    yield subscription, publication

    def take(self, subscription: S) -> list[tuple[object, Publication]]:
        """Remove and return the messages of a subscription, each with its key."""
        taken = self._remove(subscription)
        self._unschedule((subscription,))
        return taken

    def discard(
        self, subscriptions: Collection[S], unwanted: Callable[[S, Publication], bool]
    ) -> int:
        """Drop the messages of `subscriptions` that are `unwanted`; return how many."""
        before = self._count
        for subscription in subscriptions:
            if not subscription.waiting:
                continue
            for key, publication in tuple(subscription.waiting.items()):
                if unwanted(subscription, publication):
                    del subscription.waiting[key]
                    self._count -= 1
                    if key is publication:
                        self.size_bytes -= len(publication.text)
        self._unschedule([s for s in subscriptions if not s.waiting])
        return before - self._count

    def clear(self) -> None:
        """Drop everything."""
        for _, _, subscription in self._heap:
            subscription.waiting = None
            subscription.scheduled = False
        self._heap.clear()
        self._count = self.size_bytes = 0

    def _remove(self, subscription: S) -> list[tuple[object, Publication]]:
        removed = list((subscription.waiting or {}).items())
        subscription.waiting = None
        self._count -= len(removed)
        for key, publication in removed:
            if key is publication:
                self.size_bytes -= len(publication.text)
        return removed

    def _unschedule(self, subscriptions: Collection[S]) -> None:
        if any(subscription.scheduled for subscription in subscriptions):
            for subscription in subscriptions:
                subscription.scheduled = False
            self._heap = [entry for entry in self._heap if entry[2].scheduled]
            heapq.heapify(self._heap)
