"""Messages that wait for the rate of their subscription (`max_rate`).

A client may hold hundreds of such subscriptions, and each of them may have a message that waits, so
this is kept small: a tuple of one message, and a place in a list that all subscriptions share whose
messages may be sent at the same time.
"""

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
    waiting: tuple[Publication, ...]
    """The messages that wait; kept by the queue."""
    scheduled: bool
    """Whether the queue has a time for them; kept by the queue."""


S = TypeVar("S", bound=Limited)


class RateQueue(Generic[S]):
    """The messages of one client that wait for their time, ordered by it."""

    __slots__ = ("_count", "_scheduled", "_times", "_unmerged", "size_bytes")

    def __init__(self) -> None:
        self._scheduled: dict[float, list[S]] = {}
        """Subscriptions by when their messages may be sent: many share the end of one flush."""
        self._times: list[float] = []
        """The keys of these, as a heap."""
        self._count = 0
        self._unmerged: set[Publication] = set()
        """The messages that may not be merged."""
        self.size_bytes = 0
        """The size of these."""

    def __len__(self) -> int:
        """How many messages wait."""
        return self._count

    @property
    def due_seconds(self) -> float | None:
        """When the first message may be sent; None: none waits."""
        return self._times[0] if self._times else None

    def put(self, subscription: S, publication: Publication, *, merge: bool) -> bool:
        """Queue a message; return whether, with `merge`, it replaced an older one."""
        waiting = subscription.waiting
        kept = waiting
        if not merge:
            self._unmerged.add(publication)
            self.size_bytes += len(publication.text)
        elif waiting:
            kind = publication.kind
            unmerged = self._unmerged
            kept = tuple(p for p in waiting if p.kind is not kind or p in unmerged)
        subscription.waiting = (*kept, publication)
        replaced = len(kept) < len(waiting)
        self._count += not replaced
        if not subscription.scheduled:
            self._schedule(subscription)
        return replaced

    def take_due(self, now_seconds: float) -> Iterator[tuple[S, Publication, bool]]:
        """Remove and yield the messages that may be sent now.

        Each is with its subscription and with whether it may be merged.
        """
        interval_seconds = due_seconds = 0.0
        while self._times and self._times[0] <= now_seconds:
            for subscription in self._scheduled.pop(heapq.heappop(self._times)):
                subscription.scheduled = False
                if subscription.waiting:
                    # One number for all of them, rather than one for each that is equal to it.
                    if subscription.interval_seconds != interval_seconds:
                        interval_seconds = subscription.interval_seconds
                        due_seconds = now_seconds + interval_seconds
                    subscription.due_seconds = due_seconds
                    for publication, may_merge in self._remove(subscription):
                        yield subscription, publication, may_merge

    def take(self, subscription: S) -> list[tuple[Publication, bool]]:
        """Remove and return the messages of a subscription, each with whether it may be merged."""
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
            kept: list[Publication] = []
            for publication in subscription.waiting:
                if unwanted(subscription, publication):
                    self._forget(publication)
                else:
                    kept.append(publication)
            subscription.waiting = tuple(kept)
        self._unschedule([s for s in subscriptions if not s.waiting])
        return before - self._count

    def clear(self) -> None:
        """Drop everything."""
        for subscriptions in self._scheduled.values():
            for subscription in subscriptions:
                subscription.waiting = ()
                subscription.scheduled = False
        self._scheduled.clear()
        self._times.clear()
        self._unmerged.clear()
        self._count = self.size_bytes = 0

    def _remove(self, subscription: S) -> list[tuple[Publication, bool]]:
        waiting, subscription.waiting = subscription.waiting, ()
        return [(publication, self._forget(publication)) for publication in waiting]

    def _forget(self, publication: Publication) -> bool:
        """Stop counting a message; return whether it may be merged."""
        self._count -= 1
        if publication not in self._unmerged:
            return True
        self._unmerged.remove(publication)
        self.size_bytes -= len(publication.text)
        return False

    def _schedule(self, subscription: S) -> None:
        subscription.scheduled = True
        due_seconds = subscription.due_seconds
        if (subscriptions := self._scheduled.get(due_seconds)) is None:
            self._scheduled[due_seconds] = [subscription]
            heapq.heappush(self._times, due_seconds)
        else:
            subscriptions.append(subscription)

    def _unschedule(self, subscriptions: Collection[S]) -> None:
        if any(subscription.scheduled for subscription in subscriptions):
            for subscription in subscriptions:
                subscription.scheduled = False
            kept = {
                due_seconds: [one for one in scheduled if one.scheduled]
                for due_seconds, scheduled in self._scheduled.items()
            }
            self._scheduled = {due_seconds: these for due_seconds, these in kept.items() if these}
            self._times = sorted(self._scheduled)
