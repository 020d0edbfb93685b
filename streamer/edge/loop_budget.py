"""Keep a turn of the event loop short when thousands of clients become active together.

Trio runs every task that is ready in one turn: when a network fails or recovers, that can be those
of all clients, and ten thousand closes in one turn held up the loop for more than a second. So a
task that is late in a long turn is deferred to a later one, some at a time and in order; in
between, the flush, the source and all other tasks run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NoReturn

import trio

LONG_TURN_SECONDS: Final = 0.01
"""A fifth of the longest pause that the event loop should make (50 ms)."""

RELEASED_PER_TURN: Final = 32
"""Tasks and calls released in a turn; a request or a close takes 0.1 to 0.2 ms."""


class LoopBudget:
    """Defers work that would make a turn too long."""

    def __init__(self, turn_seconds: Callable[[], float]) -> None:
        """`turn_seconds` returns how long the current turn has lasted."""
        self._turn_seconds = turn_seconds
        self._lot = trio.lowlevel.ParkingLot()
        self._calls: deque[Callable[[], None]] = deque()
        self._somebody_waits = trio.Event()

    @property
    def is_long(self) -> bool:
        """Whether the turn is already long."""
        return self._turn_seconds() > LONG_TURN_SECONDS

    async def wait(self) -> None:
        """Wait for a later turn."""
        self._somebody_waits.set()
        await self._lot.park()

    def call_later(self, call: Callable[[], None]) -> None:
        """Call a function in a later turn: for callers that cannot wait."""
        self._calls.append(call)
        self._somebody_waits.set()

    async def run(self) -> NoReturn:
        """Release some tasks and calls in each turn, until cancelled."""
        while True:
            await self._somebody_waits.wait()
            self._somebody_waits = trio.Event()
            while self._lot or self._calls:
                self._lot.unpark(count=RELEASED_PER_TURN)
                for _ in range(min(len(self._calls), RELEASED_PER_TURN)):
                    self._calls.popleft()()
                await trio.lowlevel.checkpoint()
