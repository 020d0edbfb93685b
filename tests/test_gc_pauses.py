"""The garbage collector never visits all objects while many clients are connected."""

import gc
import weakref
from collections.abc import Iterator

import attrs
import pytest
import trio
import trio.testing

from streamer.cli.errors import ExitCode
from streamer.cli.serve import run_server
from streamer.config import Settings
from streamer.gc_pauses import (
    FULL_COLLECTION_INTERVAL_SECONDS,
    MAX_CONNECTIONS,
    keep_collections_short,
)


@attrs.define
class Clients:
    """So many clients."""

    active_connections: int


@attrs.define(eq=False, slots=False)
class Cycle:
    """Garbage that only a collection finds."""

    itself: object = None

    @classmethod
    def old(cls) -> "weakref.ref[Cycle]":
        """One that has survived the collections of the young."""
        one = cls()
        one.itself = one
        gc.collect(1)
        return weakref.ref(one)


@pytest.fixture
def _collector_as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    assert (gc.get_threshold(), gc.get_freeze_count()) == (thresholds, 0)


@pytest.mark.usefixtures("_collector_as_before")
@pytest.mark.parametrize(
    ("clients", "collected"), [(MAX_CONNECTIONS, True), (MAX_CONNECTIONS + 1, False)]
)
async def test_a_full_collection_waits_until_there_are_few_clients(
    clients: int, collected: bool, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Old garbage goes within a minute where that is quick, and stays where it would be slow."""
    serving = Clients(clients)
    nursery.start_soon(keep_collections_short, serving)
    await trio.testing.wait_all_tasks_blocked()
    garbage = Cycle.old()
    await trio.sleep(1.5 * FULL_COLLECTION_INTERVAL_SECONDS)
    assert (garbage() is None) is collected
    serving.active_connections = 0
    await trio.sleep(FULL_COLLECTION_INTERVAL_SECONDS)
    assert garbage() is None
    nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("_collector_as_before")
async def test_no_full_collection_comes_by_itself(nursery: trio.Nursery) -> None:
    """However many objects survive, only the young are collected."""
    full: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        full.extend([1] * (phase == "start" and info["generation"] == 2))

    nursery.start_soon(keep_collections_short, Clients(10_000))
    await trio.testing.wait_all_tasks_blocked()
    gc.callbacks.append(note)
    try:
        survivors: list[list[list[int]]] = [[[]] for _ in range(300_000)]
    finally:
        gc.callbacks.remove(note)
    assert survivors
    assert not full
    nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("_collector_as_before")
async def test_the_first_collection_is_over_before_a_server_listens() -> None:
    """It visits all modules, and would hold up the first clients."""
    frozen: list[int] = []

    async def handle_signals(
        *_: object, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        await trio.lowlevel.checkpoint()

    async def run(*_: object, **__: object) -> None:
        frozen.append(gc.get_freeze_count())
        await trio.lowlevel.checkpoint()

    objects = len(gc.get_objects())
    assert await run_server(run, Settings(), handle_signals, print) is ExitCode.OK
    assert frozen[0] > objects / 2
