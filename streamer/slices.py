"""Divide a long piece of work, so that other tasks run in between, but not more often than needed.

A checkpoint after each item costs a turn of the event loop. When thousands of clients return
together, each turn takes some 10 ms, and a hundred small items would take a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import trio

SLICE_SECONDS: Final = 0.005
"""A tenth of the longest pause that the event loop should make (50 ms)."""


class Slices:
    """A piece of work that begins now."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """`clock` returns seconds; not Trio's, which is virtual in tests."""
        self._clock = clock
        self._began_seconds = clock()

    async def end_if_long(self) -> None:
        """Let other tasks run if the work has taken SLICE_SECONDS since they last did."""
        if self._clock() - self._began_seconds > SLICE_SECONDS:
            await trio.lowlevel.checkpoint()
            self._began_seconds = self._clock()
