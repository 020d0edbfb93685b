"""Everything that can fail in a chaos run, and how each fault is brought about and healed."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import cattrs
import redis as redis_py
import trio

from streamer.client import Mode
from tests.chaos.clients import Member, Returner
from tests.chaos.plan import Step
from tests.chaos.producer import HOLD_SECONDS, Order
from tests.faults.processes import Output, ServerProcess
from tests.helpers.proxy import Proxy
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import DEADLINE_SECONDS, SLOW_POLL_SECONDS

POSITIONED: Final = tuple(f"stock:positioned{number}" for number in range(8))
PLAIN: Final = tuple(f"stock:plain{number}" for number in range(4))
PASSING: Final = tuple(f"stock:passing{number}" for number in range(6))
"""Positioned topics that clients hold now and then: for a time nobody holds them."""
SHARED: Final = ("stock:shared0", "stock:shared1")
"""Positioned topics that two producers publish to at once."""
RATE: Final = 15.0
"""Publications per second of each topic."""
MEMBERS: Final = 24
RETURNERS: Final = 6
HISTORY_LENGTH: Final = 2000
_SLOW_SECONDS: Final = 0.2
_DRIP_BYTES: Final = 200

Problems = list[str]


class ProducerProcess:
    """One process of `tests.chaos.producer`."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, order: Order) -> ProducerProcess:
        """Start it."""
        command = [sys.executable, "-m", "tests.chaos.producer"]
        return cls(
            await trio.lowlevel.open_process(
                [*command, json.dumps(cattrs.unstructure(order))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )

    async def finish(self) -> dict[str, int]:
        """End it in good order; returns the number of the last publication of each topic."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        await self._process.stdin.aclose()
        with trio.fail_after(HOLD_SECONDS):
            numbers: dict[str, int] = json.loads(await Output(self._process.stdout).line())
        await self.kill()
        return numbers

    async def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        with trio.CancelScope(shield=True):
            await self._process.wait()


async def wait_up_to_date(members: Sequence[Member], numbers: dict[str, int]) -> None:
    """Wait until members have the last publication of each of their topics."""
    while not all(member.is_up_to_date(numbers, plain=PLAIN) for member in members):  # noqa: ASYNC110
        await trio.sleep(SLOW_POLL_SECONDS)


class World:
    """Redis, servers, producers and clients, and the faults of all of them."""

    def __init__(self, redis: RedisServer, directory: Path) -> None:
        self.redis = redis
        self.redis_network = Proxy(redis.port)
        self.servers = [
            ServerProcess(directory, *self._arguments()),
            ServerProcess(directory, *self._arguments(), "--workers", "2"),
        ]
        self.networks = [Proxy(), Proxy(), Proxy()]
        modes = [Mode.LATEST, Mode.ALL]
        chosen = [*POSITIONED, *PLAIN, *SHARED]
        self.members = [
            Member(
                f"member {number}",
                [chosen[(number + step) % (len(chosen) - 2)] for step in range(3)],
                [*PASSING, *SHARED],
                modes[number % 2],
            )
            for number in range(MEMBERS)
        ]
        self.returners = [
            Returner(f"returner {number}", [*POSITIONED[:3], *PLAIN[:1]])
            for number in range(RETURNERS)
        ]
        self.numbers = dict.fromkeys([*POSITIONED, *PLAIN, *PASSING, *SHARED], 0)
        self.problems: Problems = []
        self.done: Counter[str] = Counter()
        """Faults so far."""
        self._producers: list[ProducerProcess] = []
        self._dump = directory / "older"
        self._locks: dict[str, trio.Lock] = {}

    def _arguments(self) -> tuple[str, ...]:
        return (
            *("--history-length", str(HISTORY_LENGTH), "--flush-interval-ms", "30"),
            *("--probe-interval-seconds", "1", "--probe-timeout-seconds", "4"),
            *("--heartbeat-interval-seconds", "5", "--heartbeat-timeout-seconds", "10"),
            *("--max-outbound-bytes", "65536"),
        )

    # The parts

    async def start(self, nursery: trio.Nursery) -> None:
        """Start everything, in the order in which it depends on each other."""
        url = f"redis://127.0.0.1:{self.redis_network.port}/0"
        for server in self.servers:
            server.arguments = (*server.arguments, "--redis", url)
            await server.start()
        for number, network in enumerate(self.networks):
            network.server_port = self.servers[number % 2].port
        self._producers = [await self._start_producer(), await self._start_second()]
        with trio.fail_after(DEADLINE_SECONDS):
            async with trio.open_nursery() as starting:
                for number, member in enumerate(self.members):
                    starting.start_soon(nursery.start, member.run, self._url(number))
        for number, returner in enumerate(self.returners):
            nursery.start_soon(returner.run, self._url(number), 3.0 + number)

    def _url(self, number: int) -> str:
        return f"ws://127.0.0.1:{self.networks[number % len(self.networks)].port}/v1/ws"

    async def _start_producer(self) -> ProducerProcess:
        numbers = self.numbers
        positioned = {topic: numbers[topic] for topic in (*POSITIONED, *PASSING, *SHARED)}
        plain = {topic: numbers[topic] for topic in PLAIN}
        order = Order(self.redis.url, positioned, plain, RATE, HISTORY_LENGTH)
        return await ProducerProcess.start(order)

    async def _start_second(self) -> ProducerProcess:
        order = Order(self.redis.url, dict.fromkeys(SHARED, 0), {}, RATE, HISTORY_LENGTH)
        return await ProducerProcess.start(order)

    async def finish_producers(self) -> None:
        """End the flow; `numbers` are final."""
        for producer in reversed(self._producers):
            self.numbers |= await producer.finish()
        self._producers.clear()

    async def close(self) -> None:
        """End all processes."""
        for producer in self._producers:
            await producer.kill()
        for server in self.servers:
            await server.kill()

    # Faults

    async def carry_out(self, step: Step) -> None:
        """Bring a fault about and heal it."""
        part = step.fault.partition("_")[0]
        if step.fault.startswith("redis_network"):
            part = "redis_network"
        if part not in {"client", "clients"}:
            # Two faults of one part at once: the second waits.
            async with self._lock(part):
                await getattr(self, f"_{step.fault}")(step)
        else:
            await getattr(self, f"_{step.fault}")(step)
        self.done[step.fault] += 1

    def _lock(self, part: str) -> trio.Lock:
        return self._locks.setdefault(part, trio.Lock())

    async def _redis_killed_keeps_data(self, step: Step) -> None:
        await trio.to_thread.run_sync(self.redis.kill)
        await trio.sleep(step.duration_seconds)
        await trio.to_thread.run_sync(self.redis.start)

    async def _redis_killed_loses_data(self, step: Step) -> None:
        await trio.to_thread.run_sync(self.redis.kill)
        shutil.rmtree(self._data, ignore_errors=True)
        await trio.sleep(step.duration_seconds)
        await trio.to_thread.run_sync(self.redis.start)

    async def _redis_goes_back(self, step: Step) -> None:
        """Start it again with the data that it had some seconds ago."""
        shutil.rmtree(self._dump, ignore_errors=True)
        self.redis.pause()
        shutil.copytree(self._data, self._dump)
        self.redis.resume()
        await trio.sleep(step.duration_seconds)
        await trio.to_thread.run_sync(self.redis.kill)
        shutil.rmtree(self._data)
        self._dump.rename(self._data)
        await trio.to_thread.run_sync(self.redis.start)

    @property
    def _data(self) -> Path:
        return self.redis.directory / "appendonlydir"

    async def _redis_frozen(self, step: Step) -> None:
        self.redis.pause()
        await trio.sleep(step.duration_seconds)
        self.redis.resume()

    async def _redis_slow(self, step: Step) -> None:
        def doze() -> None:
            with suppress(redis_py.RedisError), self.redis.connect(socket_timeout=10) as operator:
                operator.execute_command("DEBUG", "SLEEP", str(_SLOW_SECONDS))

        with trio.move_on_after(step.duration_seconds):
            while True:
                await trio.to_thread.run_sync(doze)
                await trio.sleep(_SLOW_SECONDS / 4)

    async def _redis_kills_clients(self, step: Step) -> None:
        def kill() -> None:
            with suppress(redis_py.RedisError), self.redis.connect(socket_timeout=10) as operator:
                if step.choice < 0.3:
                    operator.client_kill_filter(_type="pubsub")
                else:
                    operator.client_kill_filter(_type="normal", skipme=True)
                    operator.client_kill_filter(_type="pubsub")

        await trio.to_thread.run_sync(kill)

    async def _redis_network_cut(self, _step: Step) -> None:
        self.redis_network.break_off(self.redis_network.open_connections)

    async def _redis_network_silent(self, _step: Step) -> None:
        self.redis_network.silence(self.redis_network.open_connections)

    async def _redis_network_deaf(self, _step: Step) -> None:
        self.redis_network.deafen()

    async def _redis_network_slow(self, step: Step) -> None:
        await self._slow(self.redis_network, step)

    async def _slow(self, network: Proxy, step: Step, piece_bytes: int = 65536) -> None:
        network.delay_seconds = _SLOW_SECONDS * step.choice
        network.piece_bytes = piece_bytes
        await trio.sleep(step.duration_seconds)
        network.delay_seconds = 0.0
        network.piece_bytes = 65536

    def _network(self, step: Step) -> Proxy:
        return self.networks[int(step.choice * len(self.networks))]

    async def _network_cut(self, step: Step) -> None:
        network = self._network(step)
        network.break_off(network.open_connections)

    async def _network_silent(self, step: Step) -> None:
        network = self._network(step)
        network.silence(network.open_connections)

    async def _network_slow(self, step: Step) -> None:
        await self._slow(self._network(step), step)

    async def _network_drips(self, step: Step) -> None:
        await self._slow(self._network(step), step, _DRIP_BYTES)

    async def _clients_move(self, step: Step) -> None:
        """Lead the clients of a network to the other server."""
        network = self._network(step)
        here = network.server_port
        (network.server_port,) = (s.port for s in self.servers if s.port != here)
        network.break_off(network.open_connections)

    def _server(self, step: Step) -> ServerProcess:
        return self.servers[int(step.choice * len(self.servers))]

    async def _server_stopped(self, step: Step) -> None:
        server = self._server(step)
        server.signal(signal.SIGTERM)
        with trio.move_on_after(DEADLINE_SECONDS):
            code = await server.wait()
            if code:
                self.problems.append(f"a server ended with {code} after SIGTERM")
        await server.kill()
        await server.start()

    async def _server_killed(self, step: Step) -> None:
        server = self._server(step)
        await server.kill()
        await trio.sleep(step.duration_seconds / 4)
        await server.start()

    async def _server_frozen(self, step: Step) -> None:
        server = self._server(step)
        server.signal(signal.SIGSTOP)
        await trio.sleep(step.duration_seconds)
        server.signal(signal.SIGCONT)

    def _member(self, step: Step) -> Member:
        return self.members[int(step.choice * len(self.members))]

    async def _client_stalls(self, step: Step) -> None:
        await self._member(step).stall(step.duration_seconds)

    async def _client_changes_kinds(self, step: Step) -> None:
        await self._member(step).change_kinds(step.duration_seconds)

    async def _client_changes_topics(self, step: Step) -> None:
        await self._member(step).change_topics(step.duration_seconds)

    async def _producer_restarts(self, _step: Step) -> None:
        # Not while Redis goes back: publications that Redis loses after their producer has ended,
        # and before a server receives them, are known to nobody (docs/how-to/redis.md).
        async with self._lock("redis"):
            self.numbers |= await self._producers[0].finish()
            self._producers[0] = await self._start_producer()

    async def _second_producer_killed(self, _step: Step) -> None:
        await self._producers[1].kill()
        self._producers[1] = await self._start_second()

    # The end

    def check_servers(self) -> None:
        """Note servers that have ended by themselves, and what they have logged as their faults."""
        for number, server in enumerate(self.servers):
            assert server.process is not None
            if server.process.returncode is not None:
                self.problems.append(f"server {number} has ended with {server.process.returncode}")
            log = server.log
            if count := log.count("Traceback"):
                first = log[log.index("Traceback") :][:2000]
                self.problems.append(f"{count} tracebacks in the log of server {number}: {first}")

    def check_clients(self) -> None:
        """Note what does not add up for the clients."""
        clients: Sequence[Member | Returner] = [*self.members, *self.returners]
        for client in clients:
            self.problems += client.problems()


class _DebuggableRedis(RedisServer):
    """A server whose DEBUG, which makes it slow, has to be enabled, as Redis 7 demands."""

    minimum_version = (7, 0)


@asynccontextmanager
async def open_world(directory: Path) -> AsyncIterator[World]:
    """Start Redis, two servers (one of two workers), two producers and clients."""
    random.seed(0)  # the proxies draw from it, and take all connections
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(
            _DebuggableRedis(
                appendonly="yes", appendfsync="always", enable_debug_command="yes", maxclients=10000
            )
        )
        world = World(redis, directory)
        for network in (world.redis_network, *world.networks):
            await stack.enter_async_context(network.run())
        async with trio.open_nursery() as nursery:
            try:
                await world.start(nursery)
                yield world
                nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True):
                    await world.close()
