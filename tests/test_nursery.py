"""Nurseries for tasks that serve a block."""

import pytest
import trio
import trio.testing

from streamer.nursery import open_background_nursery


async def test_tasks_end_with_the_block() -> None:
    """Leaving the block cancels its tasks and waits for them."""
    ended = trio.Event()

    async def serve() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with open_background_nursery() as nursery:
        nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked()
    assert ended.is_set()


async def test_an_exception_of_the_block_comes_out_as_it_is() -> None:
    """The caller catches what it raised itself, with no group around it."""

    async def use() -> None:
        async with open_background_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use()


async def test_an_exception_of_a_task_ends_the_block_and_comes_in_a_group() -> None:
    """A bug of a task is loud, and told from an exception of the block."""

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        async with open_background_nursery() as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()
