"""Connections are taken in bursts, and none is lost."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import trio

from streamer.edge.listeners import ACCEPTS_PER_TURN, BurstListener


class Listening(socket.socket):
    """A listening socket that fails first, as the kernel does when it runs out of something."""

    failures: list[int]

    def accept(self) -> tuple[socket.socket, object]:
        """As `socket.accept`, after the failures."""
        if self.failures:
            code = self.failures.pop()
            raise OSError(code, os.strerror(code))
        return super().accept()


@pytest.fixture
def listening() -> Iterator[Listening]:
    """A socket that listens on loopback."""
    with Listening() as one:
        one.failures = []
        one.bind(("127.0.0.1", 0))
        one.listen(64)
        yield one


async def test_a_burst_is_taken_in_few_turns_and_whoever_comes_later_is_not_forgotten(
    listening: Listening,
) -> None:
    """As many as a turn may take; then others have theirs."""
    listener = BurstListener(listening)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    with ExitStack() as stack:
        for _ in range(2 * ACCEPTS_PER_TURN + 1):
            stack.enter_context(socket.create_connection(listening.getsockname()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            for _ in range(2 * ACCEPTS_PER_TURN + 1):
                stream = await listener.accept()
                stack.callback(stream.socket.close)
            assert turns <= 2 * 3
            late = stack.enter_context(socket.create_connection(listening.getsockname()))
            stream = await listener.accept()
            assert stream.socket.getpeername() == late.getsockname()
            stack.callback(stream.socket.close)
            nursery.cancel_scope.cancel()


async def test_a_connection_that_has_gone_is_passed_over_and_a_lack_of_descriptors_told(
    listening: Listening,
) -> None:
    """The first says nothing of the next; after the second, `trio.serve_listeners` pauses."""
    listener = BurstListener(listening)
    with socket.create_connection(listening.getsockname()):
        listening.failures = [errno.ECONNABORTED]
        await (await listener.accept()).aclose()
    with socket.create_connection(listening.getsockname()):
        listening.failures = [errno.EMFILE]
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            await listener.accept()
        await (await listener.accept()).aclose()
