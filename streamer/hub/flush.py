"""The batch flush loop: it decides when to send.

It flushes at once when idle, and then not again before the interval is over: a quiet topic has no
delay, a busy one is batched. A flush that takes longer than the interval is followed by the next
one at once, so the interval stretches instead of a queue growing; with an interval of 0, everything
that arrived during a flush is sent in one write. Each flush sends a bounded number of messages to
single clients; one that has left some is also followed by the next one at once.

If there is little to write, the caller that published writes it in the same call (`release`):
waking the loop's task would cost more than all other work for a publication to a few clients. The
task continues flushes that take more than one turn, and runs those that have to wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NoReturn

import attrs
import trio

from streamer.histogram import Histogram, HistogramStatistics
from streamer.hub.fanout import FanOut, FlushProgress
from streamer.hub.wakeup import Wakeup

FLUSH_SHARE: Final = 3.0
"""How much longer than all other tasks a flush may take in each turn: when thousands of clients
connect at once, those that are connected still receive."""
LONGEST_STEP_SECONDS: Final = 0.015
"""The longest step of a flush in any case: a third of the pause that the event loop may make."""


@attrs.frozen
class FlushStatistics:
    """Counts and times of all flushes so far."""

    flushes: int
    batches: int
    """Writes of more than one message."""
    writes: int
    messages: int
    messages_per_batch: float
    updates_conflated: int
    """Publications that a newer one replaced, of all clients."""
    publications_per_flush: float
    seconds_total: float
    seconds_last: float
    seconds_longest: float
    seconds_per_flush: float
    window_seconds_last: float
    """How long the last window was open: longer than the interval if it had to stretch."""
    stretched: int
    """Flushes that conflated for clients in mode latest because the server was behind."""
    durations: HistogramStatistics
    """From the beginning of each flush to its end."""
    latencies: HistogramStatistics
    """From the first publication that each flush had to the end of the flush, when the last
    client's socket had it: the longest way through the server of all its messages."""


class FlushLoop:
    """Flushes when there is something to flush."""

    def __init__(
        self,
        fanout: FanOut,
        wakeup: Wakeup,
        *,
        interval_seconds: float,
        stretch_limit_seconds: float,
    ) -> None:
        """Make a loop that `wakeup` wakes, which `fanout` sets.

        A window that was open for longer than `stretch_limit_seconds` is conflated (mode latest).
        """
        self._fanout = fanout
        self._wakeup = wakeup
        self._interval_seconds = interval_seconds
        self._stretch_limit_seconds = stretch_limit_seconds
        self._idle = False
        """Whether the task only waits for something to flush, not for the end of an interval."""
        self._steps: Iterator[None] | None = None
        """The rest of the flush under way."""
        self._began_seconds = float("-inf")
        """When the last flush began."""
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
        self._opened_seconds: float | None = None
        """When the first publication of the flush under way was published."""
        self._durations = Histogram()
        self._latencies = Histogram()

    @property
    def flushing(self) -> bool:
        """Whether a flush is under way."""
        return self._steps is not None

    @property
    def window_seconds(self) -> float:
        """How long the window of the last flush was open: the wait of its first publication."""
        return self._window_seconds

    def hold(self) -> None:
        """Let one flush serve all publications from now on; `release` must follow."""
        self._wakeup.held = True

    def release(self) -> None:
        """Flush the publications: at once if nothing forbids it, otherwise by the task."""
        self._wakeup.held = False
        if not self._fanout.dirty:
            return
        now = trio.current_time()
        may_begin = self._idle and not self.flushing
        if may_begin and now >= self._began_seconds + self._interval_seconds:
            self._begin(now)
            if self._step() and not self._fanout.is_behind:
                return
        self._wakeup.set()

    async def run(self) -> NoReturn:
        """Flush all publications, until cancelled."""
        while True:
            await self._wait()
            if not self.flushing:
                if self._fanout.is_behind:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.sleep_until(self._began_seconds + self._interval_seconds)
                self._begin(trio.current_time())
            finished = self._step()
            while not finished:
                left = trio.current_time()
                await trio.lowlevel.checkpoint()
                others_seconds = trio.current_time() - left
                finished = self._step(min(FLUSH_SHARE * others_seconds, LONGEST_STEP_SECONDS))

    async def _wait(self) -> None:
        """Wait until there is something to flush, or a rate allows a waiting message."""
        fanout = self._fanout
        while not fanout.dirty and not self.flushing:
            due = fanout.due_seconds
            if due is not None and due <= trio.current_time():
                return
            self._wakeup.clear()
            self._idle = True
            with trio.move_on_at(due if due is not None else float("inf")):
                await self._wakeup.wait()
            self._idle = False

    async def finish(self) -> None:
        """Wait until everything that was published before has been flushed."""
        now = trio.current_time()
        while (self.flushing and self._began_seconds <= now) or self._is_open_since(now):
            await self._flushed.park()

    def _is_open_since(self, seconds: float) -> bool:
        """Whether a publication waits for a flush that was published by then."""
        opened = self._fanout.opened_seconds
        return opened is not None and opened <= seconds

    def _begin(self, now: float) -> None:
        self._began_seconds = now
        opened = self._opened_seconds = self._fanout.opened_seconds
        self._window_seconds = 0.0 if opened is None else now - opened
        self._stretching = self._window_seconds > self._stretch_limit_seconds
        self._steps = self._fanout.flush(self._total, stretched=self._stretching)

    def _step(self, seconds: float = 0.0) -> bool:
        """Continue the flush under way for `seconds`; return whether it is over."""
        assert self._steps is not None
        deadline = trio.current_time() + seconds if seconds else None
        for _ in self._steps:
            if deadline is None or trio.current_time() >= deadline:
                return False
        self._steps = None
        now = trio.current_time()
        self._seconds_last = now - self._began_seconds
        self._durations.observe(self._seconds_last)
        if self._opened_seconds is not None:
            self._latencies.observe(now - self._opened_seconds)
        self._flushes += 1
        self._stretched += self._stretching
        self._seconds_total += self._seconds_last
        self._seconds_longest = max(self._seconds_longest, self._seconds_last)
        if self._flushed:
            self._flushed.unpark_all()
        return True

    def statistics(self, *, updates_conflated: int) -> FlushStatistics:
        """Return counts and times up to now; `updates_conflated` comes from the hub."""
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
            durations=self._durations.statistics(),
            latencies=self._latencies.statistics(),
        )
