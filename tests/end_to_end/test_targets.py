"""Real names, from a producer through a real Redis to a client and back after a cut."""

from __future__ import annotations

from operator import itemgetter

import pytest
import redis as redis_py

from streamer.broker.keys import sharded_channel
from streamer.client import PriceUpdate, Topic, open_client
from streamer.publisher import open_publisher
from tests.helpers.clients import connected
from tests.helpers.publications import numbered_publication
from tests.helpers.publications import price as price_text
from tests.helpers.redis_topology import ClusterService
from tests.helpers.server import running_server
from tests.helpers.targets import SAMPLES


async def test_every_target_works_from_end_to_end(any_redis_url: str) -> None:
    """Its prices arrive under its name, on its own topic and on a sector's of that name."""
    stocks = [Topic("stock", target) for target in SAMPLES]
    sectors = [Topic("sector", target) for target in SAMPLES]
    async with (
        running_server(redis=any_redis_url) as server,
        open_publisher(any_redis_url) as publisher,
        open_client(server.websocket_url) as client,
    ):
        await client.subscribe([*stocks, *sectors], snapshot=False)
        for number, target in enumerate(SAMPLES):
            channel, text = numbered_publication(number, target)
            await publisher.publish_many([(channel, text), (f"sector:{target}:price", text)])
        received = [await client.receive() for _ in range(2 * len(SAMPLES))]
        assert all(isinstance(message, PriceUpdate) for message in received)
        for topics in (stocks, sectors):
            arrived = [
                (message.topic, message.stock_code, int(message.volume))
                for message in received
                if isinstance(message, PriceUpdate) and message.topic in topics
            ]
            # Topics of a Cluster come from several masters, which promise no order among them.
            arrived.sort(key=itemgetter(2))
            assert arrived == [(topic, topic.target, n) for n, topic in enumerate(topics)]
        assert client.account().violations == 0


@pytest.mark.parametrize("target", SAMPLES)
async def test_every_target_is_restored_with_what_was_missed(redis_url: str, target: str) -> None:
    """As a member of `since`, of `positions` and of a session record."""
    topic = f"stock:{target}"
    async with (
        running_server(redis=redis_url) as server,
        open_publisher(redis_url) as publisher,
    ):
        async with connected(server) as client:
            answer = await client.subscribe(topic)
            assert answer["targets"] == [target]
            position = answer["positions"][target]
        await publisher.publish(*numbered_publication(1, target))
        async with connected(server) as other:
            restored = await other.request(
                type="reconnect", session_id=client.session_id, positions={topic: position}
            )
            assert restored["restored_subscriptions"] == {"stock": [target]}
            assert list(restored["positions"]) == [topic]
            assert (await other.data())["stock_code"] == target
        async with connected(server) as third:
            await third.subscribe(topic, since={target: position})
            assert (await third.data())["volume"] == 1


async def test_any_program_can_publish_under_any_name(
    calm_cluster: ClusterService, redis_url: str, redis: redis_py.Redis
) -> None:
    """With PUBLISH to the channel, and in a Cluster with SPUBLISH to the name with the hash tag."""
    target = "BTC/USDT:USDT"
    channel = f"stock:{target}:price"
    text = price_text(target, 1)
    async with running_server(redis=redis_url) as server, connected(server) as client:
        await client.subscribe(f"stock:{target}")
        redis.publish(channel, text)
        assert (await client.data())["stock_code"] == target
    async with running_server(redis=calm_cluster.url) as server, connected(server) as client:
        await client.subscribe(f"stock:{target}")
        with calm_cluster.masters[calm_cluster.index(channel)].connect() as node:
            node.execute_command("SPUBLISH", sharded_channel(channel), text)
        assert (await client.data())["stock_code"] == target
