"""A turn of the loop that has lasted long puts clients off to the next ones."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from streamer.edge.loop_budget import LONG_TURN_SECONDS, RELEASED_PER_TURN, LoopBudget
from tests.helpers.timing import DEADLINE_SECONDS


def test_a_turn_is_long_after_a_while() -> None:
    """No task waits in a short turn."""
    lasted_seconds = 0.0
    loop_budget = LoopBudget(lambda: lasted_seconds)
    assert not loop_budget.is_long
    lasted_seconds = 2 * LONG_TURN_SECONDS
    assert loop_budget.is_long


class Turns(trio.abc.Instrument):
    """How long each turn has lasted, by a clock that only `work` advances."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.longest_seconds = 0.0

    def work(self, seconds: float) -> None:
        """Make the present turn longer."""
        self.seconds += seconds
        self.longest_seconds = max(self.seconds, self.longest_seconds)

    def after_io_wait(self, timeout: float) -> None:
        """Begin a turn."""
        del timeout
        self.seconds = 0.0


async def test_those_put_off_go_on_some_at_a_time_and_the_first_first() -> None:
    """Each turn releases the next few waiting tasks, until all are released."""
    loop_budget = LoopBudget(lambda: 0.0)
    passed: list[int] = []
    turns = Turns()

    async def put_off(number: int) -> None:
        await loop_budget.wait()
        passed.append(number)
        turns.work(1.0)

    trio.lowlevel.add_instrument(turns)
    async with trio.open_nursery() as nursery:
        for number in range(3 * RELEASED_PER_TURN):
            nursery.start_soon(put_off, number)
            await wait_all_tasks_blocked()
        nursery.start_soon(loop_budget.run)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(turns)

    assert sorted(passed) == list(range(3 * RELEASED_PER_TURN))
    assert turns.longest_seconds <= RELEASED_PER_TURN
    # Trio runs what is ready in one turn in no particular order.
    assert all(abs(at - number) < RELEASED_PER_TURN for at, number in enumerate(passed))


@pytest.mark.parametrize("step_seconds", [0.004, 0.05])
async def test_those_released_wait_again_where_the_turn_is_long_by_then(
    step_seconds: float,
) -> None:
    """However much each of them does, few do it in one turn, and all go on."""
    turns = Turns()
    loop_budget = LoopBudget(lambda: turns.seconds)
    passed: list[int] = []

    async def put_off(number: int) -> None:
        await loop_budget.wait()
        turns.work(step_seconds)
        passed.append(number)

    trio.lowlevel.add_instrument(turns)
    async with trio.open_nursery() as nursery:
        total = 2 * RELEASED_PER_TURN
        for number in range(total):
            nursery.start_soon(put_off, number)
            await wait_all_tasks_blocked()
        nursery.start_soon(loop_budget.run)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(turns)

    assert sorted(passed) == list(range(total))
    # The last that finds it short, and one that goes on in any turn.
    assert turns.longest_seconds <= LONG_TURN_SECONDS + 2 * step_seconds


async def test_one_goes_on_in_a_turn_that_others_have_made_long() -> None:
    """Work that takes each turn whole stops nobody for ever."""
    loop_budget = LoopBudget(lambda: 2 * LONG_TURN_SECONDS)
    with trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop_budget.run)
            async with trio.open_nursery() as waiting:
                for _ in range(100):
                    waiting.start_soon(loop_budget.wait)
            nursery.cancel_scope.cancel()


async def test_what_is_to_be_called_later_is_called_in_order_some_in_each_turn() -> None:
    """For those who cannot wait themselves: as many in a turn as of those who do."""
    loop_budget = LoopBudget(lambda: 0.0)
    called: list[int] = []
    total = 3 * RELEASED_PER_TURN
    for number in range(total):
        loop_budget.call_later(partial(called.append, number))
    counts = [0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop_budget.run)
        while counts[-1] < total:
            await trio.lowlevel.checkpoint()
            counts.append(len(called))
        nursery.cancel_scope.cancel()
    assert called == list(range(total))
    # Trio runs both in a turn in either order: between two looks there can be two portions.
    assert max(later - before for before, later in pairwise(counts)) <= 2 * RELEASED_PER_TURN
