"""The whole server: who is there, what it counts, how it stops.

Covers streamer.statistics.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from streamer.config import Settings
from streamer.edge.session_ids import short_hash
from streamer.protocol.topics import Topic
from streamer.server import Server, serve
from tests.helpers.clients import connected, raw_client
from tests.helpers.publications import orderbook, price
from tests.helpers.server import get_page, publish, running_server
from tests.helpers.timing import eventually, real_deadline


async def test_of_a_client_that_has_left_nothing_remains() -> None:
    """0, 1, 0 connections; tasks, subscriptions, topics and groups are as before it came."""
    async with running_server(linger_seconds=0) as server:

        def tasks() -> int:
            return trio.lowlevel.current_statistics().tasks_living

        before = tasks()
        assert server.statistics().active_connections == 0
        async with connected(server) as client:
            await client.subscribe("stock:A", "stock:B")
            publish(server, "stock:A:price", price("A", 1))
            await client.data()
            assert server.statistics().active_connections == 1
            assert len(server.connections()) == 1
        async with raw_client(server) as rude:
            await rude.send(type="subscribe", subscription_type="sector", targets=["S"])
            await eventually(lambda: server.statistics().subscriptions_by_type["sector"] == 1)
            rude.reset()
        await eventually(lambda: server.statistics().active_connections == 0)
        await eventually(lambda: server.statistics().hub.topics == 0)
        await eventually(lambda: tasks() == before)
        statistics = server.statistics()
        assert (statistics.connections_total, statistics.subscriptions) == (2, 0)
        assert (statistics.hub.groups, statistics.messages_queued) == (0, 0)
        assert server.connections() == []
        assert statistics.messages_sent == 1


async def test_the_counts_are_true_under_fifty_clients() -> None:
    """Mixed subscriptions, by type, by topic and by client; in the API and on the page."""
    async with running_server() as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server)) for _ in range(50)]
        for number, client in enumerate(clients):
            await client.subscribe("stock:A")
            if number % 2:
                await client.subscribe("stock:B", "stock:C")
            if number % 5 == 0:
                await client.subscribe("market:KOSPI")
            if number % 10 == 0:
                await client.subscribe("sector:tech")
                await client.subscribe("watchlist:w")
        publish(server, "stock:A:price", price("A", 1))
        publish(server, "stock:B:orderbook", orderbook("B", 1))
        for number, client in enumerate(clients):
            for _ in range(1 + number % 2):
                await client.data()
        statistics = server.statistics()
        by_type = {"stock": 50 + 2 * 25, "market": 10, "sector": 5, "watchlist": 5, "user": 0}
        assert statistics.subscriptions_by_type == by_type
        assert statistics.subscriptions == sum(by_type.values())
        assert statistics.active_connections == statistics.connections_total == 50
        assert statistics.messages_sent == 75
        assert statistics.messages_received == 50 + 25 + 10 + 5 + 5
        assert (statistics.hub.topics, statistics.hub.publications) == (6, 2)
        assert len(server.hub.subscribers(Topic.parse("stock:B"))) == 25
        assert server.hub.subscribers(Topic.parse("stock:nobody")) == []

        status, page = await get_page(server, "/v1/ws/stats")
        assert (status, page["subscriptions_by_type"]) == (200, by_type)
        assert page["active_connections"] == 50
        status, page = await get_page(server, "/v1/ws/connections")
        assert (status, page["count"]) == (200, 50)
        listed = {connection["session"]: connection for connection in page["connections"]}
        first = listed[short_hash(clients[0].session_id)]
        assert first["subscriptions"] == ["market:KOSPI", "sector:tech", "stock:A", "watchlist:w"]
        assert first["remote_address"] == "127.0.0.1"
        assert first["messages_received"] == 4
        assert first["outbox"]["delivered"] == 1


async def test_every_account_adds_up() -> None:
    """Offered = delivered + conflated + dropped + queued, for quick, slow and leaving clients."""
    async with (
        running_server(flush_interval_ms=0, max_outbound_bytes=20_000) as server,
        connected(server) as quick,
        raw_client(server, receive_buffer_bytes=4096) as slow,
        raw_client(server, receive_buffer_bytes=4096) as overflowing,
        connected(server) as leaving,
    ):
        await quick.subscribe("stock:A")
        subscribe: dict[str, Any] = {
            "type": "subscribe",
            "subscription_type": "stock",
            "targets": ["A"],
        }
        await slow.send(**subscribe)
        await overflowing.send(**subscribe, mode="all")
        await leaving.subscribe("stock:A")
        await eventually(lambda: server.statistics().subscriptions == 4)
        sessions = server._acceptor.sessions
        outboxes = {name: session.outbox for name, session in sessions.items()}
        published = 0
        while not (
            server.statistics().messages_dropped.get("overflow")
            and server.statistics().messages_conflated
        ):
            publish(server, "stock:A:price", price("A", published, pad="x" * 2000))
            published += 1
            assert (await quick.data())["price"] == published - 1
            if published == 10:
                await leaving.send(type="unsubscribe", subscription_type="stock", targets=["A"])
                while (await leaving.receive())["type"] != "unsubscribed":
                    pass
        _, code = await overflowing.messages_until_close()
        assert code == 4008
        accounts = {name: outbox.statistics() for name, outbox in outboxes.items()}
        for account in accounts.values():
            assert account.offered == (
                account.delivered
                + account.conflated
                + sum(account.dropped.values())
                + account.queued
            )
        mine = accounts[quick.session_id]
        assert mine.offered == mine.delivered == published
        assert accounts[leaving.session_id].offered <= 10
        others = [
            account
            for name, account in accounts.items()
            if name not in (quick.session_id, leaving.session_id)
        ]
        merged = max(others, key=lambda account: account.conflated)
        assert merged.offered == published
        lost = max(others, key=lambda account: sum(account.dropped.values()))
        assert lost.dropped["overflow"] >= 1


async def test_pages_of_the_operator() -> None:
    """Health and readiness, and nothing else."""
    async with running_server() as server:
        assert await get_page(server, "/healthz") == (200, {"status": "ok"})
        assert await get_page(server, "/readyz") == (200, {"ready": True, "reason": None})
        assert await get_page(server, "/v1/ws") == (404, {"error": "Not Found"})


async def test_a_stopping_server_tells_each_client_when_to_come_back(
    mock_clock: MockClock,
) -> None:
    """server_shutdown with a delay of its own for each, then 1001; new ones are not let in."""
    settings = Settings(
        memory=True,
        port=0,
        http_port=0,
        max_connections_per_address=0,
        drain_min_retry_ms=1000,
        drain_spread_ms_per_client=10_000,
    )
    async with real_deadline(), trio.open_nursery() as nursery:
        stopped = trio.Event()

        async def run(task_status: trio.TaskStatus[Server]) -> None:
            await serve(settings, task_status=task_status)
            stopped.set()

        server = await nursery.start(run)
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(server)) for _ in range(8)]
            for client in clients:
                await client.subscribe("stock:A")
            publish(server, "stock:A:price", price("A", 1))
            for client in clients:
                await client.data()
            publish(server, "stock:A:price", price("A", 2))
            server.shutdown()
            await clients[0].ping_pong()  # nothing is sent before the window is over
            mock_clock.jump(0.03)
            delays = []
            for client in clients:
                assert (await client.data())["price"] == 2  # what was published is flushed first
                delays.append((await client.receive_type("server_shutdown"))["retry_after_ms"])
                assert await client.closed() == 1001
            assert all(1000 <= delay <= 81_000 for delay in delays)
            assert len(set(delays)) > 1
            assert server.readiness().reason == "shutting down"
            with pytest.raises(OSError, match="connect"):
                async with raw_client(server):
                    pass
        await eventually(stopped.is_set)


async def test_a_stopping_server_waits_for_no_client_beyond_its_deadline(
    mock_clock: MockClock,
) -> None:
    """One that does not read is cut off when the time is over; the others have long gone."""
    async with real_deadline(), trio.open_nursery() as nursery:
        settings = Settings(memory=True, port=0, http_port=0, max_connections_per_address=0)
        stopped = trio.Event()

        async def run(task_status: trio.TaskStatus[Server]) -> None:
            await serve(settings, task_status=task_status)
            stopped.set()

        server = await nursery.start(run)
        async with raw_client(server, receive_buffer_bytes=4096) as deaf:
            await deaf.send(type="subscribe", subscription_type="stock", targets=["A"])
            await eventually(lambda: server.statistics().subscriptions == 1)
            while not server.statistics().hub.blocked_clients:
                publish(server, "stock:A:price", price("A", 1, pad="x" * 5000))
                mock_clock.jump(0.03)
                await trio.lowlevel.checkpoint()
            server.shutdown()
            while not stopped.is_set():
                assert trio.current_time() < 60
                await trio.lowlevel.checkpoint()
                mock_clock.jump(0.01)


async def test_a_handshake_that_ends_after_the_shutdown_began_is_dismissed_at_once(
    mock_clock: MockClock,
) -> None:
    """The client gets its greeting, server_shutdown and 1001, is not restored, and delays nothing.

    A connection whose handshake never ends delays the shutdown by no more than a second.
    """
    async with real_deadline(), trio.open_nursery() as nursery:
        settings = Settings(memory=True, port=0, http_port=0, max_connections_per_address=0)
        stopped = trio.Event()

        async def run(task_status: trio.TaskStatus[Server]) -> None:
            await serve(settings, task_status=task_status)
            stopped.set()

        server = await nursery.start(run)
        async with (
            connected(server) as other,
            raw_client(server, opened=False) as late,
            raw_client(server, opened=False),
        ):
            await other.subscribe("stock:A")
            await eventually(lambda: server.statistics().pending_handshakes == 2)
            server.shutdown()
            await eventually(lambda: server._acceptor._is_stopping)
            mock_clock.jump(0.03)
            await late.open(f"/v1/ws?session_id={other.session_id}")
            assert (await late.response()).startswith(b"HTTP/1.1 101 ")
            messages, code = await late.messages_until_close()
            assert [message["type"] for message in messages] == ["connected", "server_shutdown"]
            assert code == 1001
            assert await other.closed() == 1001
            began_seconds = trio.current_time()
            mock_clock.jump(1)
            await late.stream.aclose()
            await other.connection.aclose()
            await eventually(stopped.is_set)
            assert trio.current_time() - began_seconds <= 1


async def test_shutdown_may_be_asked_for_by_an_event() -> None:
    """As the command line does it."""
    shutdown = trio.Event()
    settings = Settings(memory=True, port=0, http_port=0)
    async with real_deadline(), trio.open_nursery() as nursery:
        await nursery.start(partial(serve, settings, shutdown=shutdown))
        shutdown.set()


async def test_a_port_that_is_taken_is_an_error() -> None:
    """Said at once, before anything is started."""
    async with running_server() as server:
        port = urlsplit(server.websocket_url).port or 0
        with pytest.raises(OSError, match="in use"):
            await serve(Settings(memory=True, port=port, http_port=0))


@pytest.mark.parametrize("auth", ["none", "optional"])
async def test_a_stop_does_not_wait_for_a_silent_redis(auth: str, tmp_path: Path) -> None:
    """A server that is still connecting to Redis gives that up, for its source and for tokens."""
    secret = tmp_path / "secret"
    secret.write_text("s" * 32)
    shutdown = trio.Event()
    (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    settings = Settings(
        redis=f"redis://127.0.0.1:{silent.socket.getsockname()[1]}",
        port=0,
        http_port=0,
        auth=auth,  # type: ignore[arg-type]  # one of the words
        auth_secret_file=None if auth == "none" else secret,
    )
    with capture_logs() as entries:
        async with real_deadline(), silent, trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve, settings, shutdown=shutdown))
            asked = [await silent.accept() for _ in range(1 if auth == "none" else 3)]
            shutdown.set()
            await eventually(lambda: not nursery.child_tasks)
            for stream in asked:
                await trio.aclose_forcefully(stream)
    # None of them has failed by then.
    assert [entry["event"] for entry in entries] == ["serving", "draining"]
