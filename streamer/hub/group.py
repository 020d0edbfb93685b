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
        "flush_number",
        "has_newcomer",
        "key",
        "lanes",
        "members",
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
        """The number of the last flush that has written to it, those by a roster aside."""
        self.written = 0
        """The `entry` of the last member that this flush has written to."""
        for lane in self.lanes:
            lane.groups[self] = None

    def put(self, outbox: Outbox, descriptor: int) -> None:
        """Add a member, or change the descriptor to write to."""
        self.members[outbox] = descriptor
        self._note_change()

    def remove(self, outbox: Outbox) -> None:
        """Remove a member."""
        del self.members[outbox]
        self._note_change()

    def _note_change(self) -> None:
        self.changes += 1
        for lane in self.lanes:
            lane.roster = None

    def positions(self) -> list[Placed]:
        """Return where the members are after the last flush, or the one under way."""
        return [(lane.stream.topic, lane.epoch, lane.position) for lane in self.lanes]

    def adapt_wire(self) -> None:
        """Let the format take note of the members that have come and gone. Not during a flush."""
        self.wire = self.wire.for_group(len(self.members), has_newcomer=self.has_newcomer)
        self.has_newcomer = False

    @property
    def account(self) -> tuple[int, int, int]:
        """Return the messages offered, delivered and conflated so far by its lanes.

        They include those of other groups, and of former ones: each member keeps the difference to
        when it joined. So a flush counts once, and not for each of its clients.
        """
        offered = delivered = 0
        for lane in self.lanes:
            offered += lane.offered_total
            delivered += lane.delivered_total
        return offered, delivered, offered - delivered
