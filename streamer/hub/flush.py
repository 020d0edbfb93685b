"""The batch flush loop: when to send.

At once when idle, and then not again before the interval is over: a quiet topic sees no window, a
busy one is batched. A flush that takes longer than the interval is followed by the next one at
once, so the interval stretches by itself instead of a queue growing; with an interval of 0 that
means: whatever arrived while a flush was under way goes out in one write.

Where there is little to write, whoever published has it written in the same call (`release`): to
wake the task of the loop for it would cost more than all else that a publication to a few clients
does. The task goes on with what is longer than one turn, and with what has to wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NoReturn

import attrs
import trio

from streamer.hub.fanout import FanOut, FlushProgress

FLUSH_SHARE: Final = 3.0
"""How much longer than all others a flush may take in each turn: when thousands of clients come at
once, those that are there go on to receive."""
LONGEST_STEP_SECONDS: Final = 0.015
"""Most of a flush in one turn all the same: a third of the pause that the loop may make."""


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

    _fanout: FanOut

    def __init__(self, *, interval_seconds: float, stretch_limit_seconds: float) -> None:
        """`stretch_limit_seconds`: a window that was open longer is conflated (mode latest)."""
        self._interval_seconds = interval_seconds
        self._stretch_limit_seconds = stretch_limit_seconds
        self._wakeup = trio.Event()
        self._idle = False
        """Whether the task waits for something to flush, and for nothing else."""
        self._held = False
        self._steps: Iterator[None] | None = None
        """What is left of the flush under way."""
        self._began_seconds = float("-inf")
        """When the last flush began."""
        self._opened_seconds: float | None = None
        """When the first of what waits was published."""
        self._stretching = False
        """Whether the flush under way conflates because the server is behind."""
        self._flushed = trio.lowlevel.ParkingLot()
        self._flushes = 0
        self._stretched = 0
        self._total = FlushProgress()
        self._seconds_total = 0.0
        self._seconds_last = 0.0
        self._seconds_longest = 0.0
        self._window_seconds = 0.0

    @property
    def flushing(self) -> bool:
        """Whether a flush is under way."""
        return self._steps is not None

    def attach(self, fanout: FanOut) -> None:
        """Give it what it flushes; once, before anything is published."""
        self._fanout = fanout

    def wake(self) -> None:
        """There is something to flush."""
        if not self._held:
            if self._opened_seconds is None and self._fanout.dirty:
                self._opened_seconds = trio.current_time()
            self._wakeup.set()

    def hold(self) -> None:
        """Several publications come now, and one flush is to do for all: `release` follows."""
        self._held = True

    def release(self) -> None:
        """Flush what has come, at once where nothing forbids it, or leave it to the task."""
        self._held = False
        if not self._fanout.dirty:
            return
        now = trio.current_time()
        if self._opened_seconds is None:
            self._opened_seconds = now
        may_begin = self._idle and not self.flushing
        if may_begin and now >= self._began_seconds + self._interval_seconds:
            self._begin(now)
            if self._step():
                return
        self._wakeup.set()

    async def run(self) -> NoReturn:
        """Flush for ever."""
        while True:
            await self._wait()
            if not self.flushing:
                await trio.sleep_until(self._began_seconds + self._interval_seconds)
                self._begin(trio.current_time())
            finished = self._step()
            while not finished:
                left = trio.current_time()
                await trio.lowlevel.checkpoint()
                others_seconds = trio.current_time() - left
                finished = self._step(min(FLUSH_SHARE * others_seconds, LONGEST_STEP_SECONDS))

    async def _wait(self) -> None:
        """Until there is something to flush, or something whose rate allows it now."""
        fanout = self._fanout
        while not fanout.dirty and not self.flushing:
            due = fanout.due_seconds
            if due is not None and due <= trio.current_time():
                return
            self._wakeup = trio.Event()
            self._idle = True
            with trio.move_on_at(due if due is not None else float("inf")):
                await self._wakeup.wait()
            self._idle = False

    async def finish(self) -> None:
        """Wait until all that was published before has been flushed; more may come meanwhile."""
        last = self._flushes + self.flushing + self._fanout.dirty
        while self._flushes < last:
            await self._flushed.park()

    def _begin(self, now: float) -> None:
        self._began_seconds = now
        self._window_seconds = 0.0 if self._opened_seconds is None else now - self._opened_seconds
        self._opened_seconds = None
        self._stretching = self._window_seconds > self._stretch_limit_seconds
        self._steps = self._fanout.flush(self._total, stretched=self._stretching)

    def _step(self, seconds: float = 0.0) -> bool:
        """Write some, for so long if there is so much; whether the flush is over with that."""
        assert self._steps is not None
        deadline = trio.current_time() + seconds
        for _ in self._steps:
            if trio.current_time() >= deadline:
                return False
        self._steps = None
        self._seconds_last = trio.current_time() - self._began_seconds
        self._flushes += 1
        self._stretched += self._stretching
        self._seconds_total += self._seconds_last
        self._seconds_longest = max(self._seconds_longest, self._seconds_last)
        if self._flushed:
            self._flushed.unpark_all()
        return True

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
