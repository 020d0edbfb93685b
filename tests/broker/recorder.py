"""A handler that keeps what it is given, and a reader that runs for the length of a test."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from streamer.broker.pubsub import Message
from streamer.broker.reader import PubSubReader
from tests.helpers.timing import DEADLINE_SECONDS


class Recorder:
    """A message handler; `next_event` returns the calls of it, in order."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[tuple[str | bytes, ...]](math.inf)

    def on_messages(self, messages: list[Message]) -> None:
        """Each kept as ("message", channel, payload)."""
        for channel, payload in messages:
            self._send.send_nowait(("message", channel, payload))

    def on_connected(self) -> None:
        """Kept as ("connected",)."""
        self._send.send_nowait(("connected",))

    def on_lost(self, reason: str) -> None:
        """Kept as ("lost", reason)."""
        self._send.send_nowait(("lost", reason))

    def on_refused(self, channel: bytes, reason: str) -> None:
        """Kept as ("refused", channel, reason)."""
        self._send.send_nowait(("refused", channel, reason))

    def on_accepted(self, channel: bytes) -> None:
        """Kept as ("accepted", channel)."""
        self._send.send_nowait(("accepted", channel))

    async def next_event(self) -> tuple[str | bytes, ...]:
        """Wait for the next event."""
        return await self._receive.receive()

    async def lost(self) -> str:
        """Wait until the connection is lost; earlier events are dropped."""
        while (event := await self.next_event())[0] != "lost":
            pass
        return str(event[1])

    async def connected(self) -> None:
        """Wait until the connection is there; earlier events are dropped."""
        while (await self.next_event())[0] != "connected":
            pass


@asynccontextmanager
async def running(reader: PubSubReader) -> AsyncIterator[bool]:
    """Run `reader` inside the block, which gets whether the first attempt to connect succeeded."""
    with trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(reader.run)
            nursery.cancel_scope.cancel()
