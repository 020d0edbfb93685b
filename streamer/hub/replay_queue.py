"""Messages that one client has missed, which it is sent before anything live."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from streamer.hub.publication import Publication

S = TypeVar("S", bound=Hashable)


class ReplayQueue(Generic[S]):
    """Missed publications, one subscription after the other, each in order.

    They are held here because the client was promised them, even if the history drops them.
    """

    __slots__ = ("_missed", "size_bytes")

    def __init__(self) -> None:
        self._missed: dict[S, deque[Publication]] = {}
        self.size_bytes = 0
        """The size of all the texts."""

    def __len__(self) -> int:
        """How many subscriptions have messages to be replayed."""
        return len(self._missed)

    def add(self, subscription: S, missed: Sequence[Publication]) -> None:
        """Append the missed messages of a subscription that is not in the queue yet."""
        if missed:
            self._missed[subscription] = deque(missed)
            self.size_bytes += _size_bytes(missed)

    def insert(self, subscription: S, publication: Publication) -> bool:
        """Insert a publication of a newly wanted kind; return whether it belongs in the queue."""
        missed = self._missed.get(subscription)
        if not missed or missed[-1].sequence <= publication.sequence:
            return False
        index = sum(other.sequence < publication.sequence for other in missed)
        missed.insert(index, publication)
        self.size_bytes += len(publication.text)
        return True

    def take(self, portion_bytes: int) -> Iterator[tuple[S, list[Publication]]]:
        """Remove and yield the first publications, until their texts reach `portion_bytes`."""
        left = portion_bytes
        while self._missed and left > 0:
            subscription, missed = next(iter(self._missed.items()))
            portion = []
            while missed and left > 0:
                publication = missed.popleft()
                left -= len(publication.text)
                portion.append(publication)
            if not missed:
                del self._missed[subscription]
            yield subscription, portion
        self.size_bytes -= portion_bytes - left

    def discard(
        self, subscriptions: Collection[S], unwanted: Callable[[S, Publication], bool]
    ) -> None:
        """Drop the publications of `subscriptions` that are `unwanted`."""
        for subscription in subscriptions:
            if missed := self._missed.pop(subscription, None):
                kept = deque(p for p in missed if not unwanted(subscription, p))
                self.size_bytes -= _size_bytes(missed) - _size_bytes(kept)
                if kept:
                    self._missed[subscription] = kept


def _size_bytes(publications: Iterable[Publication]) -> int:
    return sum(len(publication.text) for publication in publications)
