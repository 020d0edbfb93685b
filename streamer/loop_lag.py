"""Measure how long the event loop is held up.

A pause of the loop delays every client: its handshake, its ping, each update. A turn of Trio's loop
runs every task that is ready and then checks for I/O and deadlines, so the time between two checks
is the longest that an event in between has to wait. Long flushes, many handshakes, garbage
collections and blocking calls make it long.

Both hooks together cost 1 µs per turn, and nothing while the loop is idle. A task that sleeps for
5 ms and measures how late it wakes would take 5 % of a core in an idle server, and miss up to 5 ms
of each pause.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final, NoReturn

import attrs
import trio

SHORTEST_PAUSE_SECONDS: Final = 0.002
"""Shorter turns are not recorded, so the hook costs one comparison in nearly every turn. The system
rounds waiting up to whole milliseconds, so shorter pauses cannot be distinguished from it."""

_WINDOW_SECONDS: Final = 60.0


@attrs.frozen
class LoopStatistics:
    """The longest pauses of the event loop; 0 if none took 2 ms."""

    longest_pause_seconds: float
    longest_pause_seconds_last_minute: float


class LoopLag(trio.abc.Instrument):
    """Measures each turn of the loop in which it runs.

    It reads `clock`, in seconds, rather than Trio's clock, which is virtual in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._turn_began_seconds = self._wait_began_seconds = clock()
        self._longest_seconds = 0.0
        self._recent: deque[tuple[float, float]] = deque()
        """(end, length) of the pauses of the last minute that no later pause exceeds."""

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Measure until cancelled, from the next turn on: the current one is part of startup."""
        await trio.lowlevel.checkpoint()
        self._turn_began_seconds = self._wait_began_seconds = self._clock()
        trio.lowlevel.add_instrument(self)
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            trio.lowlevel.remove_instrument(self)

    def turn_seconds(self) -> float:
        """Return how long the current turn of the loop has lasted."""
        return self._clock() - self._turn_began_seconds

    def before_io_wait(self, timeout: float) -> None:
        """Record the turn that ends here."""
        del timeout
        now = self._clock()
        self._wait_began_seconds = now
        if now - self._turn_began_seconds >= SHORTEST_PAUSE_SECONDS:
            self._record(now, now - self._turn_began_seconds)

    def after_io_wait(self, timeout: float) -> None:
        """Note when the turn begins: at the end of the timeout if the process ran late."""
        now = self._clock()
        self._turn_began_seconds = now
        late_seconds = now - self._wait_began_seconds - timeout
        if late_seconds >= SHORTEST_PAUSE_SECONDS:
            self._turn_began_seconds -= late_seconds

    def _record(self, now: float, seconds: float) -> None:
        self._longest_seconds = max(self._longest_seconds, seconds)
        while self._recent and self._recent[-1][1] <= seconds:
            self._recent.pop()
        self._recent.append((now, seconds))
        self._expire(now)

    def _expire(self, now: float) -> None:
        while self._recent and self._recent[0][0] <= now - _WINDOW_SECONDS:
            self._recent.popleft()

    def statistics(self) -> LoopStatistics:
        """Return the longest pauses until now."""
        self._expire(self._clock())
        return LoopStatistics(
            longest_pause_seconds=self._longest_seconds,
            longest_pause_seconds_last_minute=self._recent[0][1] if self._recent else 0.0,
        )
