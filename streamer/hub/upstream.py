"""The contract between the hub, with its sessions, and the source of publications.

The hub calls nothing above it: it records in an `Upstream` which topics its clients want, and the
source takes that record (`streamer.source.demand`).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

import attrs

from streamer.hub.streams import TopicStream
from streamer.protocol.messages import Position
from streamer.protocol.topics import Topic


class Upstream(Protocol):
    """Where the hub records which topics are wanted."""

    def want(self, stream: TopicStream) -> None:
        """Record that a new topic is wanted; its publications go to `stream`."""

    def join(self, topic: Topic) -> None:
        """Record that a topic has its first subscriber, which learns the stream's position."""

    def release(self, topic: Topic) -> None:
        """Record that the topic has had no subscriber for the linger time."""


class RecoveryOutcome(enum.Enum):
    """Whether a client that names a position can continue from it."""

    RECOVERED = "recovered"
    """The hub knows all publications after the position: `Hub.missed` returns them."""
    EXPIRED = "expired"
    """The publications after the position are no longer kept, or it is of another stream."""
    UNAVAILABLE = "unavailable"
    """The source cannot be asked now: it may still keep the publications after the position."""


@attrs.frozen
class Recovery:
    """The position from which a client that names one continues in a topic."""

    outcome: RecoveryOutcome
    position: Position
    """The position that the client named; if recovered, with the name its epoch has here."""


class Source(Protocol):
    """Where publications come from, as far as subscribing depends on it."""

    async def prepare(
        self, topics: Collection[Topic], since: Mapping[Topic, Position]
    ) -> dict[Topic, Recovery]:
        """Wait until these topics are live, and fetch the history after the positions in `since`.

        `topics` must have been wanted before (`Hub.stream`); those in `since` are among them. One
        deadline holds for all of it: `subscribe_timeout_seconds`, or a few times that while Redis
        answers others. When it is over, or while the source is away, a topic without a position
        counts as ready, and one whose position cannot be looked up as unavailable. Returns one
        `Recovery` for each topic in `since`. The result holds until one of the topics is released;
        a gap covers what the hub drops until then.
        """

    def prepare_nowait(
        self, topics: Collection[Topic], since: Mapping[Topic, Position]
    ) -> dict[Topic, Recovery] | None:
        """Do what `prepare` does, if it need not wait; None if it has to."""

    def forbidden(self, topics: Iterable[Topic]) -> list[Topic]:
        """Return those of these wanted topics that the server's own Redis user may not read."""
