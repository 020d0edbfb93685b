"""The writer task of one client: it writes bytes that the socket did not take at once."""

from __future__ import annotations

import trio

from streamer.edge.loop_budget import LoopBudget
from streamer.hub.fanout import FanOut
from streamer.hub.outbox import Outbox


class BlockedWriter:
    """Writes an outbox' bytes while its socket is full, and wakes the tasks that wait for it."""

    __slots__ = (
        "_fanout",
        "_loop_budget",
        "_progress",
        "_stream",
        "last_written_seconds",
        "outbox",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        fanout: FanOut,
        outbox: Outbox,
        loop_budget: LoopBudget,
    ) -> None:
        self._stream = stream
        self._loop_budget = loop_budget
        self._fanout = fanout
        self.outbox = outbox
        self._progress: trio.Event | None = None
        self.last_written_seconds = trio.current_time()
        """When the full socket last took bytes, on trio's clock."""

    async def write_blocked(self) -> None:
        """Write the outbox' bytes until none is left: the writer task of a full socket."""
        outbox = self.outbox
        try:
            while outbox.blocked and not outbox.closed:
                await trio.lowlevel.wait_writable(outbox.descriptor)
                is_work = outbox.backlog.replaying or outbox.renders
                if is_work and self._loop_budget.is_long:
                    # Each client that missed much takes a millisecond or more of each turn.
                    await self._loop_budget.wait()
                self._fanout.resume(outbox)
                self._advance()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            outbox.fail(0)
            self._advance()

    def _advance(self) -> None:
        self.last_written_seconds = trio.current_time()
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    async def wait_progress(self) -> None:
        """Wait until the writer task has written something more."""
        if self._progress is None:
            self._progress = trio.Event()
        await self._progress.wait()

    async def wait_written(self) -> None:
        """Wait until all bytes are written to the socket."""
        while self.outbox.blocked and not self.outbox.closed:
            await self.wait_progress()
