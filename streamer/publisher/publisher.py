"""The publisher for Trio: a connection that it reopens when it is lost.

A plain PUBLISH is lost to every server that is not connected. Here one script per publication takes
the topic's next position, stores the text in the topic's history and publishes it, so that all
servers see the same positions and can fetch publications that they missed. The rules are those of
`streamer.publisher.core`.

    open_publisher
    └── run             connect; when the connection is lost, wait (full jitter) and connect again
        ├── send        held publications, up to a window of commands without an answer
        └── receive     answers, in the order of the commands; each settles one publication

The callers of `publish` only wait. They do not use the connection, so a cancelled caller leaves
nothing half written or half read.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio

from streamer.backoff import Backoff
from streamer.broker.connect import (
    INCOMPLETE,
    RedisConnectionError,
    RedisTimeoutError,
    RequestConnection,
    open_connection,
)
from streamer.nursery import open_background_nursery
from streamer.publisher.commands import WINDOW
from streamer.publisher.core import (
    BACKOFF_SECONDS,
    MAX_BACKOFF_SECONDS,
    Call,
    PublisherCore,
    PublisherOptions,
    PublisherStatistics,
)
from streamer.publisher.destination import Payload
from streamer.publisher.receipts import Receipt


class Publisher:
    """Publishes over a connection of its own; made by `open_publisher`.

    Any number of tasks may call it. Publications of one task to one topic stay in order.
    """

    def __init__(self, url: str, options: PublisherOptions) -> None:
        self._url = url
        self._core = PublisherCore(url, options)
        self._work = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._silence = trio.CancelScope()

    def statistics(self) -> PublisherStatistics:
        """Return the present state."""
        return self._core.statistics()

    def check_size(self, text: bytes) -> None:
        """Raise `InvalidPublicationError` if a text is too large to be published."""
        self._core.check_size(text)

    async def publish(self, channel: str, payload: Payload) -> Receipt:
        """Publish one data message and wait until Redis has it.

        `channel` is a topic's (`stock:005930:price`) or a user's (`alerts:u1`); `payload` is the
        JSON text, a dict or the model. Raises as `publish_many`.
        """
        (receipt,) = await self.publish_many([(channel, payload)])
        return receipt

    async def publish_many(self, publications: Iterable[tuple[str, Payload]]) -> list[Receipt]:
        """Publish (channel, payload) after (channel, payload); return the receipts in that order.

        While Redis is away, they are held, and sent again when it is back, never twice.

        Raises `InvalidPublicationError`, before anything is sent, if one of them does not fit its
        channel or is too large. Raises `PublishFailedError` when Redis has acknowledged nothing for
        the hold time, or at once if it is away and the maximum number of publications is held.
        Without positions it is also raised if the connection is lost before an answer: the
        publication may have been published, and is not sent again. Raises `PublishRefusedError` if
        Redis refuses some of them; the others are published.

        After a cancelled call it is unknown how much of it was published.
        """
        core = self._core
        checked = []
        for channel, payload in publications:
            checked.append(core.check(channel, payload))
            if not len(checked) % WINDOW:
                await trio.lowlevel.checkpoint()  # a long call must not hold up other tasks
        await trio.lowlevel.checkpoint()
        while not core.has_room(len(checked)):
            await self._room.park()
        if not checked:
            return []
        settled = trio.Event()
        call = core.begin(checked, trio.current_time(), settled.set)
        self._work.set()
        try:
            await self._wait_settled(call, settled)
        finally:
            if core.withdraw(call):
                self._room.unpark_all()
        return call.result()

    async def _wait_settled(self, call: Call, settled: trio.Event) -> None:
        core = self._core
        while not settled.is_set():
            with trio.move_on_at(core.gives_up_at(call)):
                await settled.wait()
            if not settled.is_set() and trio.current_time() >= core.gives_up_at(call):
                raise core.overdue(call)

    # The connection

    async def run(self) -> None:
        """Keep a connection and send held publications until cancelled (see `open_publisher`)."""
        backoff = Backoff(BACKOFF_SECONDS, MAX_BACKOFF_SECONDS)
        while True:
            attempt = self._core.attempt()
            reason = await self._keep_connection()
            if self._core.note_attempt(attempt, reason):
                backoff.reset()
            self._room.unpark_all()
            await trio.sleep(backoff.next_delay())

    async def _keep_connection(self) -> str:
        """Connect, send and receive until the connection is lost; return why."""
        core = self._core
        timeout_seconds = core.options.timeout_seconds
        reason = ""
        try:
            async with open_connection(
                self._url, timeout_seconds=timeout_seconds, client_name=core.client_name
            ) as connection:
                core.connected()
                with trio.CancelScope() as self._silence:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._send, connection)
                        nursery.start_soon(self._receive, connection)
                raise RedisTimeoutError(f"no answer within {timeout_seconds:g} s")
        except* RedisConnectionError as lost:
            reason = str(lost.exceptions[0])  # the other task lost the same connection
        finally:
            core.disconnected(reason or "the publisher was closed")
        return reason

    async def _send(self, connection: RequestConnection) -> None:
        while True:
            self._work = trio.Event()
            if commands := self._core.next_commands():
                if self._silence.deadline == math.inf:
                    self._silence.deadline = (
                        trio.current_time() + self._core.options.timeout_seconds
                    )
                await connection.send(commands)
            else:
                await self._work.wait()

    async def _receive(self, connection: RequestConnection) -> None:
        core = self._core
        gets = connection.reader.gets
        while True:
            await connection.receive()
            while (reply := gets()) is not INCOMPLETE:
                core.settle(reply, trio.current_time())
            silent_until = trio.current_time() + core.options.timeout_seconds
            self._silence.deadline = silent_until if core.awaits_answers else math.inf
            if core.has_unsent:
                self._work.set()
            if not core.is_full:
                self._room.unpark_all()


@asynccontextmanager
async def open_publisher(
    url: str,
    *,
    positioned: bool = True,
    history_length: int = 5000,
    history_seconds: float = 300,
    hold_seconds: float = 30,
    hold_messages: int = 10_000,
    max_publication_bytes: int = 262_144,
    timeout_seconds: float = 5,
) -> AsyncIterator[Publisher]:
    """Open a publisher to the Redis at `url` (see `open_connection`) for the length of the block.

    Redis may be away, at the beginning too. Each topic's history in Redis keeps `history_length`
    publications (or up to a hundred more: Redis trims in blocks) for `history_seconds`. While Redis
    is away, up to `hold_messages` publications (and the rest of the call that exceeds that) are
    held for `hold_seconds`. A publication over `max_publication_bytes`, its position included, is
    refused, as by servers with the setting of that name. `timeout_seconds` is how long Redis may
    take to accept a connection or to answer.

    With `positioned` false, each publication is a plain PUBLISH (SPUBLISH in a Cluster), which
    needs no other permission: it has no position and no history, and one whose answer is lost is
    not sent again, since Redis could not tell the retry from a new publication.

    Raises `ValueError` for a URL that is not one of Redis, and for `hold_seconds` that are not
    above 0, or not finite.
    """
    publisher = Publisher(
        url,
        PublisherOptions(
            positioned=positioned,
            history_length=history_length,
            history_seconds=history_seconds,
            hold_seconds=hold_seconds,
            hold_messages=hold_messages,
            max_publication_bytes=max_publication_bytes,
            timeout_seconds=timeout_seconds,
        ),
    )
    async with open_background_nursery() as nursery:
        nursery.start_soon(publisher.run)
        yield publisher
