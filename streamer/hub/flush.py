"""The batch flush loop: when to send.

At once when idle, and then not again before the interval is over: a quiet topic sees no window, a
busy one is batched. A flush that takes longer than the interval is followed by the next one at
once, so the interval stretches by itself instead of a queue growing; with an interval of 0 that
means: whatever arrived while a flush was under way goes out in one write.
"""

from __future__ import annotations

from typing import NoReturn

import attrs
import trio

from streamer.hub.fanout import FanOut, FlushProgress


@attrs.frozen
class FlushStatistics:
    """What the flush loop has done."""

    flushes: int
    batches: int
    """Writes with more than one message."""
    writes: int
    messages: int
    messages_per_batch: float
    updates_conflated: int
    """Publications that a newer one stood for, of all clients."""
    publications_per_flush: float
    seconds_total: float
    seconds_last: float
    seconds_longest: float
    seconds_per_flush: float
    window_seconds_last: float
    """How long the last window was open: more than the interval where it had to stretch."""
    stretched: int
    """Flushes that conflated for clients in mode latest because the server was behind."""


class FlushLoop:
    """Flushes when there is something to flush."""

    def __init__(self, *, interval_seconds: float, stretch_limit_seconds: float) -> None:
        """`stretch_limit_seconds`: a window that was open longer is conflated (mode latest)."""
        self._interval_seconds = interval_seconds
        self._stretch_limit_seconds = stretch_limit_seconds
        self._wakeup = trio.Event()
        self._flushed = trio.lowlevel.ParkingLot()
        self._flushing = False
        self._flushes = 0
        self._stretched = 0
        self._total = FlushProgress()
        self._seconds_total = 0.0
        self._seconds_last = 0.0
        self._seconds_longest = 0.0
        self._window_seconds = 0.0

    def wake(self) -> None:
        """There is something to flush."""
        self._wakeup.set()

    async def run(self, fanout: FanOut) -> NoReturn:
        """Flush for ever."""
        opened: float | None = None
        while True:
            await self._wait(fanout)
            start = trio.current_time()
            self._window_seconds = 0.0 if opened is None else start - opened
            stretched = self._window_seconds > self._stretch_limit_seconds
            self._flushing = True
            for _ in fanout.flush(self._total, stretched=stretched):
                await trio.lowlevel.checkpoint()
            self._flushing = False
            self._account(trio.current_time() - start, stretched=stretched)
            await trio.sleep_until(start + self._interval_seconds)
            # Whatever waits now came in while this flush was under way, or after it.
            opened = start if fanout.dirty else None

    async def _wait(self, fanout: FanOut) -> None:
        """Until there is something to flush, or something whose rate allows it now."""
        if fanout.dirty:
            return
        self._wakeup = trio.Event()
        due = fanout.due_seconds
        with trio.move_on_at(due if due is not None else float("inf")):
            await self._wakeup.wait()

    async def finish(self, fanout: FanOut) -> None:
        """Wait until all that was published before has been flushed; more may come meanwhile."""
        last = self._flushes + self._flushing + fanout.dirty
        while self._flushes < last:
            await self._flushed.park()

    def _account(self, seconds: float, *, stretched: bool) -> None:
        self._flushes += 1
        self._stretched += stretched
        self._seconds_total += seconds
        self._seconds_last = seconds
        self._seconds_longest = max(self._seconds_longest, seconds)
        self._flushed.unpark_all()

    def statistics(self, *, updates_conflated: int) -> FlushStatistics:
        """What was done up to now; the hub knows what was conflated."""
        total = self._total
        return FlushStatistics(
            flushes=self._flushes,
            batches=total.batches,
            writes=total.writes,
            messages=total.messages,
            messages_per_batch=total.batched_messages / max(total.batches, 1),
            updates_conflated=updates_conflated,
            publications_per_flush=total.publications / max(self._flushes, 1),
            seconds_total=self._seconds_total,
            seconds_last=self._seconds_last,
            seconds_longest=self._seconds_longest,
            seconds_per_flush=self._seconds_total / max(self._flushes, 1),
            window_seconds_last=self._window_seconds,
            stretched=self._stretched,
        )
