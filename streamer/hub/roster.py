"""The groups of one lane, arranged for a flush of that lane alone."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from streamer.hub.group import Group
from streamer.hub.outbox import Outbox
from streamer.wire.format import WireFormat


class Roster:
    """The groups of a lane: those that share a frame, as long as they are few, and the others.

    Where clients choose their lists for themselves, nearly each of them is a group of its own, but
    a publication of one topic is the same frame for many of them. Their descriptors are kept side
    by side: to look at each group and its members, and to note in it what is written, would cost a
    fifth as much as the writes (`python -m bench.publication_cost`, `python -m bench.write_cost`).
    """

    __slots__ = ("descriptors", "groups", "members", "others")

    def __init__(self, groups: Iterable[Group], max_members: int) -> None:
        """`max_members` is how many may be written to before other tasks run."""
        by_wire: dict[WireFormat, list[Group]] = {}
        self.members = 0
        """How many members all groups have."""
        for group in groups:
            by_wire.setdefault(group.wire, []).append(group)
            self.members += len(group.members)
        self.groups = max(by_wire.values(), key=len, default=[])
        """The groups that share a frame; none if they have too many members."""
        self.descriptors = array("i")
        """The descriptors of their members, -1 as in `Group.members`."""
        if sum([len(group.members) for group in self.groups]) <= max_members:
            for group in self.groups:
                self.descriptors.extend(group.members.values())
        else:
            self.groups = []
        self.others = [
            group for alike in by_wire.values() if alike is not self.groups for group in alike
        ]
        """All other groups."""

    def __iter__(self) -> Iterator[Outbox]:
        """Iterate over the members of `groups`, in the order of `descriptors`."""
        return (outbox for group in self.groups for outbox in group.members)
