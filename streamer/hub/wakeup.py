"""The wake-up of the flush loop; the fan-out sets it."""

from __future__ import annotations

import trio


class Wakeup:
    """A flag that one task waits for, and that can be held back for a moment."""

    __slots__ = ("_event", "held")

    def __init__(self) -> None:
        self._event = trio.Event()
        self.held = False
        """Whether `set` does nothing: the holder flushes by itself."""

    def set(self) -> None:
        """Wake the task that waits, or keep it from waiting."""
        if not self.held:
            self._event.set()

    def clear(self) -> None:
        """Make the next `wait` wait for the next `set`."""
        self._event = trio.Event()

    async def wait(self) -> None:
        """Wait until it is set."""
        await self._event.wait()
