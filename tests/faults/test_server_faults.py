"""Servers end, in good order and not, and another takes their clients up."""

import signal
from collections.abc import Callable
from pathlib import Path

from streamer.broker.keys import session_key
from tests.faults.conversation import converse
from tests.faults.processes import ServerProcess
from tests.faults.world import (
    PLAIN,
    POSITIONED,
    RATE,
    check_gap_announced,
    check_nothing_lost,
    open_world,
    server_arguments,
    witnesses,
)
from tests.helpers.proxy import Proxy
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import eventually


async def test_clients_move_to_another_server_when_theirs_is_stopped(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """Nothing that has a position is lost, and the first server comes to its end."""
    redis = own_redis_server()
    network = Proxy()
    second = ServerProcess(tmp_path, *server_arguments(redis.port))
    async with network.run(), second, open_world(redis, tmp_path, network=network) as world:
        await world.flow()
        network.server_port = second.port
        world.server.signal(signal.SIGTERM)
        await world.flow()
        assert await world.server.wait() == 0
        await world.settle()
        assert (await second.statistics())["active_connections"] == len(world.clients)
    check_nothing_lost(world)
    check_gap_announced(world, PLAIN)


async def test_clients_come_back_to_a_server_that_was_killed(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """It knows them again from Redis, and nothing that has a position is lost."""
    redis = own_redis_server()
    async with open_world(redis, tmp_path) as world:
        await world.flow()
        await world.server.kill()
        await world.server.start()
        await world.flow()
        await world.settle()
    check_nothing_lost(world)
    check_gap_announced(world, PLAIN)


async def test_session_outlives_its_server_without_help_from_the_client(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """The URL's session_id alone brings every subscription and all that was missed."""
    redis = own_redis_server()
    async with open_world(redis, tmp_path) as world:
        await world.flow(1)
        async with converse(world.server.url) as client:
            session_id = client.session_id
            subscribed = await client.subscribe(POSITIONED[0])
            began = subscribed["positions"][POSITIONED[0].partition(":")[2]]
            with redis.connect() as operator:
                await eventually(lambda: operator.exists(session_key(session_id)))
        await world.server.kill()
        await world.server.start()
        async with converse(f"{world.server.url}?session_id={session_id}") as client:
            answer = await client.receive_type("reconnected")
            assert answer["restored_subscriptions"] == {"stock": ["positioned0"]}
            assert answer["recovered"] is True
            at = answer["positions"][POSITIONED[0]]
            # It may have confirmed more than its subscription began with.
            assert at["epoch"] == began["epoch"]
            assert at["sequence"] >= began["sequence"]
            assert answer["missed_messages_count"] > 0
            first = at["sequence"] + 1
            sequences = [(await client.data())["sequence"] for _ in range(round(5 * RATE))]
            assert sequences == list(range(first, first + len(sequences)))
        await world.settle()


async def test_a_thousand_clients_come_back_at_once(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """The storm is survived, and every one of them is restored where it was."""
    redis = own_redis_server()
    quiet = {"stock:quiet": 2.0}
    crowd = witnesses() + witnesses(950, topics=[*quiet])
    async with open_world(redis, tmp_path, clients=crowd, more_topics=quiet) as world:
        await world.flow()
        await world.server.kill()
        await world.server.start()
        await world.flow()
        await world.settle()
        assert (await world.server.statistics())["active_connections"] == len(crowd)
    check_nothing_lost(world, (*POSITIONED, *quiet))
    check_gap_announced(world, PLAIN)
