"""Workers: several processes serve one port, and their parent replaces them.

Covers streamer.workers.assignment, streamer.workers.supervisor and streamer.workers.worker.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis as redis_py
import trio
import trio_websocket
from trio.testing import MockClock, wait_all_tasks_blocked

from streamer.config import Settings
from streamer.edge.session_ids import short_hash
from streamer.workers.assignment import Assignment, WorkerFailedError
from streamer.workers.supervisor import supervise
from streamer.workers.worker import Worker
from tests.helpers.clients import Client
from tests.helpers.timing import eventually, real_deadline
from tests.helpers.workers import running_workers

CLIENTS = 16
"""The kernel's hash gives so many to one of two workers in 1 of 32,768 cases."""


def publish(redis: redis_py.Redis, price: int) -> None:
    """Publish as any producer does."""
    update = {"type": "price_update", "stock_code": "005930", "price": price, "change": 0}
    update |= {"change_percent": 0, "volume": 1, "timestamp": "2024-08-09T00:00:00Z"}
    redis.publish("stock:005930:price", json.dumps(update))


async def test_the_clients_of_all_workers_receive_what_redis_publishes(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Connections are spread over the workers, and all clients receive the same."""
    async with running_workers(redis_url) as workers, AsyncExitStack() as stack:
        clients: list[Client] = [
            await stack.enter_async_context(workers.connected()) for _ in range(CLIENTS)
        ]
        for client in clients:
            await client.subscribe("stock:005930")
        publish(redis, 72_500)
        for client in clients:
            assert (await client.data())["price"] == 72_500

        statistics = await workers.page("/v1/ws/stats")
        parts = [worker["statistics"]["active_connections"] for worker in statistics["workers"]]
        assert all(parts)
        assert sum(parts) == statistics["active_connections"] == CLIENTS
        assert statistics["subscriptions"] == statistics["messages_sent"] == CLIENTS
        assert statistics["loop"]["longest_pause_seconds"] == max(
            worker["statistics"]["loop"]["longest_pause_seconds"]
            for worker in statistics["workers"]
        )
        listed = await workers.page("/v1/ws/connections")
        assert listed["count"] == CLIENTS
        assert {one["session"] for one in listed["connections"]} == {
            short_hash(client.session_id) for client in clients
        }
        assert [one["worker"] for one in listed["connections"]] == [1] * parts[0] + [2] * parts[1]


async def test_a_worker_that_is_killed_is_replaced_while_the_others_go_on(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Its clients are disconnected; those of the other worker are not."""
    async with running_workers(redis_url) as workers:
        victim, other = workers.supervisor.workers
        victims = 0
        async with AsyncExitStack() as stack:
            clients: list[Client] = [
                await stack.enter_async_context(workers.connected()) for _ in range(CLIENTS)
            ]
            for client in clients:
                await client.subscribe("stock:005930")
            listed = (await workers.page("/v1/ws/connections"))["connections"]
            of_victim = {one["session"] for one in listed if one["worker"] == victim.number}
            assert victim.pid is not None
            killed = victim.pid
            os.kill(killed, signal.SIGKILL)
            publish(redis, 72_600)
            for client in clients:
                if short_hash(client.session_id) in of_victim:
                    assert await client.closed() == 1006
                    victims += 1
                else:
                    assert (await client.data())["price"] == 72_600
        assert victims == len(of_victim) > 0
        await workers.until_ready()
        assert (victim.restarts, other.restarts) == (1, 0)
        assert victim.pid not in {None, killed}
        statistics = await workers.page("/v1/ws/stats")
        assert [worker["restarts"] for worker in statistics["workers"]] == [1, 0]


async def test_a_worker_that_cannot_be_started_again_does_not_end_the_others(
    redis_url: str,
) -> None:
    """There may be no memory or no process for it at first: it is tried again."""
    async with running_workers(redis_url) as workers:
        victim, other = workers.supervisor.workers
        command, victim._command = victim._command, ["/nowhere/streamer"]
        survivor = other.pid
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        await eventually(lambda: victim.restarts >= 2)
        victim._command = command
        await workers.until_ready()
        assert (other.pid, other.restarts) == (survivor, 0)


async def test_a_worker_that_is_told_to_stop_lets_its_clients_go_and_is_replaced(
    redis_url: str,
) -> None:
    """One worker can be restarted without the others."""
    async with running_workers(redis_url) as workers, workers.connected() as client:
        (one,) = (await workers.page("/v1/ws/connections"))["connections"]
        mine = workers.supervisor.workers[one["worker"] - 1]
        assert mine.pid is not None
        os.kill(mine.pid, signal.SIGTERM)
        await client.receive_type("server_shutdown")
        assert await client.closed() == 1001
        await eventually(lambda: mine.restarts == 1)
        await workers.until_ready()


async def test_the_page_says_which_worker_is_absent(redis_url: str) -> None:
    """Readiness is false, and the statistics are those of the other worker."""
    async with running_workers(redis_url) as workers:
        victim = workers.supervisor.workers[1]
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        await eventually(lambda: victim.pid is None)
        assert await workers.page("/readyz") == {"ready": False, "reason": "worker 2: absent"}
        statistics = await workers.page("/v1/ws/stats")
        assert [bool(worker["statistics"]) for worker in statistics["workers"]] == [True, False]
        assert (await workers.page("/v1/ws/connections"))["count"] == 0


async def test_shutdown_lets_the_clients_of_all_workers_go(redis_url: str) -> None:
    """Each client receives `server_shutdown` and is closed with 1001; then the processes end."""
    async with running_workers(redis_url) as workers, AsyncExitStack() as stack:
        clients: list[Client] = [
            await stack.enter_async_context(workers.connected()) for _ in range(CLIENTS)
        ]
        workers.shutdown.set()
        for client in clients:
            await client.receive_type("server_shutdown")
            with pytest.raises(trio_websocket.ConnectionClosed) as closed:
                await client.receive()
            assert closed.value.reason is not None
            assert closed.value.reason.code == 1001
        assert (await workers.supervisor.readiness()).reason == "shutting down"
        await eventually(lambda: not any(one.pid for one in workers.supervisor.workers))


async def test_a_shutdown_before_the_workers_listen_ends_them(
    redis_url: str, mock_clock: MockClock
) -> None:
    """The parent does not wait for workers that were stopped on their way."""
    shutdown = trio.Event()
    settings = Settings(redis=redis_url, workers=2, port=0, http_port=0)
    worker_command = (sys.executable, "-c", "import sys; sys.stdin.read()")
    async with real_deadline(), trio.open_nursery() as nursery:
        nursery.start_soon(partial(supervise, settings, worker_command, shutdown=shutdown))
        await wait_all_tasks_blocked()
        shutdown.set()
    assert mock_clock.current_time() == 0


def test_a_worker_whose_parent_is_gone_ends_quietly() -> None:
    """It is sent no assignment, and has nothing to say."""
    command = (sys.executable, "-m", "streamer", "worker")
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


async def test_another_server_does_not_get_a_part_of_the_clients(redis_url: str) -> None:
    """The workers' port is in use for other servers."""
    async with running_workers(redis_url) as workers:
        port = urlsplit(workers.supervisor.websocket_url).port
        with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="in use"), allow_unwrapped=True):
            async with running_workers(redis_url, port=port):
                pass


async def test_all_addresses_of_the_host_are_served(redis_url: str) -> None:
    """With a given port, the workers listen on all addresses of the host."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with running_workers(redis_url, host="localhost", port=port) as workers:
        assert workers.supervisor.websocket_url == f"ws://localhost:{port}/v1/ws"
        async with workers.connected() as client:
            await client.ping_pong()


def test_an_assignment_travels_whole(tmp_path: Path) -> None:
    """Paths, lists and defaults are decoded to the same settings."""
    pem = tmp_path / "pem"
    settings = Settings(
        tls_certificate=pem, tls_key=pem, allowed_origins=("https://a.example",), workers=3
    )
    assignment = Assignment(2, settings)
    assert Assignment.from_json(assignment.to_json()) == assignment


def worker(script: str, shutdown: trio.Event, directory: Path) -> Worker:
    """A worker whose process is a script."""
    command = (sys.executable, "-c", script)
    return Worker(Assignment(1, Settings()), command, directory / "socket", shutdown)


async def test_what_never_served_is_not_replaced(tmp_path: Path) -> None:
    """The error has the exit code of the process."""
    for script, exit_code in (("raise SystemExit(3)", 3), ("input(); raise SystemExit(4)", 4)):
        with pytest.raises(WorkerFailedError) as failed:
            await worker(script, trio.Event(), tmp_path).run()
        assert failed.value.exit_code == exit_code


async def test_workers_that_die_soon_are_replaced_ever_later(
    tmp_path: Path, mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    """The delay doubles up to 30 s."""
    dying = worker("print('up')", trio.Event(), tmp_path)

    async def died(times: int) -> None:
        await eventually(lambda: dying.restarts == times)

    async with real_deadline():
        nursery.start_soon(dying.run)
        for restarts, delay_seconds in enumerate((0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0), 1):
            await died(restarts)
            await wait_all_tasks_blocked()
            mock_clock.jump(0.9 * delay_seconds)
            await wait_all_tasks_blocked()
            assert dying.pid is None
            mock_clock.jump(0.2 * delay_seconds)
    nursery.cancel_scope.cancel()


async def test_who_served_for_long_is_replaced_soon(
    tmp_path: Path, mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    """After a minute of serving, the delay is the shortest again."""
    long_lived = worker("print('up', flush=True); input(); input()", trio.Event(), tmp_path)

    async def die_and_come_back(delay_seconds: float) -> None:
        await eventually(lambda: long_lived.pid is not None)
        restarts = long_lived.restarts
        assert long_lived.pid is not None
        os.kill(long_lived.pid, signal.SIGKILL)
        await eventually(lambda: long_lived.restarts > restarts)
        await wait_all_tasks_blocked()
        mock_clock.jump(delay_seconds)
        await eventually(lambda: long_lived.pid is not None)

    async with real_deadline():
        nursery.start_soon(long_lived.run)
        await long_lived.listening.wait()
        await die_and_come_back(0.5)
        await die_and_come_back(1.0)
        mock_clock.jump(61.0)
        await die_and_come_back(0.5)
    nursery.cancel_scope.cancel()


async def test_a_shutdown_does_not_wait_for_a_replacement(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    """A worker that is about to be replaced is not started again."""
    shutdown = trio.Event()
    dying = worker("print('up')", shutdown, tmp_path)
    async with real_deadline(), trio.open_nursery() as nursery:
        nursery.start_soon(dying.run)
        await eventually(lambda: dying.restarts == 1)
        shutdown.set()
    assert dying.pid is None
