"""What several servers have counted, as if one had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def add_up(statistics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of all workers in the shape of one.

    Counts are added up. A time or an average (a number with a fraction) is the largest of any
    worker, which is the one that an operator looks for, unless its name says that it is a total. A
    yes is a yes of all of them. The start is the earliest; of other texts the first stands for all.
    """
    names = dict.fromkeys(name for one in statistics for name in one)
    return {name: _merge(name, [one.get(name) for one in statistics]) for name in names}


def _merge(name: str, values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known:
        return None
    first = known[0]
    if isinstance(first, dict):
        return add_up(known)
    if isinstance(first, bool):
        return all(known)
    if isinstance(first, int) or name.endswith("_total"):
        return sum(known)
    if isinstance(first, float):
        return max(known)
    return min(known) if name == "started_at" else first
