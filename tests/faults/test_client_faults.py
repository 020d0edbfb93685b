"""Clients stall, vanish, and stay away for too long."""

from collections.abc import Callable
from pathlib import Path

from streamer.broker.keys import history_key
from streamer.client import Mode
from tests.faults.conversation import converse
from tests.faults.world import (
    POSITIONED,
    TOPICS,
    check_nothing_lost,
    open_world,
    witnesses,
)
from tests.helpers.proxy import Proxy
from tests.helpers.redis_server import RedisServer


async def test_a_third_of_the_clients_stalls(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """In mode latest they get the newest, in mode all they reconnect for the rest."""
    redis = own_redis_server()
    # A few hundred messages are nothing to a socket's buffers: these clients hold more topics.
    stalling = witnesses(15, topics_each=5, buffer_messages=100)
    others = witnesses(35)

    async with open_world(
        redis, tmp_path, "--max-outbound-bytes", "65536", clients=stalling + others
    ) as world:
        await world.flow()
        for client in stalling:
            client.stall()
        await world.flow(clients=others)
        for client in stalling:
            client.resume()
        await world.flow()
        await world.settle()
    check_nothing_lost(world, TOPICS)
    accounts = {client: client.ledger.topics.values() for client in stalling}
    assert any(account.merged for accounts in accounts.values() for account in accounts)
    assert any(c.client.statistics().connections > 1 for c in stalling if c.mode is Mode.ALL)


async def test_clients_vanish_without_a_fin(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """After a reset or silence, nothing of them remains, and they reconnect without loss."""
    redis = own_redis_server()
    network = Proxy()
    heartbeat = ("--heartbeat-interval-seconds", "2", "--heartbeat-timeout-seconds", "8")
    clients = witnesses(pong_timeout_seconds=8)
    async with (
        network.run(),
        open_world(redis, tmp_path, *heartbeat, clients=clients, network=network) as world,
    ):
        await world.flow()
        network.break_off(10)
        network.silence(10)
        await world.flow()
        await world.server.wait_for(
            lambda statistics: statistics["active_connections"] == len(world.clients)
        )
        await world.settle()
        connections = [client.client.statistics().connections for client in world.clients]
        assert sum(count > 1 for count in connections) >= 20
    check_nothing_lost(world, TOPICS)


async def test_history_trimmed_while_a_client_is_away(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """The answer says that it has not recovered; a gap with the position and the newest follow."""
    redis = own_redis_server()
    async with open_world(redis, tmp_path, "--history-length", "100") as world:
        await world.flow(1)
        async with converse(world.server.url) as client:
            session_id = client.session_id
            subscribed = await client.subscribe(POSITIONED[0], snapshot=False)
            epoch = subscribed["positions"][POSITIONED[0].partition(":")[2]]["epoch"]
            held = await client.data()
        await world.flow()
        with redis.connect() as operator:
            operator.xtrim(history_key(POSITIONED[0]), maxlen=10, approximate=False)
        async with converse(world.server.url) as client:
            at = {"epoch": epoch, "sequence": held["sequence"]}
            answer = await client.request(
                type="reconnect", session_id=session_id, positions={POSITIONED[0]: at}
            )
            assert answer["type"] == "reconnected"
            assert answer["recovered"] is False
            gap = await client.receive_type("gap")
            assert gap["reason"] == "history_expired"
            assert gap["epoch"] == epoch
            assert answer["positions"][POSITIONED[0]]["sequence"] == gap["sequence"]
            snapshot = await client.data()
            assert snapshot["snapshot"] is True
            assert snapshot["sequence"] == gap["sequence"] > at["sequence"]
            assert (await client.data())["sequence"] == gap["sequence"] + 1
        await world.settle()
