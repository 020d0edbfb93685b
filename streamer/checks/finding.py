"""The findings of a check."""

from __future__ import annotations

import enum
from collections.abc import Iterable

import attrs


class Level(enum.StrEnum):
    """How much a finding matters, from the least to the most."""

    OK = "ok"
    WARNING = "warning"
    """The server works; an operator should know."""
    FAULT = "fault"
    """The server does not start, or does not do what its settings ask."""


@attrs.frozen
class Finding:
    """One thing that was examined."""

    level: Level
    subject: str
    """The setting, or another short name of what was examined."""
    message: str
    """One line, without secrets."""


def ok(subject: str, message: str) -> Finding:
    """Make a finding that is as it should be."""
    return Finding(Level.OK, subject, message)


def warning(subject: str, message: str) -> Finding:
    """Make a finding with which the server works."""
    return Finding(Level.WARNING, subject, message)


def fault(subject: str, message: str) -> Finding:
    """Make a finding with which the server does not work as its settings ask."""
    return Finding(Level.FAULT, subject, message)


def worst(findings: Iterable[Finding]) -> Level:
    """Return the level that matters most; OK where there are no findings."""
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.OK)
