"""Redis fails in every way that one machine can show."""

from collections.abc import Callable
from pathlib import Path

import redis as redis_py
import trio

from tests.faults.world import (
    PLAIN,
    TOPICS,
    World,
    check_gap_announced,
    check_nothing_lost,
    open_world,
)
from tests.helpers.proxy import Proxy
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import SLOW_POLL_SECONDS, STOPPED_REDIS_SECONDS

DURABLE = {"appendonly": "yes", "appendfsync": "always"}
"""Acknowledged writes are on the disk. With the default, everysec, the last second may not be."""


async def wait_lost(world: World) -> None:
    """Until the server has given its connection to Redis up."""
    await world.server.wait_for(lambda statistics: not statistics["redis"]["connected"])


async def test_redis_killed_and_restarted_with_its_data(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """Nothing that has a position is lost; what is published without one has a gap."""
    redis = own_redis_server(**DURABLE)
    async with open_world(redis, tmp_path) as world:
        await world.flow()
        await trio.to_thread.run_sync(redis.kill)
        await wait_lost(world)
        await trio.to_thread.run_sync(redis.start)
        await world.flow()
        await world.settle()
    check_nothing_lost(world)
    check_gap_announced(world, PLAIN)


async def test_redis_restarted_empty(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """The gap is announced on every topic, in a new epoch, and the flow continues."""
    redis = own_redis_server()
    async with open_world(redis, tmp_path) as world:
        await world.flow()
        await trio.to_thread.run_sync(redis.kill)
        await wait_lost(world)
        await trio.to_thread.run_sync(redis.start)
        await world.flow()
        await world.settle()
    check_gap_announced(world, TOPICS)


async def test_redis_stopped_for_ten_seconds(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """The probe is patient enough: it gives nothing up, and then nothing at all is lost."""
    redis = own_redis_server()
    async with open_world(redis, tmp_path) as world:
        await world.flow()
        redis.pause()
        await trio.sleep(STOPPED_REDIS_SECONDS)
        redis.resume()
        await world.flow()
        await world.settle()
        assert (await world.server.statistics())["redis"]["reconnects"] == 0
    check_nothing_lost(world)
    assert not world.totals(PLAIN).gaps


async def test_redis_stopped_for_longer_than_the_probe_allows(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """The connection is closed and reopened, and the history fills the hole."""
    redis = own_redis_server()
    impatient = ("--probe-interval-seconds", "1", "--probe-timeout-seconds", "4")
    async with open_world(redis, tmp_path, *impatient) as world:
        await world.flow()
        redis.pause()
        await wait_lost(world)
        redis.resume()
        await world.flow()
        await world.settle()
    check_nothing_lost(world)
    check_gap_announced(world, PLAIN)


def server_connections(operator: redis_py.Redis) -> list[str]:
    """The ids of the connections that the server under test has to Redis."""
    return [
        connection["id"]
        for connection in operator.client_list()
        if connection["name"].startswith("streamer-") and "publisher" not in connection["name"]
    ]


async def test_connections_of_the_server_cut_again_and_again(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """Twenty cuts, most of them before or in the middle of the recovery from the last one."""
    redis = own_redis_server()
    async with open_world(redis, tmp_path) as world:
        await world.flow()
        with redis.connect() as operator:
            for cut in range(20):
                if cut in {5, 10, 15}:
                    await world.flow(0.5)
                while not (connections := server_connections(operator)):  # noqa: ASYNC110
                    await trio.sleep(SLOW_POLL_SECONDS)
                for connection in connections:
                    operator.client_kill_filter(_id=connection)
        await world.flow()
        await world.settle()
    check_nothing_lost(world)
    check_gap_announced(world, PLAIN)


async def test_connection_that_is_up_but_deaf(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """The probe finds it out, and what was swallowed comes from the history."""
    redis = own_redis_server()
    impatient = ("--probe-interval-seconds", "1", "--probe-timeout-seconds", "4")
    proxy = Proxy(redis.port)
    async with (
        proxy.run(),
        open_world(redis, tmp_path, *impatient, redis_port=proxy.port) as world,
    ):
        await world.flow()
        proxy.deafen()
        await world.server.wait_for(lambda statistics: statistics["redis"]["reconnects"] > 0)
        await world.flow()
        await world.settle()
    check_nothing_lost(world)
    check_gap_announced(world, PLAIN)
