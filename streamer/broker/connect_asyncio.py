"""Connections that asyncio waits for, opened in a thread: for producers that run on asyncio.

They work on every event loop that can watch a socket (`add_reader`), uvloop's too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from streamer.broker.blocking import Handover
from streamer.broker.cluster import ClusterConnection
from streamer.broker.connect_blocking import connect
from streamer.broker.connection import (
    RedisTimeoutError,
    RequestConnection,
    SocketConnection,
)


class AsyncioConnection(SocketConnection):
    """An authenticated connection to one server."""

    async def _wait_readable(self) -> None:
        loop = asyncio.get_running_loop()
        await _watched(
            partial(loop.add_reader, self._sock), partial(loop.remove_reader, self._sock)
        )

    async def _wait_writable(self) -> None:
        loop = asyncio.get_running_loop()
        await _watched(
            partial(loop.add_writer, self._sock), partial(loop.remove_writer, self._sock)
        )

    async def _give_turn(self) -> None:
        await asyncio.sleep(0)


async def _watched(add: Callable[[Callable[[], None]], None], remove: Callable[[], object]) -> None:
    """Wait until the event loop calls what is added."""
    ready = asyncio.Event()
    add(ready.set)
    try:
        await ready.wait()
    finally:
        remove()


@asynccontextmanager
async def open_asyncio(
    url: str, *, timeout_seconds: float, client_name: str
) -> AsyncIterator[RequestConnection]:
    """Connect to the Redis at `url`, for requests, and close the connection at the end.

    The same URLs as `streamer.broker.connect.open_connection`, and the same errors.
    """
    handover = Handover()
    connections: list[AsyncioConnection] = []
    connecting = partial(
        connect, url, handover, timeout_seconds=timeout_seconds, client_name=client_name
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            # A thread that is too late, or whose caller was cancelled, closes its sockets.
            topology = await asyncio.to_thread(connecting)
    except TimeoutError:
        handover.abandon()
        raise RedisTimeoutError(f"no answer from Redis within {timeout_seconds:g} s") from None
    except BaseException:
        handover.abandon()
        raise
    connections = [AsyncioConnection(sock) for sock in handover.take()]
    try:
        if topology is None:
            yield connections[0]
        else:
            yield ClusterConnection(topology, connections, new_event=asyncio.Event)
    finally:
        for connection in connections:
            connection.close()
