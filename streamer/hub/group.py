"""Clients that are sent the same bytes."""

from __future__ import annotations

from streamer.hub.outbox import Outbox
from streamer.hub.streams import Lane
from streamer.wire.format import Placed, WireFormat

GroupKey = tuple[WireFormat, tuple[Lane, ...]]
"""The format of the members, and the lanes that they hold, in order of identity."""


class Group:
    """The clients of one wire format that hold the same lanes at the same position."""

    __slots__ = (
        "changes",
        "conflated",
        "delivered",
        "flush_number",
        "has_newcomer",
        "key",
        "lanes",
        "members",
        "offered",
        "wire",
        "written",
    )

    def __init__(self, key: GroupKey) -> None:
        self.key = key
        self.wire, self.lanes = key
        """The format that makes its frames, and the lanes that they carry."""
        self.has_newcomer = False
        """Whether a client has joined since the last flush began."""
        self.members: dict[Outbox, int] = {}
        """The members in the order of their `entry`, with the descriptor to write to; -1 for one
        whose socket an answer or a heartbeat has filled."""
        self.changes = 0
        """Counts changes of the members: a copy made before the last one is out of date."""
        self.flush_number = 0
        """The number of the last flush that the account includes."""
        self.written = 0
        """The `entry` of the last member that this flush has written to."""
        self.offered = 0
        self.delivered = 0
        self.conflated = 0
        """The account of a member since the group began. Each member keeps the difference to when
        it joined, so a flush counts once and not for each member."""
        for lane in self.lanes:
            lane.groups[self] = None

    def put(self, outbox: Outbox, descriptor: int) -> None:
        """Add a member, or change the descriptor to write to."""
        self.members[outbox] = descriptor
        self.changes += 1

    def remove(self, outbox: Outbox) -> None:
        """Remove a member."""
        del self.members[outbox]
        self.changes += 1

    def positions(self) -> list[Placed]:
        """Return where the members are after the last flush, or the one under way."""
        return [(lane.stream.topic, lane.epoch, lane.position) for lane in self.lanes]

    def adapt_wire(self) -> None:
        """Let the format take note of the members that have come and gone. Not during a flush."""
        self.wire = self.wire.for_group(len(self.members), has_newcomer=self.has_newcomer)
        self.has_newcomer = False

    @property
    def account(self) -> tuple[int, int, int]:
        """Return the messages offered, delivered and conflated so far."""
        return self.offered, self.delivered, self.conflated
