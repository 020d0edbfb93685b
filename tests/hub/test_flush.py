"""When things are sent: real clients, on a clock that moves only when a test says so.

Covers streamer.hub.wakeup.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from streamer.edge.session_ids import short_hash
from streamer.protocol.messages import Mode
from tests.helpers.clients import connected, raw_client
from tests.helpers.publications import market_status, orderbook, price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually

WINDOW_SECONDS = 0.030


async def test_a_lone_publication_arrives_bare_and_at_once(mock_clock: MockClock) -> None:
    """A message of a quiet topic waits for no window: it arrives before virtual time passes."""
    async with running_server() as server, connected(server) as client:
        await client.subscribe("stock:A")
        publish(server, "stock:A:price", price("A", 72500))
        message = await client.receive_type("price_update")
        assert (message["price"], message["sequence"]) == (72500, 1)
        assert "previous" not in message


async def test_what_is_published_inside_a_window_is_one_batch_in_order(
    mock_clock: MockClock,
) -> None:
    """Ten publications behind a first one, of two topics: one batch when the window is over."""
    async with running_server() as server, connected(server) as client:
        await client.subscribe("stock:A", "stock:B")
        publish(server, "stock:A:price", price("A", 0))
        await client.receive_type("price_update")
        for number in range(1, 11):
            code = "AB"[number % 2]
            publish(server, f"stock:{code}:price", price(code, number))
        await client.ping_pong()  # and nothing before it: the window is still open
        mock_clock.jump(WINDOW_SECONDS)
        batch = await client.receive_type("batch")
        assert batch["batch_size"] == 10
        assert [message["price"] for message in batch["messages"]] == list(range(1, 11))
        batching = server.statistics().batching
        assert (batching.flushes, batching.batches, batching.messages) == (2, 1, 11)
        assert batching.publications_per_flush == pytest.approx(5.5)


async def test_with_interval_0_nothing_waits_for_a_clock(mock_clock: MockClock) -> None:
    """Every publication arrives before virtual time passes."""
    async with running_server(flush_interval_ms=0) as server, connected(server) as client:
        await client.subscribe("stock:A")
        for number in range(5):
            publish(server, "stock:A:price", price("A", number))
            assert (await client.data())["price"] == number


async def test_max_rate_sends_the_newest_when_its_time_has_come(mock_clock: MockClock) -> None:
    """Twice a second means: at once, then half a second later the newest, with `previous`."""
    async with running_server() as server, connected(server) as client:
        await client.subscribe("stock:A", max_rate=2, kinds=["price"])
        publish(server, "stock:A:price", price("A", 1))
        assert (await client.data())["sequence"] == 1
        for number in (2, 3, 4):
            mock_clock.jump(WINDOW_SECONDS)
            flushes = server.statistics().batching.flushes
            publish(server, "stock:A:price", price("A", number))
            await eventually(lambda: server.statistics().batching.flushes > flushes)  # noqa: B023
        await client.ping_pong()
        mock_clock.jump(0.5)
        message = await client.data()
        assert (message["price"], message["sequence"], message["previous"]) == (4, 4, 1)
        mock_clock.jump(10)
        await client.ping_pong()
        (connection,) = server.connections()
        assert (connection.outbox.offered, connection.outbox.conflated) == (4, 2)


async def test_a_market_status_is_never_merged(mock_clock: MockClock) -> None:
    """Every change of a market's status is sent, even with a limited rate."""
    async with running_server() as server, connected(server) as client:
        await client.subscribe("market:KOSPI", max_rate=0.1)
        phases = ["pre_market", "open", "after_hours", "closed"]
        for phase in phases:
            publish(server, "market:KOSPI:status", market_status("KOSPI", phase))
        mock_clock.jump(WINDOW_SECONDS)
        assert [(await client.data())["status"] for _ in phases] == phases


async def test_a_window_that_was_open_too_long_is_merged_in_mode_latest_only(
    mock_clock: MockClock,
) -> None:
    """The server is behind: latest gets the newest of each kind with `previous`, all gets all."""
    async with (
        running_server() as server,
        connected(server) as latest,
        connected(server) as everything,
    ):
        await latest.subscribe("stock:A")
        await everything.subscribe("stock:A", mode=Mode.ALL)
        publish(server, "stock:A:price", price("A", 0))
        await latest.data()
        await everything.data()
        for number in range(1, 4):
            publish(server, "stock:A:price", price("A", number))
            publish(server, "stock:A:orderbook", orderbook("A", number))
        mock_clock.jump(1.0)  # the flush that was due after 30 ms comes after a second
        batch = await latest.receive_type("batch")
        assert [message["sequence"] for message in batch["messages"]] == [6, 7]
        assert batch["messages"][0]["previous"] == 1
        assert "previous" not in batch["messages"][1]
        batch = await everything.receive_type("batch")
        assert [message["sequence"] for message in batch["messages"]] == list(range(2, 8))
        assert not any("previous" in message for message in batch["messages"])
        assert server.statistics().batching.stretched == 1
        by_name = {info.session: info.outbox for info in server.connections()}
        assert by_name[short_hash(latest.session_id)].conflated == 4
        assert by_name[short_hash(everything.session_id)].conflated == 0


async def test_clients_that_vanish_in_mid_flush_cost_the_others_nothing() -> None:
    """While publications go to 150 clients, a few writes at a time, 40 reset their connections."""
    async with running_server() as server, AsyncExitStack() as stack:
        watchers = [await stack.enter_async_context(raw_client(server)) for _ in range(150)]
        for watcher in watchers:
            await watcher.send(type="subscribe", subscription_type="stock", targets=["A"])
        client = await stack.enter_async_context(connected(server))
        await client.subscribe("stock:A")
        await eventually(lambda: server.statistics().subscriptions == 151)
        for number in range(200):
            publish(server, "stock:A:price", price("A", number))
            if number % 5 == 0:
                watchers.pop().reset()
            await trio.lowlevel.checkpoint()
        assert [(await client.data())["price"] for _ in range(200)] == list(range(200))
        await eventually(lambda: server.statistics().active_connections == 111)
        assert server.statistics().subscriptions == 111


async def test_stopping_waits_for_what_was_published_before_and_no_longer(
    mock_clock: MockClock,
) -> None:
    """A producer that never stops does not delay the server's farewell to its clients."""
    async with running_server() as server, connected(server) as client:
        await client.subscribe("stock:A")
        numbers = iter(range(1_000_000))
        publish(server, "stock:A:price", price("A", next(numbers)))
        await client.data()
        publish(server, "stock:A:price", price("A", next(numbers)))
        server.shutdown()
        received = []
        while True:
            publish(server, "stock:A:price", price("A", next(numbers)))
            mock_clock.jump(WINDOW_SECONDS)
            message = await client.receive()
            if message["type"] == "server_shutdown":
                break
            received += message.get("messages", [message])
        assert received[0]["price"] == 1
        assert await client.closed() == 1001
