"""Unfinished handshakes, in virtual time."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from streamer.edge.pending import Pending, PendingConnections


def pending_connections(cut: list[Pending], **limits: int) -> PendingConnections:
    """Ten seconds for each, and no limit but those given."""
    defaults = {"max_total": 0, "max_per_address": 0}
    return PendingConnections(**(defaults | limits), timeout_seconds=10, on_cut=cut.append)


async def test_the_slowest_of_too_many_is_cut() -> None:
    """In all, and among those of one address; who is done in time takes no place any more."""
    await trio.lowlevel.checkpoint()
    cut: list[Pending] = []
    pending = pending_connections(cut, max_total=3, max_per_address=2)
    first, second = pending.enter("a"), pending.enter("a")
    third = pending.enter("a")
    assert cut == [first]
    assert first.scope.cancel_called
    pending.enter("b")
    pending.enter("c")
    assert cut == [first, second]
    pending.leave(third)
    pending.enter("d")
    assert len(cut) == 2
    assert len(pending) == 3


async def test_those_that_take_too_long_are_cut_over_several_turns(mock_clock: MockClock) -> None:
    """5,000 that came together are cut a few in each turn, and nothing of them remains."""
    cut: list[Pending] = []
    pending = pending_connections(cut)
    most = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pending.run)
        await wait_all_tasks_blocked()
        for _ in range(5000):
            pending.enter("a")
        mock_clock.jump(9.9)
        await wait_all_tasks_blocked()
        assert not cut
        mock_clock.jump(0.2)
        before = 0
        while len(pending):
            await trio.lowlevel.checkpoint()
            most = max(most, len(cut) - before)
            before = len(cut)
        nursery.cancel_scope.cancel()
    assert len(cut) == 5000
    assert most <= 200
    assert not pending._by_address


async def test_their_time_can_be_shortened(autojump_clock: MockClock) -> None:
    """Those that are there and those that come have no more than the new time."""
    cut: list[Pending] = []
    pending = pending_connections(cut)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pending.run)
        early = pending.enter("a")
        await wait_all_tasks_blocked()
        pending.shorten(1)
        late = pending.enter("a")
        await trio.sleep(1.1)
        assert cut == [early, late]
        nursery.cancel_scope.cancel()
