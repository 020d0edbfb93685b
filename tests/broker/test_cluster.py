"""A Redis Cluster: every topic in its slot, and followed when the slot or its master moves.

Covers streamer.broker.cluster_reader.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Final

import attrs
import pytest
import trio

from streamer.broker.cluster import discover
from streamer.broker.cluster_reader import ClusterReader
from streamer.broker.connect import RedisConnectionError, check_url, open_connection
from streamer.broker.keys import history_key, position_key
from streamer.broker.requests import RedisClient
from streamer.client import Client, Event, Gap, PriceUpdate, open_client
from streamer.protocol.messages import GapReason, Mode
from streamer.publisher import Publisher, open_publisher
from streamer.server import Server
from tests.broker.recorder import Recorder, running
from tests.helpers.publications import numbered_publication
from tests.helpers.redis_server import RedisServer
from tests.helpers.redis_topology import ClusterNode, ClusterService
from tests.helpers.server import running_server
from tests.helpers.timing import DEADLINE_SECONDS, eventually

CODES: Final = [f"{number:06}" for number in range(12)]
"""Codes of stocks whose slots all masters share."""


@pytest.fixture(scope="module")
def calm_cluster() -> Iterator[ClusterService]:
    """A Cluster that no test breaks."""
    with ClusterService(calm=True) as service:
        yield service


@pytest.fixture
def cluster() -> Iterator[ClusterService]:
    """A Cluster for one test to break."""
    with ClusterService() as service:
        yield service


@attrs.frozen
class World:
    """A server on a Cluster, a publisher, and a client that verifies its stream."""

    server: Server
    publisher: Publisher
    client: Client

    async def publish(self, numbers: range) -> None:
        """Publish prices with these volumes of each stock, all acknowledged."""
        await self.publisher.publish_many(
            numbered_publication(n, code) for n in numbers for code in CODES
        )

    async def receive_until(self, number: int) -> dict[str, list[Event]]:
        """Return the events by stock that the client receives up to this volume of each."""
        events: dict[str, list[Event]] = {code: [] for code in CODES}
        waiting = set(CODES)
        while waiting:
            event = await self.client.receive()
            assert isinstance(event, PriceUpdate | Gap), event
            code = event.target if isinstance(event, Gap) else event.stock_code
            events[code].append(event)
            if isinstance(event, PriceUpdate) and event.volume == number:
                waiting.remove(code)
        return events


@asynccontextmanager
async def world(
    service: ClusterService, *, probe_interval_seconds: float = 0.2
) -> AsyncIterator[World]:
    """A server on `service`, a client that wants everything, and a publisher."""
    async with (
        running_server(
            redis=service.url,
            probe_interval_seconds=probe_interval_seconds,
            probe_timeout_seconds=3.0,
        ) as server,
        open_publisher(service.url) as publisher,
        open_client(server.websocket_url) as client,
    ):
        await client.subscribe([f"stock:{code}" for code in CODES], mode=Mode.ALL, snapshot=False)
        yield World(server, publisher, client)
        assert client.account().violations == 0, client.account()


def volumes(events: list[Event]) -> list[int]:
    """Return the volumes of the prices among events."""
    return [int(event.volume) for event in events if isinstance(event, PriceUpdate)]


def gaps(events: list[Event]) -> list[GapReason]:
    """Return the reasons of the gaps among events."""
    return [event.reason for event in events if isinstance(event, Gap)]


async def test_what_is_published_in_every_part_arrives(calm_cluster: ClusterService) -> None:
    """Topics of all masters reach one client, each in order, and Redis keeps them by their slot."""
    assert {calm_cluster.index(f"stock:{code}:price") for code in CODES} == {0, 1, 2}
    async with world(calm_cluster) as w:
        await w.publish(range(1, 51))
        received = await w.receive_until(50)
        assert all(volumes(events) == [*range(1, 51)] for events in received.values())
        statistics = w.server.statistics().redis
        assert statistics is not None
        assert statistics.channels_confirmed == statistics.channels_wanted == 2 * len(CODES)
        assert w.server.readiness().ready
    for code in CODES:
        owner = calm_cluster.masters[calm_cluster.index(f"stock:{code}:price")]
        with owner.connect() as redis:
            assert redis.exists(position_key(f"stock:{code}"), history_key(f"stock:{code}")) == 2


async def test_any_program_can_publish_to_a_sharded_channel(
    calm_cluster: ClusterService,
) -> None:
    """SPUBLISH to the channel with its hash tag reaches clients."""
    channel, text = numbered_publication(7, "777777")
    async with running_server(redis=calm_cluster.url) as server:
        with calm_cluster.masters[calm_cluster.index(channel)].connect() as redis:
            async with open_client(server.websocket_url) as client:
                await client.subscribe(["stock:777777"], snapshot=False)
                assert redis.execute_command("SPUBLISH", "{stock:777777}:price", text) == 1
                update = await client.receive()
                assert isinstance(update, PriceUpdate)
                assert update.volume == 7


async def test_subscriptions_end_in_the_cluster_too(calm_cluster: ClusterService) -> None:
    """A released channel is unsubscribed at the master where it was subscribed."""
    async with running_server(redis=calm_cluster.url, linger_seconds=0) as server:
        owner = calm_cluster.masters[calm_cluster.index("stock:555555:price")]
        with owner.connect() as redis:
            async with open_client(server.websocket_url) as client:
                await client.subscribe(["stock:555555"])
                names = redis.execute_command("PUBSUB SHARDCHANNELS", "{stock:*")
                assert sorted(names) == [b"{stock:555555}:orderbook", b"{stock:555555}:price"]
            await eventually(lambda: not redis.execute_command("PUBSUB SHARDCHANNELS", "{stock:*"))


async def test_a_failover_loses_nothing_that_was_replicated(cluster: ClusterService) -> None:
    """Topics of the master that fails and of the others continue without a gap."""
    async with world(cluster) as w:
        await w.publish(range(1, 51))
        await trio.to_thread.run_sync(cluster.replicate, 0)
        cluster.masters[0].kill()
        # Held while a part of the slots has no master.
        await w.publish(range(51, 101))
        received = await w.receive_until(100)
        assert all(volumes(events) == [*range(1, 101)] for events in received.values())
        assert not w.client.account().gaps


async def test_a_failover_that_loses_writes_is_an_announced_gap_of_its_topics(
    cluster: ClusterService,
) -> None:
    """A new epoch begins for those that the new master does not know, and for no others."""
    async with world(cluster) as w:
        await w.publish(range(1, 51))
        await trio.to_thread.run_sync(cluster.replicate, 1)
        cluster.sever(1)
        await w.publish(range(51, 61))
        await w.receive_until(60)
        cluster.masters[1].kill()
        cluster.replicas[1].resume()
        await w.publish(range(61, 101))
        received = await w.receive_until(100)
        for code, events in received.items():
            concerned = cluster.index(f"stock:{code}:price") == 1
            assert gaps(events) == [GapReason.SOURCE_RECONNECTED] * concerned
            if not concerned:
                assert volumes(events) == list(range(61, 101))


async def test_a_change_that_concerns_no_channel_is_noticed_too(cluster: ClusterService) -> None:
    """Redis does not notify a reader of a slot that moves while it has no channel in it."""
    recorder = Recorder()
    source = ClusterReader(cluster.url, recorder, probe_interval_seconds=0.05)
    source.subscribe(["stock:a:price", "stock:b:price"])
    source.unsubscribe(["stock:b:price"])
    async with running(source) as connected:
        assert connected
        assert source.statistics().channels_wanted == 1
        await recorder.connected()
        await trio.to_thread.run_sync(cluster.move, "market:KOSPI:status", 1)
        assert await recorder.lost() == "the Cluster has changed"
        source.subscribe(["market:KOSPI:status"])
        with cluster.masters[1].connect() as redis:
            # Again where the third master has not heard of it yet when it is asked.
            while not redis.execute_command("SPUBLISH", "{market:KOSPI}:status", "open"):
                await source.wait_subscribed(["market:KOSPI:status"])
        while (event := await recorder.next_event())[0] != "message":
            pass
        assert event == ("message", b"market:KOSPI:status", b"open")


async def test_a_cluster_that_takes_no_more_clients_is_still_read(cluster: ClusterService) -> None:
    """The subscriptions are whole, and would be refused if they were made again."""
    channel = "stock:000000:price"
    recorder = Recorder()
    reader = ClusterReader(cluster.url, recorder, probe_interval_seconds=0.02)
    reader.subscribe([channel])
    with cluster.masters[cluster.index(channel)].connect() as redis:
        async with running(reader):
            await recorder.connected()
            await eventually(lambda: reader.ready)
            redis.ping()
            for master in cluster.masters:
                with master.connect() as client:
                    client.config_set("maxclients", 1)
            await eventually(lambda: "no server knows" in (reader.last_error or ""))
            await eventually(lambda: not reader.ready)
            redis.execute_command("SPUBLISH", "{stock:000000}:price", "x")
            assert await recorder.next_event() == ("message", channel.encode(), b"x")
            assert reader.connected
            redis.config_set("maxclients", 100)


async def test_a_slot_that_moves_is_followed(cluster: ClusterService) -> None:
    """Resharding under way costs a reconnect, and no publication."""
    channel = f"stock:{CODES[0]}:price"
    target = (cluster.index(channel) + 1) % 3
    # Redis itself reports the move: no probe is due during this test.
    async with world(cluster, probe_interval_seconds=600) as w:
        await w.publish(range(1, 51))
        await w.receive_until(50)
        await trio.to_thread.run_sync(cluster.move, channel, target)
        await w.publish(range(51, 101))
        received = await w.receive_until(100)
        assert all(volumes(events) == [*range(51, 101)] for events in received.values())
        assert not w.client.account().gaps
        statistics = w.server.statistics().redis
        assert statistics is not None
        assert statistics.reconnects >= 1


async def test_questions_go_to_the_master_that_can_answer_them(
    calm_cluster: ClusterService,
) -> None:
    """Replies come in the order of the commands, and a script is known wherever it is used."""
    commands = RedisClient(calm_cluster.url, client_name="streamer-test")
    keys = [f"k{number}" for number in range(300)]
    script = "return redis.call('GET', KEYS[1])"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(commands.run)
        with trio.fail_after(DEADLINE_SECONDS):
            assert set(await commands.execute_many([("SET", key, key) for key in keys])) == {b"OK"}
            wanted = [key.encode() for key in keys]
            assert await commands.execute_many([("GET", key) for key in keys]) == wanted
            (digest,) = await commands.execute_many([("SCRIPT", "LOAD", script)])
            asked = await commands.execute_many([("EVALSHA", digest, 1, key) for key in keys])
            assert asked == wanted
        nursery.cancel_scope.cancel()


async def test_a_server_that_is_away_does_not_hide_the_others(
    calm_cluster: ClusterService,
) -> None:
    """One reachable server in the URL is enough."""
    url = calm_cluster.url.replace("//", "//127.0.0.1:1,")
    with trio.fail_after(DEADLINE_SECONDS):
        for _ in range(5):  # they are asked in random order
            topology = await discover(url, timeout_seconds=5, client_name="streamer-test")
            assert len(topology.masters) == 3


async def test_a_forbidden_channel_is_refused_alone(calm_cluster: ClusterService) -> None:
    """Channels of all masters that the user may not read are refused; the others are read."""
    rules = [
        "on",
        "nopass",
        "resetkeys",
        "resetchannels",
        "&streamer:probe:*",
        "&{stock:*",
        "+@all",
    ]
    for master in calm_cluster.masters:
        with master.connect() as redis:
            redis.execute_command("ACL", "SETUSER", "reader", *rules)
    recorder = Recorder()
    url = calm_cluster.url.replace("//", "//reader:any@")
    reader = ClusterReader(url, recorder, probe_interval_seconds=0.02)
    permitted = [f"stock:{code}:price" for code in CODES]
    forbidden = [f"sector:{code}:price" for code in CODES]
    reader.subscribe([*permitted, *forbidden])
    async with running(reader) as connected:
        assert connected
        events = [await recorder.next_event() for _ in forbidden]
        assert {event[:2] for event in events} == {("refused", name.encode()) for name in forbidden}
        assert await recorder.next_event() == ("connected",)
        assert all(map(reader.is_refused, forbidden))
        assert not any(map(reader.is_refused, permitted))
        for channel in permitted:
            name = f"{{{channel.removesuffix(':price')}}}:price"
            with calm_cluster.masters[calm_cluster.index(channel)].connect() as redis:
                assert redis.execute_command("SPUBLISH", name, "x") == 1
            assert await recorder.next_event() == ("message", channel.encode(), b"x")
        reader.unsubscribe(forbidden[1:])
        for master in calm_cluster.masters:
            with master.connect() as redis:
                redis.execute_command("ACL", "SETUSER", "reader", "&{sector:*")
        assert await recorder.next_event() == ("accepted", forbidden[0].encode())
        assert reader.statistics().reconnects == 0


async def refusal(url: str) -> str:
    """Return the reason why a Cluster is not connected to."""
    with trio.fail_after(DEADLINE_SECONDS), pytest.raises(RedisConnectionError) as caught:
        async with open_connection(url, timeout_seconds=5, client_name="streamer-test"):
            raise AssertionError
    return str(caught.value)


async def test_a_cluster_without_the_host_of_a_master_is_refused(cluster: ClusterService) -> None:
    """Redis puts ? there; a URL with that is one of this machine."""
    for master in cluster.masters:
        with master.connect() as redis:
            redis.config_set("cluster-preferred-endpoint-type", "hostname")
    assert "has none for a master" in await refusal(cluster.url)
    for master in cluster.masters:
        with master.connect() as redis:
            redis.config_set("cluster-announce-hostname", "localhost")
    with trio.fail_after(DEADLINE_SECONDS):
        while True:
            with contextlib.suppress(RedisConnectionError):
                topology = await discover(cluster.url, timeout_seconds=5, client_name="test")
                break
    assert all("//localhost:" in master for master in topology.masters)


async def test_what_is_no_cluster_is_refused(own_redis_server: Callable[..., RedisServer]) -> None:
    """A single server, a Cluster without slots and an unreachable one each give their reason."""
    single = own_redis_server()
    assert "cluster support disabled" in await refusal(f"redis+cluster://127.0.0.1:{single.port}")
    with ClusterNode(node_timeout_ms=1000) as node:
        assert "not working" in await refusal(f"redis+cluster://127.0.0.1:{node.port}")
        with node.connect() as redis:
            redis.execute_command("CONFIG SET cluster-require-full-coverage no")
            redis.execute_command("CLUSTER ADDSLOTSRANGE 0 100")
            await eventually(lambda: redis.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        assert "not cover" in await refusal(f"redis+cluster://127.0.0.1:{node.port}")
    assert "refused" in await refusal("redis+cluster://127.0.0.1:1")


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://",
        "redis+cluster://host/1",
        "redis+cluster://host:port",
        "redis+cluster://:pass#word@host",
    ],
)
def test_a_bad_url_is_refused_without_repeating_it(url: str) -> None:
    """The error about a URL does not contain its password."""
    with pytest.raises(ValueError, match="not a Redis URL") as caught:
        check_url(url)
    assert "pass" not in str(caught.value).replace("USER:PASSWORD", "")
