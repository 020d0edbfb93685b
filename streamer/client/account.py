"""The account of a client's stream: counts, gaps, and violations of the contract."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs

from streamer.protocol.messages import GapReason
from streamer.protocol.topics import Topic


class Fault(enum.StrEnum):
    """The violations of the contract that a message can commit."""

    HOLE = "unannounced hole"
    REPEAT = "repeat"
    OUT_OF_ORDER = "out of order"
    OVERLAP = "follows what is no longer the last"
    EPOCH = "new epoch without a gap"
    GAP = "gap that goes back"
    SNAPSHOT = "snapshot ahead of its stream"
    CHECKSUM = "wrong checksum"
    BASE = "delta without a base"
    UNSOLICITED = "not subscribed"
    NO_MESSAGE = "not a message"


@attrs.frozen
class Violation:
    """One message that violates the contract."""

    fault: Fault
    topic: Topic | None
    """None if the message belongs to no topic that the client knows."""
    detail: str

    def __str__(self) -> str:
        return f"{self.fault}: {self.topic or 'no topic'}: {self.detail}"


@attrs.frozen
class Account:
    """Counts of the messages that a client received, and of the contract's violations."""

    received: int
    """Data messages, those of replays and snapshots included."""
    snapshots: int
    merged: int
    """Publications left out between `previous` and `sequence`: merged by policy, or of kinds that
    the subscription does not have."""
    gaps: Mapping[GapReason, int]
    """Gaps that the server announced, by reason."""
    unreadable: int
    """Messages that this client could not read, and skipped."""
    last_unreadable: str | None
    """Why the last of them could not be read."""
    outstanding: int
    """Topics whose recovery is not complete: missed messages, or a gap, are still to come."""
    violations: int
    faults: Mapping[Fault, int]
    first_violations: tuple[Violation, ...]

    def __str__(self) -> str:
        gaps = sum(self.gaps.values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.gaps.items()))
        lines = [
            f"received {self.received} ({self.snapshots} snapshots)",
            f"merged by policy {self.merged}",
            f"gaps announced {gaps}" + (f" ({reasons})" if gaps else ""),
        ]
        more = self.violations - len(self.first_violations)
        if self.unreadable:
            lines.append(f"skipped as unreadable {self.unreadable} (last: {self.last_unreadable})")
        if self.outstanding:
            lines.append(f"topics not yet recovered {self.outstanding}")
        lines.append(f"violations {self.violations}")
        lines += [f"  {violation}" for violation in self.first_violations]
        lines += [f"  and {more} more"] if more else []
        return "\n".join(lines)
