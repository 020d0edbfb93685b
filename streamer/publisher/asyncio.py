"""The publisher for asyncio: for FastAPI, aiohttp, and whatever else runs on it.

    from streamer.publisher.asyncio import open_publisher

    async with open_publisher("redis://127.0.0.1") as publisher:
        await publisher.publish("stock:005930:price", {"type": "price_update", …})

The tasks are those of `streamer.publisher.publisher`, which is for Trio; the rules are those of
`streamer.publisher.core`, so the guarantees are the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, Unpack

from streamer.backoff import Backoff
from streamer.broker.connect import (
    INCOMPLETE,
    RedisConnectionError,
    RedisTimeoutError,
    RequestConnection,
)
from streamer.broker.connect_asyncio import open_asyncio
from streamer.publisher.commands import WINDOW
from streamer.publisher.core import (
    BACKOFF_SECONDS,
    MAX_BACKOFF_SECONDS,
    Call,
    PublisherArguments,
    PublisherCore,
    PublisherOptions,
    PublisherStatistics,
)
from streamer.publisher.destination import Payload
from streamer.publisher.receipts import Receipt

__all__ = ["Publisher", "PublisherOptions", "PublisherStatistics", "open_publisher"]


class Publisher:
    """Publishes over a connection of its own; made by `open_publisher`.

    Any number of tasks of its event loop may call it. Publications of one task to one topic stay in
    order.
    """

    def __init__(self, url: str, options: PublisherOptions) -> None:
        """Raises ValueError for a URL that is not one of Redis."""
        self._url = url
        self._core = PublisherCore(url, options)
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        """Set, and replaced, when there may be room again."""
        self._silence = asyncio.timeout(None)
        self._ended = False

    def statistics(self) -> PublisherStatistics:
        """Return the present state."""
        return self._core.statistics()

    async def publish(self, channel: str, payload: Payload) -> Receipt:
        """Publish one data message and wait until Redis has it.

        `channel` is a topic's (`stock:005930:price`) or a user's (`alerts:u1`); `payload` is the
        JSON text, a dict or the model. Raises as `publish_many`.
        """
        (receipt,) = await self.publish_many([(channel, payload)])
        return receipt

    async def publish_many(self, publications: Iterable[tuple[str, Payload]]) -> list[Receipt]:
        """Publish (channel, payload) after (channel, payload); return the receipts in that order.

        While Redis is away, they are held, and sent again when it is back, never twice. Raises as
        the publisher for Trio does (`streamer.publisher.publisher.Publisher.publish_many`). After a
        cancelled call it is unknown how much of it was published.
        """
        core = self._core
        checked = []
        for channel, payload in publications:
            checked.append(core.check(channel, payload))
            if not len(checked) % WINDOW:
                await asyncio.sleep(0)  # a long call must not hold up other tasks
        while not self._ended and not core.has_room(len(checked)):
            await self._room.wait()
        if self._ended:
            raise RuntimeError("the publisher has ended")
        if not checked:
            return []
        settled = asyncio.Event()
        call = core.begin(checked, asyncio.get_running_loop().time(), settled.set)
        self._work.set()
        try:
            await self._wait_settled(call, settled)
        finally:
            if core.withdraw(call):
                self._note_room()
        return call.result()

    async def _wait_settled(self, call: Call, settled: asyncio.Event) -> None:
        core, loop = self._core, asyncio.get_running_loop()
        while not settled.is_set():
            try:
                async with asyncio.timeout_at(core.gives_up_at(call)):
                    await settled.wait()
            except TimeoutError:
                if not settled.is_set() and loop.time() >= core.gives_up_at(call):
                    raise core.overdue(call) from None

    def _note_room(self) -> None:
        self._room.set()
        self._room = asyncio.Event()

    # The connection

    async def run(self) -> None:
        """Keep a connection and send held publications until cancelled (see `open_publisher`)."""
        try:
            backoff = Backoff(BACKOFF_SECONDS, MAX_BACKOFF_SECONDS)
            while True:
                attempt = self._core.attempt()
                reason = await self._keep_connection()
                if self._core.note_attempt(attempt, reason):
                    backoff.reset()
                self._note_room()
                await asyncio.sleep(backoff.next_delay())
        finally:
            # asyncio would let the callers wait for ever.
            self._ended = True
            self._core.fail("the publisher has ended")
            self._note_room()

    async def _keep_connection(self) -> str:
        """Connect, send and receive until the connection is lost; return why."""
        core = self._core
        timeout_seconds = core.options.timeout_seconds
        reason = ""
        try:
            async with open_asyncio(
                self._url, timeout_seconds=timeout_seconds, client_name=core.client_name
            ) as connection:
                core.connected()
                try:
                    async with asyncio.timeout(None) as self._silence:
                        await _run_until_one_fails(
                            self._send(connection), self._receive(connection)
                        )
                except TimeoutError:
                    raise RedisTimeoutError(f"no answer within {timeout_seconds:g} s") from None
        except RedisConnectionError as error:
            reason = str(error)
        finally:
            core.disconnected(reason or "the publisher was closed")
        return reason

    async def _send(self, connection: RequestConnection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._work.clear()
            if commands := self._core.next_commands():
                if self._silence.when() is None:
                    self._silence.reschedule(loop.time() + self._core.options.timeout_seconds)
                await connection.send(commands)
            else:
                await self._work.wait()

    async def _receive(self, connection: RequestConnection) -> None:
        core, loop = self._core, asyncio.get_running_loop()
        gets = connection.reader.gets
        while True:
            await connection.receive()
            while (reply := gets()) is not INCOMPLETE:
                core.settle(reply, loop.time())
            silent_until = loop.time() + core.options.timeout_seconds
            self._silence.reschedule(silent_until if core.awaits_answers else None)
            if core.has_unsent:
                self._work.set()
            if not core.is_full:
                self._note_room()


async def _run_until_one_fails(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run coroutines that have no end, until one fails; cancel the others, and raise its error.

    Not a `TaskGroup`: before Python 3.13, one that is cancelled while a task of it fails raises the
    task's error, and the cancellation is lost.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        # Asked of all, since asyncio logs each error that nobody has asked for.
        errors = [error for task in tasks if not task.cancelled() and (error := task.exception())]
    raise errors[0]


@asynccontextmanager
async def open_publisher(
    url: str, **options: Unpack[PublisherArguments]
) -> AsyncIterator[Publisher]:
    """Open a publisher for the length of the block.

    The parameters are those of `streamer.open_publisher`. Raises `ValueError` as that does.
    """
    publisher = Publisher(url, PublisherOptions(**options))
    keeping = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        keeping.cancel()
        # Not `await keeping`, whose CancelledError may as well be that of the caller.
        await asyncio.wait([keeping])
        if not keeping.cancelled():
            keeping.result()
