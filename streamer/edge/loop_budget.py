"""Keep a turn of the event loop short when thousands of clients become active together.

Trio runs every task that is ready in one turn: when a network fails or recovers, that can be those
of all clients, and ten thousand closes in one turn held up the loop for more than a second. So a
task that is late in a long turn is deferred to a later one, some at a time and in order; in
between, the flush, the source and all other tasks run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sized
from typing import Final, NoReturn

import trio

LONG_TURN_SECONDS: Final = 0.01
"""A fifth of the longest pause that the event loop should make (50 ms)."""

LIGHT_SLICE_SECONDS: Final = 0.0025
"""Processor time from the release of light tasks in which they go on even if the turn is long.
Where all turns are long, because other processes use the cores, too, one in each turn would leave
thousands of returning clients waiting for minutes, while most of the turn is no work of this
process."""

RELEASED_PER_TURN: Final = 32
"""Tasks and calls released in a turn; most requests and closes take 0.1 to 0.2 ms. Tasks that find
the turn long again wait for another."""

TURNS_PER_HEAVY_TASK: Final = 4
"""While light tasks wait, a heavy one is released in every so many turns: in its turn, few of them
can go on."""

_LIGHT_TOPICS: Final = 50
"""Up to so many topics, to subscribe or to leave takes less than half a millisecond."""


class _Queue:
    """Tasks that wait for a turn, in order."""

    def __init__(self, clock: Callable[[], float], slice_seconds: float = 0.0) -> None:
        self._clock = clock
        self._slice_seconds = slice_seconds
        self._released_seconds = 0.0
        self._lot = trio.lowlevel.ParkingLot()
        self._released_in_vain = trio.lowlevel.ParkingLot()
        """Tasks for which the turn of their release became too long: first in the next."""
        self._one_may_go_on = False
        self._went_on = RELEASED_PER_TURN
        """Tasks that have gone on since the last release."""

    def __bool__(self) -> bool:
        """Whether a task waits."""
        return bool(self._lot or self._released_in_vain)

    async def wait_release(self, *, again: bool) -> None:
        """Wait to be released, `again` if the last time was in vain."""
        await (self._released_in_vain if again else self._lot).park()

    def may_go_on(self, *, is_long: bool) -> bool:
        """Whether a task that is released may go on in this turn."""
        if is_long and not self._one_may_go_on and not self._is_within_slice:
            return False
        self._one_may_go_on = False
        self._went_on += 1
        return True

    @property
    def _is_within_slice(self) -> bool:
        return self._clock() - self._released_seconds < self._slice_seconds

    def release(self, limit: int) -> None:
        """Wake up the next tasks; one of them may go on however long the turn is.

        They are at most twice as many as could go on after the last release: each release in vain
        costs some 20 us.
        """
        self._one_may_go_on = True
        self._released_seconds = self._clock()
        count = min(limit, max(1, 2 * self._went_on))
        self._went_on = 0
        if not self._released_in_vain.unpark(count=count):
            self._lot.unpark(count=count)


class LoopBudget:
    """Defers work that would make a turn too long."""

    def __init__(
        self,
        turn_seconds: Callable[[], float],
        processor_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`turn_seconds` returns how long the current turn has lasted.

        `processor_clock` returns the seconds for which this thread has had a core.
        """
        self._turn_seconds = turn_seconds
        self._light = _Queue(processor_clock, LIGHT_SLICE_SECONDS)
        self._heavy = _Queue(processor_clock)
        self._calls: deque[Callable[[], None]] = deque()
        self._somebody_waits = trio.Event()

    @property
    def is_long(self) -> bool:
        """Whether the turn is already long."""
        return self._turn_seconds() > LONG_TURN_SECONDS

    def defers(self, topics: Sized) -> bool:
        """Whether work on all of these topics has to wait for a later turn."""
        return self.is_long or (is_heavy(topics) and bool(self._heavy))

    async def wait_for(self, topics: Sized) -> bool:
        """Wait, if necessary, for a turn in which there is time for work on all of these topics.

        Returns whether it was necessary.
        """
        if not self.defers(topics):
            return False
        await self.wait(is_heavy=is_heavy(topics))
        return True

    async def wait(self, *, is_heavy: bool = False) -> None:
        """Wait for a later turn that is not long yet.

        `is_heavy` says whether the work after this takes milliseconds: then pings and small
        requests of others do not wait behind it. Light tasks go on in each turn, however long that
        is, for LIGHT_SLICE_SECONDS or one of them, and a heavy one at least in every
        TURNS_PER_HEAVY_TASK, so nobody waits for ever.
        """
        queue = self._heavy if is_heavy else self._light
        again = False
        while True:
            self._somebody_waits.set()
            await queue.wait_release(again=again)
            if queue.may_go_on(is_long=self.is_long):
                return
            again = True

    def call_later(self, call: Callable[[], None]) -> None:
        """Call a function in a later turn: for callers that cannot wait."""
        self._calls.append(call)
        self._somebody_waits.set()

    async def run(self) -> NoReturn:
        """Release some tasks and calls in each turn, until cancelled."""
        turns = 0
        while True:
            await self._somebody_waits.wait()
            self._somebody_waits = trio.Event()
            while self._light or self._heavy or self._calls:
                turns += 1
                if not self._light:
                    self._heavy.release(RELEASED_PER_TURN)
                elif not turns % TURNS_PER_HEAVY_TASK:
                    self._heavy.release(1)
                self._light.release(RELEASED_PER_TURN)
                for _ in range(min(len(self._calls), RELEASED_PER_TURN)):
                    self._calls.popleft()()
                await trio.lowlevel.checkpoint()


def is_heavy(topics: Sized) -> bool:
    """Whether work on all of these topics takes milliseconds."""
    return len(topics) > _LIGHT_TOPICS
