"""A turn of the loop that has lasted long puts clients off to the next ones."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from itertools import count, pairwise

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from streamer.edge.loop_budget import (
    LIGHT_SLICE_SECONDS,
    LONG_TURN_SECONDS,
    RELEASED_PER_TURN,
    TURNS_PER_HEAVY_TASK,
    LoopBudget,
)
from streamer.server import Server
from tests.helpers.clients import raw_client
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import DEADLINE_SECONDS, eventually


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
        self.processor_seconds = 0.0

    def work(self, seconds: float) -> None:
        """Make the present turn longer."""
        self.seconds += seconds
        self.processor_seconds += seconds
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
    loop_budget = LoopBudget(lambda: turns.seconds, lambda: turns.processor_seconds)
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
    # The last that finds it short, and those of a slice, or one, that go on in any turn.
    assert turns.longest_seconds <= LONG_TURN_SECONDS + 2 * (LIGHT_SLICE_SECONDS + step_seconds)


@pytest.mark.parametrize(
    ("work_seconds", "tasks"), [(0.0005, 5), (0.001, 3), (2 * LIGHT_SLICE_SECONDS, 1)]
)
async def test_a_slice_goes_on_in_a_turn_that_is_long_from_the_start(
    work_seconds: float, tasks: int
) -> None:
    """A process that waits for a core has long turns only, and in each it has done little."""
    turns = Turns()
    loop_budget = LoopBudget(lambda: 2 * LONG_TURN_SECONDS, lambda: turns.processor_seconds)

    async def put_off() -> None:
        await loop_budget.wait()
        turns.work(work_seconds)

    trio.lowlevel.add_instrument(turns)
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as waiting:
            for _ in range(100):
                waiting.start_soon(put_off)
            await wait_all_tasks_blocked()
            nursery.start_soon(loop_budget.run)
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(turns)
    # Trio runs the two in a turn in either order: the release, and what was released before.
    assert tasks <= round(turns.longest_seconds / work_seconds) <= 2 * tasks


async def test_one_goes_on_in_a_turn_that_others_have_made_long() -> None:
    """Work that takes each turn whole stops nobody for ever."""
    processor_seconds = count(step=2 * LIGHT_SLICE_SECONDS)
    loop_budget = LoopBudget(lambda: 2 * LONG_TURN_SECONDS, partial(next, processor_seconds))
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


async def test_work_on_many_topics_waits_behind_such_work_only() -> None:
    """Heavy work waits in a short turn, too, while other heavy work waits: it keeps its order."""
    is_long = True
    loop_budget = LoopBudget(lambda: 1.0 if is_long else 0.0)
    many, few = range(100), range(3)
    assert loop_budget.defers(few)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop_budget.wait_for, many)
        await wait_all_tasks_blocked()
        is_long = False
        assert loop_budget.defers(many)
        assert not loop_budget.defers(few)
        nursery.start_soon(loop_budget.run)
        await wait_all_tasks_blocked()
        assert not loop_budget.defers(many)
        nursery.cancel_scope.cancel()


class Departures(trio.abc.Instrument):
    """The most clients that have left a server in one turn."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = server.active_connections
        self.most = 0

    def before_io_wait(self, timeout: float) -> None:
        """End a turn."""
        del timeout
        now = self._server.active_connections
        self.most = max(self.most, self._before - now)
        self._before = now


@pytest.mark.parametrize("is_written_to", [False, True])
async def test_clients_that_leave_together_with_many_topics_leave_one_by_one(
    is_written_to: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To end hundreds of subscriptions takes milliseconds, whoever notices first that it is gone.

    Each turn counts as long here: then about one of them leaves in each.
    """
    targets = [f"S{number}" for number in range(60)]
    async with running_server() as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(raw_client(server)) for _ in range(40)]
        for client in clients:
            await client.send(type="subscribe", subscription_type="stock", targets=targets)
        total = len(clients) * len(targets)
        await eventually(lambda: server.statistics().subscriptions == total)
        monkeypatch.setattr(LoopBudget, "is_long", True)
        departures = Departures(server)
        trio.lowlevel.add_instrument(departures)
        for client in clients:
            client.reset()
        if is_written_to:
            publish(server, "stock:S0:price", price("S0", 1))
        await eventually(lambda: not server.active_connections)
        trio.lowlevel.remove_instrument(departures)
        # Trio runs the two in a turn in either order: the release, and what is released.
        assert departures.most <= 2


async def test_heavy_work_leaves_most_turns_to_light_work() -> None:
    """While light tasks wait, a heavy one goes on in every fourth turn; then all others do."""
    loop_budget = LoopBudget(lambda: 0.0)
    passed: list[bool] = []

    async def put_off(*, is_heavy: bool) -> None:
        await loop_budget.wait(is_heavy=is_heavy)
        passed.append(is_heavy)

    turns = 5 * TURNS_PER_HEAVY_TASK
    async with trio.open_nursery() as nursery:
        for is_heavy, count in ((True, 2 * turns), (False, turns * RELEASED_PER_TURN)):
            for _ in range(count):
                nursery.start_soon(partial(put_off, is_heavy=is_heavy))
        await wait_all_tasks_blocked()
        nursery.start_soon(loop_budget.run)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    last_light = len(passed) - 1 - passed[::-1].index(False)
    assert 4 <= sum(passed[:last_light]) <= 6
    assert sum(passed) == 2 * turns
