"""The master that Sentinel names: found, refused when it is none, and followed when it fails."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

from streamer.broker.connection import (
    Connection,
    RedisConnectionError,
    check_server_url,
    open_server,
)
from streamer.client import Client, Event, Gap, PriceUpdate, open_client
from streamer.protocol.messages import GapReason, Mode
from streamer.publisher import Publisher, open_publisher
from tests.helpers.publications import numbered_publication
from tests.helpers.redis_server import RedisServer
from tests.helpers.redis_topology import MASTER_NAME, Sentinel, SentinelService
from tests.helpers.server import running_server
from tests.helpers.timing import DEADLINE_SECONDS


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """A connection within the deadline of a test."""
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_server(url, timeout_seconds=5, client_name="streamer-test") as connection:
            yield connection


@pytest.fixture
def sentinel_of() -> Iterator[Callable[..., Sentinel]]:
    """Return a factory of running sentinels."""
    started: list[Sentinel] = []

    def start(master: RedisServer, **options: Any) -> Sentinel:
        started.append(Sentinel(master.port, **options))
        started[-1].start()
        return started[-1]

    yield start
    for sentinel in started:
        sentinel.close()


async def test_the_master_is_asked_for_and_reached_with_its_own_credentials(
    own_redis_server: Callable[..., RedisServer], sentinel_of: Callable[..., Sentinel]
) -> None:
    """The URL's user, password and database are the master's; the sentinels have a password too."""
    master = own_redis_server(user="alice on >s#cret ~* &* +@all")
    sentinel = sentinel_of(master, requirepass="watch&er")
    url = (
        f"redis+sentinel://alice:s%23cret@127.0.0.1:1,127.0.0.1:{sentinel.port}/{MASTER_NAME}/3"
        "?sentinel_password=watch%26er&socket_timeout=4"
    )
    async with connected(url) as connection:
        assert await connection.execute("ACL", "WHOAMI") == b"alice"
        info = await connection.execute("CLIENT", "LIST")
        assert b"name=streamer-test " in info
        assert b"db=3 " in info


async def test_the_error_about_sentinels_contains_no_secret(
    own_redis_server: Callable[..., RedisServer], sentinel_of: Callable[..., Sentinel]
) -> None:
    """An unreachable sentinel, a wrong password and an unknown name each give their reason."""
    sentinel = sentinel_of(own_redis_server(), requirepass="right")
    address = f"127.0.0.1:{sentinel.port}"
    for url, reason in [
        (f"redis+sentinel://127.0.0.1:1/{MASTER_NAME}", "127.0.0.1:1"),
        (f"redis+sentinel://:mine@{address}/{MASTER_NAME}?sentinel_password=wr0ng", "password"),
        (f"redis+sentinel://:mine@{address}/other?sentinel_password=right", "No such master"),
    ]:
        with pytest.raises(RedisConnectionError, match=reason) as caught:
            async with connected(url):
                raise AssertionError
        assert "wr0ng" not in str(caught.value)
        assert "mine" not in str(caught.value)


async def test_a_replica_is_refused_whoever_calls_it_master(
    own_redis_server: Callable[..., RedisServer], sentinel_of: Callable[..., Sentinel]
) -> None:
    """A server that the sentinels still name as the master may have been demoted."""
    master = own_redis_server()
    sentinel = sentinel_of(own_redis_server(replicaof=f"127.0.0.1 {master.port}"))
    with pytest.raises(
        RedisConnectionError, match="a slave where Sentinel says that the master is"
    ):
        async with connected(f"redis+sentinel://127.0.0.1:{sentinel.port}/{MASTER_NAME}"):
            raise AssertionError


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://host",
        "redis+sentinel://host/main/zero",
        "redis+sentinel://host:port/main",
        "redis+sentinel://host,/main",
        "redis+sentinel://:pass#word@host/main",
        "redis+sentinel+unix://host/main",
    ],
)
def test_a_bad_url_is_refused_without_repeating_it(url: str) -> None:
    """The error about a URL does not contain its password."""
    with pytest.raises(ValueError, match="not a Redis URL") as caught:
        check_server_url(url)
    assert "pass" not in str(caught.value).replace("USER:PASSWORD", "")


@attrs.frozen
class World:
    """A failing service, a publisher, and a client that verifies its stream."""

    service: SentinelService
    publisher: Publisher
    client: Client

    async def publish(self, numbers: range) -> None:
        """Publish prices with these volumes, each acknowledged."""
        await self.publisher.publish_many(map(numbered_publication, numbers))

    @property
    def epoch(self) -> str:
        """The epoch of the last message that the client received."""
        position = self.client.position("stock:005930")
        assert position is not None
        return position.epoch

    async def receive_until(self, number: int) -> list[Event]:
        """Return the events that the client receives up to the price with this volume."""
        events = [await self.client.receive()]
        while not (isinstance(events[-1], PriceUpdate) and events[-1].volume == number):
            events.append(await self.client.receive())
        return events


@pytest.fixture
def service() -> Iterator[SentinelService]:
    """Sentinel with a master to kill."""
    with SentinelService() as service:
        yield service


@asynccontextmanager
async def world(service: SentinelService, *, positioned: bool = True) -> AsyncIterator[World]:
    """A server on `service`, a client that wants everything, and a publisher."""
    async with (
        running_server(
            redis=service.url, probe_interval_seconds=0.2, probe_timeout_seconds=3.0
        ) as server,
        open_publisher(service.url, positioned=positioned) as publisher,
        open_client(server.websocket_url) as client,
    ):
        await client.subscribe(["stock:005930"], mode=Mode.ALL)
        yield World(service, publisher, client)
        assert client.account().violations == 0, client.account()


def volumes(events: list[Event]) -> list[int]:
    """Return the volumes of the prices among events."""
    return [int(event.volume) for event in events if isinstance(event, PriceUpdate)]


async def test_a_failover_loses_nothing_that_was_replicated(service: SentinelService) -> None:
    """Publisher and server follow to the new master, and the client receives every publication."""
    async with world(service) as w:
        await w.publish(range(1, 101))
        await trio.to_thread.run_sync(service.replicate)
        service.master.kill()
        # Published to nobody at first: held, and sent when there is a master again.
        await w.publish(range(101, 201))
        assert volumes(await w.receive_until(200)) == list(range(1, 201))
        account = w.client.account()
        assert not account.gaps
        assert not account.merged


async def test_a_failover_that_loses_writes_begins_a_new_epoch(service: SentinelService) -> None:
    """A gap with a new epoch precedes sequences that the new master gives a second time."""
    async with world(service) as w:
        await w.publish(range(1, 101))
        await trio.to_thread.run_sync(service.replicate)
        service.sever()
        await w.publish(range(101, 111))
        before = await w.receive_until(110)
        epoch = w.epoch
        service.master.kill()
        service.replica.resume()
        await w.publish(range(111, 201))
        after = await w.receive_until(200)
        assert volumes(before) == list(range(1, 111))
        (gap,) = [event for event in after if isinstance(event, Gap)]
        assert gap.reason is GapReason.SOURCE_RECONNECTED
        assert gap.epoch != epoch
        await w.publish(range(201, 211))
        assert volumes(await w.receive_until(210)) == list(range(201, 211))


async def test_a_failover_under_plain_producers_is_an_announced_gap(
    service: SentinelService,
) -> None:
    """Without positions in Redis it is unknown whether something was missed: a gap is sent."""
    async with world(service, positioned=False) as w:
        await w.publish(range(1, 11))
        assert volumes(await w.receive_until(10)) == list(range(1, 11))
        service.master.kill()
        await trio.to_thread.run_sync(service.wait_failed_over)
        event = await w.client.receive()
        assert isinstance(event, Gap)
        assert event.reason is GapReason.SOURCE_RECONNECTED
        await w.publish(range(11, 21))
        assert [v for v in volumes(await w.receive_until(20)) if v > 10] == list(range(11, 21))
