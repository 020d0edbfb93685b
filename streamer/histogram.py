"""Histograms of times, for statistics and metrics."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import attrs

LATENCY_BOUNDS_SECONDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""From the time of a short flush to that after which the heartbeat cuts a silent client."""


@attrs.frozen
class HistogramStatistics:
    """Counts of times. Those of several histograms can be added, each figure by itself."""

    buckets: dict[str, int]
    """How many times were at most so many seconds; +Inf is all of them."""
    seconds_total: float


class Histogram:
    """Counts times by how long they were.

    An observation costs some 200 ns, so it is made for each flush or ping, never for each client.
    """

    __slots__ = ("_bounds", "_counts", "_seconds")

    def __init__(self, bounds_seconds: Sequence[float] = LATENCY_BOUNDS_SECONDS) -> None:
        """`bounds_seconds` are the upper bounds of the buckets, from the least on."""
        self._bounds = tuple(bounds_seconds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count one time."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._seconds += seconds

    def statistics(self) -> HistogramStatistics:
        """Return the counts until now."""
        names = [*map(str, self._bounds), "+Inf"]
        totals = accumulate(self._counts)
        return HistogramStatistics(dict(zip(names, totals, strict=True)), self._seconds)
