"""How tests wait, and every real pause that is left in them.

A test waits for an event, or with `eventually` or `wait_until` for a condition that nothing
signals. Bounds are there only to end a test that hangs: no test passes or fails by how soon
something happens. Where time itself matters, trio's clock is a MockClock.

These real pauses are left, each with the reason (`tests/test_layout.py` finds any other):

- `eventually` and `wait_until` look again after POLL_SECONDS, the faults' world after
  SLOW_POLL_SECONDS: another process signals nothing that a test could wait for.
- PACE_SECONDS is between two publications of a producer that has no end: without it, it would take
  the core from what is tested.
- STOPPED_REDIS_SECONDS is how long a fault lasts in which, by its nature, nothing happens.
- BLOCKED_LOOP_SECONDS is the fault that the measurement of event loop lag has to find.

`Proxy.delay_seconds` is a fault that only programs of minutes ask for. Besides, tests of time-outs
give the code under test a time-out of some tenths of a second, where the other end never answers;
only the passing of that time is waited for. What `bench` measures is real time, so that it pauses
as its rates say.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

DEADLINE_SECONDS: Final = 120.0
"""Real time after which a test has hung. Long: a busy machine may be ten times slower."""

POLL_SECONDS: Final = 0.002
"""Between two looks at a condition that nothing signals."""

SLOW_POLL_SECONDS: Final = 0.1
"""The same where each look costs a request to another process, or a walk over all clients."""

FLOW_DEADLINE_SECONDS: Final = 300.0
"""Real time after which a flow of many messages through several processes has stopped."""

PACE_SECONDS: Final = 0.02
STOPPED_REDIS_SECONDS: Final = 10.0
BLOCKED_LOOP_SECONDS: Final = 0.1

_TURNS_WITHOUT_PAUSE: Final = 50
"""Turns of the event loop that `eventually` takes at once: most conditions need only a few."""


async def eventually(
    condition: Callable[[], object], *, seconds: float = FLOW_DEADLINE_SECONDS
) -> None:
    """Wait for a condition that has no event. Raises TimeoutError after `seconds` of real time.

    Works with every clock of trio. Virtual time does not pass meanwhile: the event loop is never
    idle, so that a MockClock does not jump.

    What grows by itself, as attempts that are repeated, is to be compared with `>=`: while this
    process waits for a core, it may pass the value that is waited for.
    """
    turns = 0
    deadline = time.monotonic() + seconds
    while True:
        await trio.lowlevel.checkpoint()
        if condition():
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing happened for {seconds:g} s")
        turns += 1
        if turns > _TURNS_WITHOUT_PAUSE:
            # Blocks the event loop: other processes need the core more than this one does.
            time.sleep(POLL_SECONDS)  # noqa: ASYNC251


def wait_until(condition: Callable[[], object], *, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait, blocking, for a condition that has no event. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing happened for {seconds:g} s")
        time.sleep(POLL_SECONDS)


@asynccontextmanager
async def real_deadline(seconds: float = DEADLINE_SECONDS) -> AsyncIterator[None]:
    """Fail a test that hangs, even where trio's clock does not advance."""
    token = trio.lowlevel.current_trio_token()
    over = threading.Event()
    scope = trio.CancelScope()

    def watch() -> None:
        if not over.wait(seconds):
            token.run_sync_soon(scope.cancel)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        with scope:
            yield
        assert not scope.cancelled_caught, f"nothing happened for {seconds:g} s"
    finally:
        over.set()
        thread.join()
