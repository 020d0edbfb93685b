"""Keeps a turn of the event loop short when thousands of clients have something at once.

Trio hands over all that is ready in one turn: when a network comes back, or goes, that can be every
client, and ten thousand closes in one turn held the loop for more than a second. So whoever comes
late in a long turn is put off to one of the next, some at a time and in order; in between, the
flush, the source and everybody else have theirs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NoReturn

import trio

LONG_TURN_SECONDS: Final = 0.01
"""A fifth of the pause that the loop may make."""

RELEASED_PER_TURN: Final = 32
"""To carry out a request or to close a connection takes one or two tenths of a millisecond."""


class LoopBudget:
    """Puts clients off that would make a turn too long."""

    def __init__(self, turn_seconds: Callable[[], float]) -> None:
        """`turn_seconds` tells how long the turn has lasted."""
        self._turn_seconds = turn_seconds
        self._lot = trio.lowlevel.ParkingLot()
        self._calls: deque[Callable[[], None]] = deque()
        self._somebody_waits = trio.Event()

    @property
    def is_long(self) -> bool:
        """Whether the turn has lasted long enough."""
        return self._turn_seconds() > LONG_TURN_SECONDS

    async def wait(self) -> None:
        """Go on in another turn."""
        self._somebody_waits.set()
        await self._lot.park()

    def call_later(self, call: Callable[[], None]) -> None:
        """Have something done in another turn: for those who cannot wait."""
        self._calls.append(call)
        self._somebody_waits.set()

    async def run(self) -> NoReturn:
        """Let some go on in each turn."""
        while True:
            await self._somebody_waits.wait()
            self._somebody_waits = trio.Event()
            while self._lot or self._calls:
                self._lot.unpark(count=RELEASED_PER_TURN)
                for _ in range(min(len(self._calls), RELEASED_PER_TURN)):
                    self._calls.popleft()()
                await trio.lowlevel.checkpoint()
