"""streamer.js has the faults of the Python client, with 50 clients: every account adds up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tests.auth.tokens import secret_file, signed
from tests.faults.javascript import Crowd, Runtime, in_node, in_page
from tests.faults.processes import ServerProcess
from tests.faults.world import (
    PLAIN,
    POSITIONED,
    TOPICS,
    check_gap_announced,
    check_nothing_lost,
    open_world,
    server_arguments,
)
from tests.helpers.proxy import Proxy
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import STOPPED_REDIS_SECONDS
from tests.web.browser import running_chromium

FAULTS_IN_CHROMIUM = "FAULTS_IN_CHROMIUM"
"""Set by `nox -s browser`, which runs each fault in Chromium, too."""

TOKEN_SECONDS = 15
"""Longer than the clients need to connect, as a rule: else they begin with an expired token."""


@pytest.fixture(params=["node", "chromium"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """Where the clients run."""
    if request.param == "node":
        yield in_node
    elif FAULTS_IN_CHROMIUM not in os.environ:
        pytest.skip("`nox -s browser` runs the faults in Chromium")
    else:
        with running_chromium() as chromium:
            yield in_page(chromium)


async def test_a_server_that_is_killed(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path, runtime: Runtime
) -> None:
    """The clients come back to the next one, and have each message or a gap before it."""
    redis = own_redis_server()
    async with open_world(redis, tmp_path, clients=Crowd(runtime).clients) as world:
        await world.flow()
        await world.server.kill()
        await world.server.start()
        await world.flow()
        await world.settle()


async def test_a_server_that_hands_its_clients_over(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path, runtime: Runtime
) -> None:
    """They move to another instance when theirs is stopped."""
    redis = own_redis_server()
    network = Proxy()
    second = ServerProcess(tmp_path, *server_arguments(redis.port))
    clients = Crowd(runtime).clients
    async with (
        network.run(),
        second,
        open_world(redis, tmp_path, clients=clients, network=network) as world,
    ):
        await world.flow()
        network.server_port = second.port
        world.server.signal(signal.SIGTERM)
        await world.flow()
        assert await world.server.wait() == 0
        await world.settle()
        assert (await second.statistics())["active_connections"] == len(clients)


async def test_connections_that_break(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path, runtime: Runtime
) -> None:
    """Some are reset and the others are not: those that come back have missed nothing."""
    redis = own_redis_server()
    network = Proxy()
    clients = Crowd(runtime).clients
    async with (
        network.run(),
        open_world(redis, tmp_path, clients=clients, network=network) as world,
    ):
        await world.flow()
        network.break_off(25)
        await world.flow()
        await world.settle()
        assert sum(client.report["connections"] > 1 for client in clients) == 25
    check_nothing_lost(world, TOPICS)


async def test_clients_that_stall(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path, runtime: Runtime
) -> None:
    """Nothing is read for a while: the messages are merged, or all sent, and none is lost."""
    redis = own_redis_server()
    crowd = Crowd(runtime)
    async with open_world(redis, tmp_path, clients=crowd.clients) as world:
        await world.flow()
        crowd.block(STOPPED_REDIS_SECONDS)
        await world.flow(STOPPED_REDIS_SECONDS)
        await world.settle()
    check_nothing_lost(world, TOPICS)


async def test_tokens_that_expire(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path, runtime: Runtime
) -> None:
    """Whoever does not renew its token is closed with 4001, comes back, and has missed nothing."""
    redis = own_redis_server()
    crowd = Crowd(runtime, tokens=[signed(exp=int(time.time()) + TOKEN_SECONDS), signed()])
    identity = (
        *("--auth", "required", "--auth-secret-file", str(secret_file(tmp_path))),
        *("--auth-leeway-seconds", "0", "--auth-grace-seconds", "1"),
    )
    async with open_world(redis, tmp_path, *identity, clients=crowd.clients) as world:
        await world.flow()
        await world.server.wait_for(
            lambda statistics: statistics["closes"].get("4001", 0) == len(crowd.clients)
        )
        await world.flow()
        await world.settle()
    check_nothing_lost(world, TOPICS)


async def test_redis_restarted_with_its_data(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path, runtime: Runtime
) -> None:
    """No publication with a position is lost; all clients are given the gap of the others."""
    redis = own_redis_server(appendonly="yes", appendfsync="always")
    async with open_world(redis, tmp_path, clients=Crowd(runtime).clients) as world:
        await world.flow()
        await trio.to_thread.run_sync(redis.kill)
        await world.server.wait_for(lambda statistics: not statistics["redis"]["connected"])
        await trio.to_thread.run_sync(redis.start)
        await world.flow()
        await world.settle()
    check_nothing_lost(world, POSITIONED)
    check_gap_announced(world, PLAIN)
