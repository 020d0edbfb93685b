"""The contract between the hub, with its sessions, and the source of publications.

The hub calls nothing above it: it records in an `Upstream` which topics its clients want, and the
source takes that record (`streamer.source.demand`).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import Protocol

import attrs

from streamer.hub.streams import TopicStream
from streamer.protocol.messages import Position
from streamer.protocol.topics import Topic


class Upstream(Protocol):
    """Where the hub records which topics are wanted."""

    def want(self, stream: TopicStream) -> None:
        """Record that a topic is wanted which nobody had; its publications go to `stream`."""

    def join(self, topic: Topic) -> None:
        """Record that a topic has its first subscriber, which learns the stream's position."""

    def release(self, topic: Topic) -> None:
        """Record that nobody has had the topic for the linger time."""


class RecoveryOutcome(enum.Enum):
    """Whether a client that names a position can go on from it."""

    RECOVERED = "recovered"
    """The hub knows all that followed the position: `Hub.missed` returns it."""
    EXPIRED = "expired"
    """Nothing keeps what followed the position, or it is a position of another stream."""
    UNAVAILABLE = "unavailable"
    """The source cannot be asked now: what followed may still be kept there."""


@attrs.frozen
class Recovery:
    """Where a client that names a position goes on in a topic."""

    outcome: RecoveryOutcome
    position: Position
    """The position that the client named; if recovered, with the name its epoch has here."""


class Source(Protocol):
    """Where publications come from, as far as subscribing depends on it."""

    async def prepare(
        self, topics: Collection[Topic], since: Mapping[Topic, Position]
    ) -> dict[Topic, Recovery]:
        """Wait until these topics are live, and fetch what followed the positions in `since`.

        `topics` must have been wanted before (`Hub.stream`); those in `since` are among them. One
        deadline holds for all of it: `subscribe_timeout_seconds`. When it is over, or while the
        source is away, a topic without a position counts as ready, and one whose position cannot
        be looked up as unavailable. Returns one `Recovery` for each topic in `since`. Nothing may
        wait between this call and what relies on its result.
        """

    def is_forbidden(self, topic: Topic) -> bool:
        """Whether the server itself may not read a topic that is wanted, so that nothing comes."""
