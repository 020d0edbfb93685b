"""The messages that wait for one client: missed ones, pending ones, and those with a rate."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Final, Generic, Protocol, TypeVar

from streamer.hub.publication import Publication
from streamer.hub.rate_queue import Limited, RateQueue
from streamer.hub.replay_queue import ReplayQueue

_ORDER: Final = attrgetter("order")


class Waiting(Limited, Hashable, Protocol):
    """A subscription, as the backlog sees it."""


S = TypeVar("S", bound=Waiting)

Entry = tuple[S, Publication]

Pending = tuple[object, Entry[S]]
"""A pending message and its key."""


class Backlog(Generic[S]):
    """Publications that a client could not be sent yet, and those that it missed before.

    Missed messages come first. Everything else is ordered by publication when it is taken.
    """

    __slots__ = ("_limited", "_pending", "_pending_bytes", "_replays")

    def __init__(self) -> None:
        self._replays: ReplayQueue[S] | None = None
        """Missed messages; None unless the client came back."""
        self._pending: dict[object, Entry[S]] = {}
        """Pending messages. The key of one whose size counts is the publication, that of one that
        a newer one replaces has subscription and kind. Others have a key of their own, too."""
        self._pending_bytes = 0
        """The size of the pending messages that count."""
        self._limited: RateQueue[S] | None = None
        """Messages of subscriptions with a limited rate; most clients have none."""

    def __len__(self) -> int:
        """How many messages wait, missed ones aside."""
        count = len(self._pending)
        if self._limited is not None:
            count += len(self._limited)
        if self._replays is not None:
            count += self._replays.live
        return count

    @property
    def queued_bytes(self) -> int:
        """The size of the waiting messages that have to be sent, replays aside.

        In mode latest, prices, order books and last known values do not count: newer ones may
        replace them.
        """
        return self._pending_bytes + (0 if self._limited is None else self._limited.size_bytes)

    @property
    def due_seconds(self) -> float | None:
        """When the first message that waits for its rate may be sent; None: none waits."""
        return None if self._limited is None else self._limited.due_seconds

    @property
    def next_seconds(self) -> float | None:
        """When the first message of all may be sent, long ago if at once; None: none waits."""
        return -math.inf if self._pending or self._replays else self.due_seconds

    @property
    def has_more(self) -> bool:
        """Whether missed or pending messages wait, those that wait for a rate aside."""
        return bool(self._pending or self._replays)

    def is_behind(self, subscription: S) -> bool:
        """Whether messages wait that may belong to a subscription."""
        return bool(self._pending or subscription.waiting or self._replays)

    def pending(self) -> Mapping[S, Sequence[Pending[S]]]:
        """Return the pending messages of each subscription that has any, found in one pass."""
        pending: defaultdict[S, list[Pending[S]]] = defaultdict(list)
        for one in self._pending.items():
            pending[one[1][0]].append(one)
        return pending

    def waiting_gap(self, subscription: S, pending: Iterable[Pending[S]]) -> Publication | None:
        """Return the last waiting gap of a subscription, other than those that it has missed.

        `pending` are its pending messages.
        """
        waiting = [publication for _, (_, publication) in pending]
        waiting += subscription.waiting
        if self._replays is not None:
            waiting += self._replays.live_of(subscription)
        return max((p for p in waiting if p.epoch is not None), key=_ORDER, default=None)

    def is_gap_owed(self, subscription: S) -> bool:
        """Whether a gap, or the last known values after it, come next in a replay."""
        return self._replays is not None and self._replays.is_gap_next(subscription)

    # Adding

    def put(
        self, subscription: S, publication: Publication, *, merge: bool, counts: bool = True
    ) -> bool:
        """Let one publication wait; return whether it replaced an older one.

        With `merge`, it replaces one of its kind. `counts`: whether it counts to `queued_bytes`; a
        last known value that does not replaces an older one.
        """
        # A message without a rate (a gap) does not overtake those that wait for their rate.
        if subscription.interval_seconds and (publication.merges or subscription.waiting):
            if self._limited is None:
                self._limited = RateQueue()
            return self._limited.put(subscription, publication, merge=merge or not counts)
        if merge or counts:
            return self._add(subscription, publication, merge=merge)
        # The next flush takes all of these. If it leaves some to a later portion, newer ones merge.
        key = (subscription, publication.kind, "last") if publication.notice else (publication,)
        return self._set(key, subscription, publication)

    def _add(self, subscription: S, publication: Publication, *, merge: bool) -> bool:
        if merge:
            return self._set((subscription, publication.kind), subscription, publication)
        self._pending[publication] = (subscription, publication)
        self._pending_bytes += len(publication.text)
        return False

    def _set(self, key: object, subscription: S, publication: Publication) -> bool:
        replaced = self._pending.pop(key, None) is not None
        self._pending[key] = (subscription, publication)
        return replaced

    def release_limited(self, subscription: S) -> int:
        """Send the messages that wait for their rate with the next flush, since the rate changes.

        Returns how many older messages they replace.
        """
        replaced = 0
        subscription.due_seconds = 0.0
        if self._limited is not None:
            for publication, may_merge in self._limited.take(subscription):
                replaced += self._add(subscription, publication, merge=may_merge)
        return replaced

    def replay(
        self,
        subscription: S,
        missed: Sequence[Publication],
        size_bytes: int,
        *,
        keeps_live: bool,
    ) -> None:
        """Let the missed messages of a subscription wait in front of everything else.

        `size_bytes` is that of their texts. With `keeps_live`, what is published meanwhile follows
        them (`append_to_replay`).
        """
        if self._replays is None:
            self._replays = ReplayQueue()
        self._replays.add(subscription, missed, size_bytes, keeps_live=keeps_live)

    def append_to_replay(self, subscription: S, publication: Publication) -> bool:
        """Append a publication to the replay of a subscription; return whether it belongs there."""
        return self._replays is not None and self._replays.append(subscription, publication)

    def stop_keeping(self, subscription: S) -> None:
        """Append nothing more to the replay of a subscription: its options change."""
        if self._replays is not None:
            self._replays.stop_keeping(subscription)

    def insert_missed(self, subscription: S, publication: Publication) -> bool:
        """See `ReplayQueue.insert_missed`."""
        return self._replays is not None and self._replays.insert_missed(subscription, publication)

    def insert_live(self, subscription: S, publication: Publication) -> bool:
        """See `ReplayQueue.insert_live`."""
        return self._replays is not None and self._replays.insert_live(subscription, publication)

    # Taking

    @property
    def replaying(self) -> bool:
        """Whether missed messages are still to be replayed."""
        return bool(self._replays)

    @property
    def replay_bytes(self) -> int:
        """The size of the missed messages that are still to be replayed."""
        return 0 if self._replays is None else self._replays.size_bytes

    def take_replay(
        self, portion_bytes: int
    ) -> list[tuple[S, list[Publication], list[Publication]]]:
        """Remove and return the first messages of the replay, until they reach `portion_bytes`.

        Each item is a subscription, with missed messages and those that came meanwhile.
        """
        if self._replays is None:
            return []
        portion = list(self._replays.take(portion_bytes))
        if not self._replays:
            self._replays = None
        return portion

    def take(self, now_seconds: float) -> list[Entry[S]]:
        """Remove and return the messages that may be sent now, in order of publication."""
        limited = self._limited
        due_seconds = None if limited is None else limited.due_seconds
        due = due_seconds is not None and due_seconds <= now_seconds
        if not self._pending and not due:
            return []
        entries = list(self._pending.values())
        self._pending = {}
        self._pending_bytes = 0
        if limited is not None:
            entries += [(one, publication) for one, publication, _ in limited.take_due(now_seconds)]
        entries.sort(key=_publication_order)
        return entries

    def take_some(self, now_seconds: float, portion_bytes: int) -> tuple[list[Entry[S]], int]:
        """As `take`, but only the first messages, until their texts reach `portion_bytes`.

        A gap is taken with the last known values after it: a client that has received it and
        resumes there is not sent them again. Returns also how many older messages were replaced by
        those whose time had come.
        """
        replaced = 0
        if self._limited is not None:
            for subscription, publication, may_merge in self._limited.take_due(now_seconds):
                replaced += self._add(subscription, publication, merge=may_merge)
        entries: list[Entry[S]] = []
        left = portion_bytes
        for key, entry in sorted(self._pending.items(), key=_pending_order):
            publication = entry[1]
            if left <= 0 and not publication.is_last_value:
                break
            left -= len(publication.text)
            entries.append(entry)
            del self._pending[key]
            if key is publication:
                self._pending_bytes -= len(publication.text)
        return entries, replaced

    # Dropping

    def discard(
        self,
        subscriptions: Collection[S],
        unwanted: Callable[[S, Publication], bool],
        pending: Iterable[Pending[S]] | None = None,
    ) -> int:
        """Drop the `unwanted` messages of `subscriptions`, in one pass for all of them.

        `pending` are their pending messages, if the caller has found them already. Returns how many
        messages were dropped, missed ones aside.
        """
        count = 0
        for key, entry in tuple(self._pending.items()) if pending is None else pending:
            if unwanted(*entry):
                del self._pending[key]
                count += 1
                if key is entry[1]:
                    self._pending_bytes -= len(entry[1].text)
        if self._limited is not None:
            count += self._limited.discard(subscriptions, unwanted)
        if self._replays is not None:
            count += self._replays.discard(subscriptions, unwanted)
        return count

    def clear(self) -> int:
        """Drop everything; return how many messages were dropped, missed ones aside."""
        count = len(self)
        self._pending.clear()
        self._pending_bytes = 0
        if self._limited is not None:
            self._limited.clear()
        self._replays = None
        return count


def _pending_order(pending: tuple[object, Entry[S]]) -> int:
    return pending[1][1].order


def _publication_order(entry: tuple[object, Publication]) -> int:
    return entry[1].order
