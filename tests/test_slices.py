"""Long work is divided, and short work is not."""

from __future__ import annotations

import trio

from streamer.slices import SLICE_SECONDS, Slices


class Turns(trio.abc.Instrument):
    """Counts the turns of the event loop."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        """Count the turn that ends here."""
        del timeout
        self.count += 1


async def test_other_tasks_run_after_each_slice_only() -> None:
    """Twelve items that take a bit more than a third of a slice each: four turns of the loop."""
    now_seconds = 0.0
    turns = Turns()
    trio.lowlevel.add_instrument(turns)
    slices = Slices(lambda: now_seconds)
    for _ in range(12):
        now_seconds += 0.34 * SLICE_SECONDS
        await slices.end_if_long()
    trio.lowlevel.remove_instrument(turns)
    assert turns.count == 4
