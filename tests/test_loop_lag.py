"""The watchdog tells how long the loop was held up, by a clock that these tests move by hand."""

import time

import attrs
import trio
import trio.testing

from streamer.config import Settings
from streamer.loop_lag import LoopLag, LoopStatistics
from streamer.server import Server, serve
from tests.helpers.timing import BLOCKED_LOOP_SECONDS


@attrs.define
class Clock:
    """A clock that is moved by hand."""

    now_seconds: float = 1000.0

    def __call__(self) -> float:
        """The time that it shows."""
        return self.now_seconds


async def test_work_within_one_turn_is_a_pause_as_long_as_it_took(nursery: trio.Nursery) -> None:
    """Two tasks of one turn delay an event in between by the sum of both."""
    clock = Clock()
    watchdog = LoopLag(clock)
    nursery.start_soon(watchdog.run)
    await trio.testing.wait_all_tasks_blocked()

    async def work(seconds: float) -> None:
        clock.now_seconds += seconds
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as busy:
        busy.start_soon(work, 0.25)
        busy.start_soon(work, 0.5)
    assert watchdog.statistics() == LoopStatistics(0.75, 0.75)


def test_waiting_for_io_is_no_pause_but_waking_late_is() -> None:
    """A deadline that passes while the process gets no processor counts as if it had worked."""
    clock = Clock()
    watchdog = LoopLag(clock)
    watchdog.before_io_wait(10.0)
    clock.now_seconds += 7.0  # something came before the deadline
    watchdog.after_io_wait(10.0)
    watchdog.before_io_wait(1.0)
    assert watchdog.statistics() == LoopStatistics(0.0, 0.0)
    clock.now_seconds += 1.5
    watchdog.after_io_wait(1.0)
    clock.now_seconds += 0.25
    watchdog.before_io_wait(0.0)
    assert watchdog.statistics() == LoopStatistics(0.75, 0.75)


def test_the_last_minute_forgets_and_the_whole_run_does_not() -> None:
    """After a minute the longest pause is replaced by the longest of those after it."""
    clock = Clock()
    watchdog = LoopLag(clock)

    def turn(seconds: float) -> None:
        watchdog.after_io_wait(100.0)
        clock.now_seconds += seconds
        watchdog.before_io_wait(100.0)

    turn(4.0)
    clock.now_seconds += 30.0
    turn(1.0)
    turn(2.0)  # from here on the pause before it can never again be the longest
    assert watchdog.statistics() == LoopStatistics(4.0, 4.0)
    clock.now_seconds += 30.0
    assert watchdog.statistics() == LoopStatistics(4.0, 2.0)
    clock.now_seconds += 30.0
    assert watchdog.statistics() == LoopStatistics(4.0, 0.0)


async def test_a_server_reports_what_held_up_its_loop(nursery: trio.Nursery) -> None:
    """A block of a running server's loop is in its statistics, in real time."""
    server: Server = await nursery.start(serve, Settings(memory=True, port=0, http_port=0))
    await trio.lowlevel.checkpoint()
    time.sleep(BLOCKED_LOOP_SECONDS)  # noqa: ASYNC251 - the fault that it has to find
    await trio.lowlevel.checkpoint()
    assert server.statistics().loop.longest_pause_seconds >= BLOCKED_LOOP_SECONDS
    nursery.cancel_scope.cancel()


async def test_it_leaves_the_loop_when_cancelled(nursery: trio.Nursery) -> None:
    """A server that has ended costs the loop of its process nothing."""
    clock = Clock()
    watchdog = LoopLag(clock)
    nursery.start_soon(watchdog.run)
    await trio.testing.wait_all_tasks_blocked()
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await trio.testing.wait_all_tasks_blocked()
        clock.now_seconds += 5.0
        await trio.lowlevel.checkpoint()
    assert watchdog.statistics() == LoopStatistics(0.0, 0.0)
