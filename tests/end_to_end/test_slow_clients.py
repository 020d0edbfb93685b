"""Clients that stop reading, in the middle of a crowd that does not."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack, aclosing
from typing import Any, Final

import redis as redis_py
import trio
from wsproto.frame_protocol import Opcode

from streamer.hub.outbox import OutboxStatistics
from tests.helpers.clients import Client, RawClient, connected, raw_client
from tests.helpers.publications import price
from tests.helpers.server import running_server
from tests.helpers.timing import eventually

CODES: Final = tuple(f"T{number}" for number in range(10))
CHUNKS: Final = 20
CHUNK: Final = 100
"""Updates published at once; the next ones come when all who read have these."""
LAST: Final = CHUNKS * CHUNK // len(CODES)
"""The last sequence of each topic."""
PAD: Final = "x" * 1000
MAX_QUEUED_BYTES: Final = 200_000

WITHOUT_HEARTBEAT: Final[dict[str, Any]] = {"heartbeat_interval_seconds": 1000}
"""Clients that do not read answer no ping, and on a busy machine these tests outlast one."""

SUBSCRIBE: Final[dict[str, Any]] = {
    "type": "subscribe",
    "subscription_type": "stock",
    "targets": CODES,
}


def publish_chunk(redis: redis_py.Redis) -> None:
    """Publish one chunk, an equal share to each topic."""
    with redis.pipeline(transaction=False) as pipeline:
        for number in range(CHUNK):
            code = CODES[number % len(CODES)]
            pipeline.publish(f"stock:{code}:price", price(code, number, pad=PAD))
        pipeline.execute()


async def read_chunk(client: Client, positions: Counter[str]) -> None:
    """Read one chunk, of which nothing may be missing, merged or out of order."""
    for _ in range(CHUNK):
        message = await client.data()
        positions[message["stock_code"]] += 1
        assert message["sequence"] == positions[message["stock_code"]]
        assert "previous" not in message


async def read_to_the_last(client: RawClient) -> None:
    """Read on: `previous` leaves no hole, and each topic ends with its newest."""
    positions: Counter[str] = Counter()
    async with aclosing(client.frames()) as frames:
        async for opcode, payload in frames:
            if opcode is Opcode.PING:
                continue  # the server asks, after so many messages, whether they arrived
            assert opcode is Opcode.TEXT
            for message in payload.get("messages", [payload]):
                if message["type"] == "price_update":
                    code = message["stock_code"]
                    assert message.get("previous", message["sequence"] - 1) == positions[code]
                    positions[code] = message["sequence"]
            if all(positions[code] == LAST for code in CODES):
                return
    raise AssertionError(f"the stream ended at {positions}")


def check(account: OutboxStatistics) -> None:
    """The account adds up, and what waits is bounded."""
    dropped = sum(account.dropped.values())
    assert account.offered == (account.delivered + account.conflated + dropped + account.queued)
    assert account.queued_bytes <= MAX_QUEUED_BYTES + len(price("T0", 0, pad=PAD)) + 100
    assert not account.conflated or account.queued <= len(CODES)


async def test_twenty_of_a_hundred_stop_reading_and_the_others_notice_nothing(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """80 get all of it in order; what waits for the 20 is bounded, and ends with the newest.

    Two of the 20 are in mode all: what cannot be held for them ends with 4008.
    """
    async with (
        running_server(
            redis=redis_url, max_outbound_bytes=MAX_QUEUED_BYTES, **WITHOUT_HEARTBEAT
        ) as server,
        AsyncExitStack() as stack,
    ):
        deaf: list[RawClient] = []
        for number in range(20):
            client = await stack.enter_async_context(raw_client(server, receive_buffer_bytes=4096))
            await client.send(**SUBSCRIBE, mode="all" if number >= 18 else "latest")
            deaf.append(client)
        # Mode all, so that even on a busy machine nothing may be merged for them.
        readers = [await stack.enter_async_context(connected(server)) for _ in range(80)]
        for reader in readers:
            await reader.request(**SUBSCRIBE, mode="all")
        await eventually(lambda: server.statistics().subscriptions == 100 * len(CODES))
        outboxes = [session.outbox for session in server._acceptor.sessions.values()]

        positions: list[Counter[str]] = [Counter() for _ in readers]
        for _ in range(CHUNKS):
            await trio.to_thread.run_sync(publish_chunk, redis)
            async with trio.open_nursery() as nursery:
                for reader, position in zip(readers, positions, strict=True):
                    nursery.start_soon(read_chunk, reader, position)
            for outbox in outboxes:
                check(outbox.statistics())

        accounts = [outbox.statistics() for outbox in outboxes]
        assert sum(account.conflated > 0 for account in accounts) == 18
        assert sum(account.dropped.get("overflow", 0) > 0 for account in accounts) == 2
        for client in deaf[:18]:
            await read_to_the_last(client)


async def test_in_mode_all_too_slow_is_4008(redis_url: str, redis: redis_py.Redis) -> None:
    """Messages sent before are whole and in order; nothing but the close follows the hole."""
    async with (
        running_server(redis=redis_url, max_outbound_bytes=50_000, **WITHOUT_HEARTBEAT) as server,
        raw_client(server, receive_buffer_bytes=4096) as client,
    ):
        await client.send(type="subscribe", subscription_type="stock", targets=["T0"], mode="all")
        await eventually(lambda: server.statistics().subscriptions == 1)
        while not server.statistics().messages_dropped:
            await trio.to_thread.run_sync(publish_chunk, redis)
        messages, code = await client.messages_until_close()
        assert code == 4008
        data = [inner for message in messages[2:] for inner in message.get("messages", [message])]
        assert [message["sequence"] for message in data] == list(range(1, len(data) + 1))
        assert not any("previous" in message for message in data)
