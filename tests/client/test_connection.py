"""One connection: when a server counts as gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock
from wsproto.events import TextMessage

from streamer.client.connection import Connection
from streamer.client.decode import Message
from streamer.client.endings import ABNORMAL, Ending
from streamer.protocol import messages
from tests.client.test_websocket import Server, pair

MINUTES = 3


class Consumer:
    """Takes in messages at once, or none at all."""

    def __init__(self) -> None:
        self.room = trio.lowlevel.ParkingLot()
        self.has_room = True
        self.received = 0

    def on_request(self, request: messages.ClientMessage) -> None:
        """Ignore a request."""

    def on_message(self, message: Message, *, is_answer: bool) -> None:  # noqa: ARG002
        """Count a message."""
        self.received += 1


@asynccontextmanager
async def connected(
    consumer: Consumer, *, lockstep: bool = False
) -> AsyncIterator[tuple[Server, list[Ending]]]:
    """A connection with the usual intervals to a server that reads nothing, and its ending."""
    endings: list[Ending] = []

    async def restore() -> None:
        """Restore nothing."""

    async with pair(lockstep=lockstep) as (socket, server):

        async def run() -> None:
            connection = Connection(socket, consumer)
            endings.append(
                await connection.run(
                    restore, heartbeat_interval_seconds=25, pong_timeout_seconds=10
                )
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield server, endings
            nursery.cancel_scope.cancel()


async def test_a_pong_may_come_behind_minutes_of_data(autojump_clock: MockClock) -> None:
    """On a slow line, what is on its way before the pong proves that the server is there."""
    consumer = Consumer()
    async with connected(consumer) as (server, endings):
        for _ in range(MINUTES * 60):
            await server.say(TextMessage(data='{"type":"later","timestamp":""}'))
            await trio.sleep(1)
        assert endings == []
        assert consumer.received == MINUTES * 60
        await trio.sleep(120)
        assert endings == [Ending(ABNORMAL, "the server did not answer a ping")]


async def test_a_ping_that_cannot_be_written_whole_ends_the_connection(
    autojump_clock: MockClock,
) -> None:
    """Nothing can be sent after half of a frame, even if the consumer is the one that waits."""
    consumer = Consumer()
    consumer.has_room = False
    async with connected(consumer, lockstep=True) as (_, endings):
        await trio.sleep(60)
        assert endings == [Ending(ABNORMAL, "the server did not answer a ping")]
