"""Alerts reach each device of a user exactly once, whatever fails meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import attrs
import trio

from streamer.client import Alert, Backoff, Client, open_client
from streamer.publisher import Publisher, open_publisher
from tests.auth.tokens import secret_file
from tests.faults.processes import ServerProcess
from tests.helpers.identities import token
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import FLOW_DEADLINE_SECONDS, SLOW_POLL_SECONDS

ALERTS_BEFORE: Final = 50
ALERTS_DURING: Final = 100
ALERTS: Final = 200


@attrs.define
class Device:
    """A connection of the user, and the numbers of the alerts that it was given."""

    client: Client
    numbers: list[int] = attrs.field(factory=list)

    async def run(self) -> None:
        """Receive until cancelled; a loss shows in the numbers."""
        async for event in self.client:
            if isinstance(event, Alert):
                self.numbers.append(int(event.alert_id))


@attrs.define
class World:
    """Two servers on one Redis, a device of the same user on each, and a producer."""

    servers: list[ServerProcess]
    devices: list[Device]
    publisher: Publisher

    async def publish(self, first: int, end: int) -> None:
        """Publish alerts with these numbers, one after the other."""
        for number in range(first, end):
            text = (
                b'{"type":"alert","alert_id":%d,"stock_code":"A","alert_type":"price",'
                b'"message":"up","timestamp":"2024-08-09T05:00:00.123456Z"}' % number
            )
            await self.publisher.publish("alerts:ann", text)

    async def wait_received(self, count: int) -> None:
        """Wait until each device has been given so many."""
        while not all(len(device.numbers) >= count for device in self.devices):  # noqa: ASYNC110
            await trio.sleep(SLOW_POLL_SECONDS)

    def check(self) -> None:
        """Each device has each alert once, in order, and no message broke the contract."""
        for device in self.devices:
            assert device.numbers == list(range(ALERTS))
            account = device.client.account()
            assert (account.violations, account.gaps) == (0, {})


@asynccontextmanager
async def open_world(redis: RedisServer, directory: Path) -> AsyncIterator[World]:
    """Start everything; the devices are connected."""
    arguments = (
        *("--redis", redis.url, "--auth", "required"),
        *("--auth-secret-file", str(secret_file(directory))),
        *("--probe-interval-seconds", "1", "--probe-timeout-seconds", "4"),
    )
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(ServerProcess(directory, *arguments)) for _ in range(2)
        ]
        clients = [
            await stack.enter_async_context(
                open_client(server.url, token=token, backoff=Backoff(0.1, 0.5))
            )
            for server in servers
        ]
        publisher = await stack.enter_async_context(open_publisher(redis.url, hold_seconds=120))
        devices = [Device(client) for client in clients]
        with trio.fail_after(FLOW_DEADLINE_SECONDS):
            async with trio.open_nursery() as nursery:
                for device in devices:
                    nursery.start_soon(device.run)
                yield World(servers, devices, publisher)
                nursery.cancel_scope.cancel()


async def endure(world: World, fail: Callable[[], Awaitable[object]]) -> None:
    """Publish before, during and after a failure, and check what the devices were given."""
    await world.publish(0, ALERTS_BEFORE)
    await world.wait_received(ALERTS_BEFORE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.publish, ALERTS_BEFORE, ALERTS_DURING)
        await fail()
    await world.publish(ALERTS_DURING, ALERTS)
    await world.wait_received(ALERTS)
    world.check()


async def test_alerts_survive_a_restart_of_redis(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """Alerts that are published while Redis is away arrive when it is back."""
    redis = own_redis_server(appendonly="yes", appendfsync="always")

    async def fail() -> None:
        await trio.to_thread.run_sync(redis.kill)
        await trio.to_thread.run_sync(redis.start)

    async with open_world(redis, tmp_path) as world:
        await endure(world, fail)


async def test_alerts_survive_the_death_of_a_server(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """Alerts that are published while the user is away arrive once on reconnect."""
    redis = own_redis_server()
    async with open_world(redis, tmp_path) as world:

        async def fail() -> None:
            await world.servers[0].kill()
            await world.servers[0].start()

        await endure(world, fail)
