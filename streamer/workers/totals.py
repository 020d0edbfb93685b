"""The statistics of several servers, added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def add_up(statistics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the statistics of all workers into the shape of one.

    Integers, and numbers whose name ends with `_total`, are added. Other floats are times and
    averages, of which an operator looks for the largest. A boolean is true if all are. The start is
    the earliest; for other strings, the first is taken.
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
