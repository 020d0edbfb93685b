"""The wire format of a receiver: how its messages become bytes.

Hub and session decide which messages a client is sent; its format encodes them. Clients that share
a format object and hold the same lanes form a group, whose frames are made once. A new format (a
compressed one, deltas, server-sent events) is a new subclass, chosen when a connection is accepted.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Protocol

from streamer.protocol import messages
from streamer.protocol.topics import Topic

Part = tuple[int, bytes, bool]
"""One message of a write: its order among the publications of all topics, its text, and whether it
is sent by itself, outside a batch."""

Placed = tuple[Topic, str | None, int]
"""A topic, and the epoch and sequence that a receiver is at. The epoch is None where it is owed a
`gap`, or the last known values after one: it has no position to resume from."""

Positions = Callable[[], Iterable[Placed]]
"""Returns where a receiver is in each of its topics, once it has been sent the write under way."""


class Sendable(Protocol):
    """A publication as formats see it (`streamer.hub.publication.Publication`)."""

    @property
    def order(self) -> int:
        """The place among the publications of all topics."""

    @property
    def sequence(self) -> int:
        """The sequence in the topic's stream."""

    @property
    def epoch(self) -> str | None:
        """The epoch that begins with it: it is a `gap` then, which no batch may contain."""

    @property
    def notice(self) -> bool:
        """Whether it is a `gap`, or a last known value after one."""

    @property
    def snapshot_text(self) -> bytes:
        """The JSON as a last known value."""

    def text_following(self, position: int) -> bytes:
        """The JSON for a receiver at the sequence `position`."""


class Stream(Protocol):
    """A topic's stream as formats see it (`streamer.hub.streams.TopicStream`)."""

    topic: Topic


class WireFormat(abc.ABC):
    """Turns messages into bytes for one kind of receiver."""

    __slots__ = ()

    names_positions: ClassVar[bool] = False
    """Whether frames say where their receivers are in every topic, those of messages to one user
    included: such clients share a frame only if they hold all the same topics."""

    def for_group(self, members: int, *, has_newcomer: bool) -> WireFormat:  # noqa: ARG002
        """Return the format that makes the next frames of a group, whose members have changed.

        Called on the format that made its frames so far, at first that of the clients, before the
        next flush; `has_newcomer` says whether a member has not been sent those. `self` where
        frames depend on nothing but their messages: groups that are sent the same messages share
        them. A format that keeps a state for each group, such as a compression window, returns an
        object of the group's own, and gives it up when `members` is 0: the group is over.
        """
        return self

    @abc.abstractmethod
    def part(self, publication: Sendable, position: int, stream: Stream) -> Part:
        """Encode one publication of a stream for a receiver at the sequence `position`."""

    @abc.abstractmethod
    def parts(self, publications: Iterable[Sendable], position: int, stream: Stream) -> list[Part]:
        """Encode publications of a stream, in order, for a receiver at the sequence `position`."""

    @abc.abstractmethod
    def snapshot(self, publication: Sendable) -> Part:
        """Encode a publication as a last known value."""

    @abc.abstractmethod
    def data(self, parts: Sequence[Part], positions: Positions) -> bytes:
        """Return the bytes of data messages, in the order given; empty for no parts.

        `positions` is called only by a format whose messages say where the receiver is.
        """

    def place(self, positions: Positions) -> bytes:  # noqa: ARG002
        """Return bytes that say where a receiver is that has been sent an answer, if any do."""
        return b""

    def data_apart(self, parts: Sequence[Part], positions: Positions) -> bytes:
        """Return the bytes of data messages for one member of a group, as `data` does.

        The other members are not sent them, so nothing may change that the group's format keeps.
        """
        return self.data(parts, positions)

    @abc.abstractmethod
    def answer(self, message: messages.ServerMessage) -> bytes:
        """Return the bytes of an answer or an event."""

    @abc.abstractmethod
    def ping(self, payload: bytes) -> bytes:
        """Return the bytes of a heartbeat; a pong that names `payload` answers it."""

    @abc.abstractmethod
    def pong(self, payload: bytes) -> bytes:
        """Return the bytes that answer a ping of the receiver's."""

    @abc.abstractmethod
    def close(self, code: int, reason: str) -> bytes:
        """Return the last bytes of a connection, which give a close code and a reason."""
