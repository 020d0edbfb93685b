"""Messages that one client has missed, which it is sent before anything live."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Final, Generic, TypeVar

import attrs

from streamer.hub.publication import Publication, text_bytes

_SEQUENCE: Final = attrgetter("sequence")
_ORDER: Final = attrgetter("order")

S = TypeVar("S", bound=Hashable)


@attrs.define
class Replay:
    """The messages of one subscription: what it missed, and then what was published meanwhile."""

    missed: deque[Publication]
    live: deque[Publication] = attrs.field(factory=deque)
    """Publications that may not be merged and came during the replay."""
    keeps_live: bool = False


class ReplayQueue(Generic[S]):
    """Missed publications, one subscription after the other, each in order.

    They are held here because the client was promised them, even if the history drops them.
    """

    __slots__ = ("_replays", "live", "size_bytes")

    def __init__(self) -> None:
        self._replays: dict[S, Replay] = {}
        self.live = 0
        """How many publications came during the replay."""
        self.size_bytes = 0
        """The size of all the texts."""

    def __len__(self) -> int:
        """How many subscriptions have messages to be replayed."""
        return len(self._replays)

    def missed(self, subscription: S) -> Sequence[Publication]:
        """Return what a subscription has missed and is still to be sent."""
        replay = self._replays.get(subscription)
        return () if replay is None else replay.missed

    def is_gap_next(self, subscription: S) -> bool:
        """Whether a gap, or a last known value after it, is the first message of a subscription."""
        replay = self._replays.get(subscription)
        first = None if replay is None else next(iter(replay.missed or replay.live), None)
        return first is not None and first.notice

    def add(
        self,
        subscription: S,
        missed: Sequence[Publication],
        size_bytes: int,
        *,
        keeps_live: bool = False,
    ) -> None:
        """Append the missed messages of a subscription that is not in the queue yet.

        `size_bytes` is that of their texts. With `keeps_live`, what is published meanwhile is to
        follow them (`append`): a client in mode `all` that comes back must not be too slow for what
        it has not had time to read.
        """
        if missed:
            self._replays[subscription] = Replay(deque(missed), keeps_live=keeps_live)
            self.size_bytes += size_bytes

    def append(self, subscription: S, publication: Publication) -> bool:
        """Append a publication of a subscription that keeps them; return whether it does."""
        replay = self._replays.get(subscription)
        if replay is None or not replay.keeps_live:
            return False
        replay.live.append(publication)
        self.live += 1
        self.size_bytes += len(publication.text)
        return True

    def stop_keeping(self, subscription: S) -> None:
        """Append nothing more to a subscription: its options change."""
        if subscription in self._replays:
            self._replays[subscription].keeps_live = False

    def live_of(self, subscription: S) -> Sequence[Publication]:
        """Return what was published during the replay of a subscription and follows it."""
        replay = self._replays.get(subscription)
        return () if replay is None else replay.live

    def insert_missed(self, subscription: S, publication: Publication) -> bool:
        """Insert a publication of a newly wanted kind among missed ones of its epoch.

        Returns whether it belongs there.
        """
        missed = self.missed(subscription)
        if not missed or missed[-1].sequence <= publication.sequence:
            return False
        index = bisect_left(missed, publication.sequence, key=_SEQUENCE)
        self._replays[subscription].missed.insert(index, publication)
        self.size_bytes += len(publication.text)
        return True

    def insert_live(self, subscription: S, publication: Publication) -> bool:
        """Insert a publication of a newly wanted kind among those that came during the replay.

        Returns whether it belongs there: in front of one that was published later.
        """
        live = self.live_of(subscription)
        if not live or live[-1].order <= publication.order:
            return False
        index = bisect_right(live, publication.order, key=_ORDER)
        self._replays[subscription].live.insert(index, publication)
        self.live += 1
        self.size_bytes += len(publication.text)
        return True

    def take(self, portion_bytes: int) -> Iterator[tuple[S, list[Publication], list[Publication]]]:
        """Remove and yield the first publications, until their texts reach `portion_bytes`.

        Each item is a subscription, with missed publications and those that came meanwhile.
        """
        left = portion_bytes
        while self._replays and left > 0:
            subscription, replay = next(iter(self._replays.items()))
            portions: tuple[list[Publication], list[Publication]] = ([], [])
            for portion, waiting in zip(portions, (replay.missed, replay.live), strict=True):
                while waiting and left > 0:
                    publication = waiting.popleft()
                    left -= len(publication.text)
                    portion.append(publication)
            if not replay.missed and not replay.live:
                del self._replays[subscription]
            self.live -= len(portions[1])
            yield subscription, *portions
        self.size_bytes -= portion_bytes - left

    def discard(
        self, subscriptions: Iterable[S], unwanted: Callable[[S, Publication], bool]
    ) -> int:
        """Drop the publications of `subscriptions` that are `unwanted`.

        Returns how many of them came during the replay.
        """
        before = self.live
        for subscription in subscriptions:
            replay = self._replays.get(subscription)
            if replay is None:
                continue
            self._count(replay, -1)
            replay.missed = deque(p for p in replay.missed if not unwanted(subscription, p))
            replay.live = deque(p for p in replay.live if not unwanted(subscription, p))
            self._count(replay, 1)
            if not replay.missed and not replay.live:
                del self._replays[subscription]
        return before - self.live

    def _count(self, replay: Replay, sign: int) -> None:
        """Count a replay among all (`sign` 1), or not any more (-1)."""
        self.size_bytes += sign * (text_bytes(replay.missed) + text_bytes(replay.live))
        self.live += sign * len(replay.live)
