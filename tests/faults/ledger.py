"""Check the producer's numbers that one client received against the stream's positions.

The Verifier of `streamer.client` checks that a stream is consistent: `sequence`, `previous`, `gap`.
This checks that it is also true, by the payload: each publication carries its number.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

import attrs

from streamer.client import Data, Event, Gap, Position, PriceUpdate
from streamer.protocol.messages import GapReason


@attrs.define
class TopicAccount:
    """One client's account of one topic."""

    received: int = 0
    """Publications, each once."""
    merged: int = 0
    """Left out because a newer one stands for them, as `previous` said."""
    lost: int = 0
    """Left out at a gap that was announced."""
    snapshots: int = 0
    number: int = 0
    """The producer's, of the last publication; 0: there was none yet."""
    gaps: Counter[GapReason] = attrs.field(factory=Counter)
    epochs: set[str] = attrs.field(factory=set)
    """Those that gaps have named."""
    problems: list[str] = attrs.field(factory=list)
    may_lose_data: bool = False
    """Whether Redis may forget what was published: publications behind a gap may then repeat."""
    may_skip: bool = False
    """Whether the client changes its subscription: the answer then says where the stream begins."""
    _resumes: Position | None = None
    """The position after a gap, until a message follows it."""

    @property
    def taken(self) -> int:
        """Messages with a value."""
        return self.received + self.snapshots

    @property
    def is_behind_gap(self) -> bool:
        """Whether a gap was announced, and no message has followed it."""
        return self._resumes is not None

    def take(self, event: Data | Gap, number: int = 0) -> None:
        """Enter one message; of a publication also the producer's number."""
        if isinstance(event, Gap):
            self.gaps[event.reason] += 1
            self.epochs.add(event.epoch)
            self._resumes = Position(event.epoch, event.sequence)
        elif event.snapshot:
            self.snapshots += 1
            # The value of the place where the stream goes on is known: nothing is missing behind.
            # A value older than the last one shows that Redis lost some, and not how many.
            is_older = self.may_lose_data and number < self.number
            resumes = self._resumes
            if resumes is not None and resumes.sequence == event.sequence and not is_older:
                self._advance(number, merged=0, what="snapshot")
        else:
            self.received += 1
            merged = event.sequence - event.follows - 1
            self._advance(number, merged=merged, what=f"sequence {event.sequence}")

    def _advance(self, number: int, *, merged: int, what: str) -> None:
        missing = number - self.number - 1 - merged
        if not self.number:
            pass  # the first one: what came before it was not asked for
        elif self._resumes is not None:
            # At a snapshot the last publication may be the one that is held already.
            if missing < (-1 if what == "snapshot" else 0) and not self.may_lose_data:
                self.problems.append(f"{what}: {number} after a gap behind {self.number}")
            self.lost += max(missing, 0)
        elif missing and not (self.may_skip and missing > 0):
            self.problems.append(
                f"{what}: {number} comes after {self.number}, and {merged} were merged"
            )
        self._resumes = None
        self.merged += merged
        self.number = number


def _volume(event: Data) -> int:
    assert isinstance(event, PriceUpdate), event
    return int(event.volume)


class Ledger:
    """One client's accounts by topic."""

    def __init__(
        self, number_of: Callable[[Data], int] = _volume, *, may_lose_data: bool = False
    ) -> None:
        """`number_of` returns the producer's number of a publication."""
        self._number_of = number_of
        self.topics: defaultdict[str, TopicAccount] = defaultdict(
            lambda: TopicAccount(may_lose_data=may_lose_data)
        )

    def take(self, event: Event) -> None:
        """Enter what the client was given."""
        if isinstance(event, Gap):
            self.topics[f"{event.subscription_type}:{event.target}"].take(event)
        else:
            assert isinstance(event, Data), event
            self.topics[str(event.topic)].take(event, self._number_of(event))

    @property
    def taken(self) -> int:
        """Messages with a value, of all topics."""
        return sum(account.taken for account in self.topics.values())

    @property
    def problems(self) -> list[str]:
        """Where the numbers do not agree with the messages."""
        return [
            f"{topic}: {problem}"
            for topic, account in self.topics.items()
            for problem in account.problems
        ]
