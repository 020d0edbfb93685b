"""Attacks by Sentinels that accept connections and say nothing."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Final
from urllib.error import HTTPError
from urllib.request import urlopen

import redis as redis_py
import trio

from tests.abuse.attack import Target, attack
from tests.abuse.tools import client
from tests.faults.processes import ServerProcess
from tests.helpers.redis_topology import MASTER_NAME

_SENTINELS: Final = 3

_CONNECT_SECONDS: Final = 5.0
"""The server's deadline for all of connecting (`PubSubReader`)."""

_MAX_LATER_SECONDS: Final = 2 * _CONNECT_SECONDS
"""How much longer than without any Redis a server may take to start: a deadline of its own for each
of the Sentinels would make it three times as long as one."""

_MAX_UNNOTICED_SECONDS: Final = 1.0
"""How long a server may seem ready after its connections to Redis have ended."""

_MAX_RETURN_SECONDS: Final = 3 * _CONNECT_SECONDS
"""How long a server may take to be ready again: the rest of an attempt to connect, a pause, and an
attempt that succeeds."""

_MAX_ANSWER_SECONDS: Final = 1.0
"""How long any answer of a server may take meanwhile. Its loop never waits for a Sentinel: this is
for a machine that is busy."""


class Watch:
    """Asks a server again and again whether it is ready, and how quickly it answers."""

    def __init__(self) -> None:
        self._statuses: list[int] = []
        self.slowest_seconds = 0.0

    async def run(self, http_port: int) -> None:
        """Ask until cancelled."""
        while True:
            began = time.monotonic()
            status = await trio.to_thread.run_sync(_readiness, http_port)
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)
            if self._statuses[-1:] != [status]:
                self._statuses.append(status)
            await trio.sleep(0.05)

    @property
    def statuses(self) -> list[int]:
        """The statuses of /readyz so far, each time that it was another one; 0: no answer."""
        return list(self._statuses)

    async def wait_for(self, status: int, seconds: float) -> float:
        """Wait for a status, so long at most; returns how long that took, or infinity."""
        began = time.monotonic()
        with trio.move_on_after(seconds):
            while self._statuses[-1:] != [status]:  # noqa: ASYNC110 - of another process
                await trio.sleep(0.05)
            return time.monotonic() - began
        return inf


def _readiness(http_port: int) -> int:
    try:
        with urlopen(f"http://127.0.0.1:{http_port}/readyz", timeout=10) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code
    except OSError:
        return 0


@attack(seconds=30)
async def silent_sentinels_at_the_start(_target: Target) -> str | None:
    """Three Sentinels say nothing to another server that starts: it serves, and is not ready."""
    with tempfile.TemporaryDirectory(prefix="abuse-") as name:
        async with _silent_hosts() as hosts:
            return await _start_and_watch(Path(name), f"redis+sentinel://{hosts}/{MASTER_NAME}")


@asynccontextmanager
async def _silent_hosts() -> AsyncIterator[str]:
    """Servers that accept connections and say nothing: their addresses, as a URL lists them."""
    async with trio.open_nursery() as nursery:
        hosts = []
        for _ in range(_SENTINELS):
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            hosts.append(f"127.0.0.1:{listeners[0].socket.getsockname()[1]}")
            await nursery.start(trio.serve_listeners, _say_nothing, listeners)
        yield ",".join(hosts)
        nursery.cancel_scope.cancel()


async def _start_and_watch(directory: Path, url: str) -> str | None:
    """Start a server with this Redis; return what is wrong with it, if anything."""
    watch = Watch()
    began = time.monotonic()
    async with ServerProcess(directory, "--redis", "redis://127.0.0.1:1"):
        refused_seconds = time.monotonic() - began
    began = time.monotonic()
    async with ServerProcess(directory, "--redis", url) as server:
        later_seconds = time.monotonic() - began - refused_seconds
        other = Target(server.port, server.http_port, "", 0, 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run, server.http_port)
            # Through the next attempt to connect, too.
            slowest_seconds = await _slowest_pong(other, 2 * _CONNECT_SECONDS)
            nursery.cancel_scope.cancel()
    if later_seconds > _MAX_LATER_SECONDS:
        return f"the server listened {later_seconds:.1f} s later than without any Redis"
    if watch.statuses != [503]:
        return f"/readyz was {watch.statuses}"
    return _slow(watch, slowest_seconds)


async def _say_nothing(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        async for _ in stream:
            pass


async def _slowest_pong(target: Target, seconds: float) -> float:
    """Ask a server for pongs; return how long the slowest took."""
    slowest_seconds = 0.0
    async with client(target) as attacker:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            began = time.monotonic()
            await attacker.request(type="ping")
            slowest_seconds = max(slowest_seconds, time.monotonic() - began)
            await trio.sleep(0.05)
    return slowest_seconds


def _slow(watch: Watch, slowest_pong_seconds: float) -> str | None:
    for what, seconds in ("/readyz", watch.slowest_seconds), ("a pong", slowest_pong_seconds):
        if seconds > _MAX_ANSWER_SECONDS:
            return f"{what} took {seconds:.1f} s"
    return None


# Nothing can be published while the server has no Redis; what was, comes out of the history.
@attack(sentinels=_SENTINELS, seconds=30, judges_delays=False)
async def silent_sentinels_at_a_failover(target: Target) -> str | None:
    """The Sentinels fall silent and Redis ends its connections: not ready until they speak."""
    watch = Watch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run, target.http_port)
        before_seconds = await watch.wait_for(200, _MAX_RETURN_SECONDS)
        with _silenced(target):
            _end_connections(target)
            unnoticed_seconds = await watch.wait_for(503, _MAX_RETURN_SECONDS)
            # Through an attempt to connect, a pause, and the next attempt.
            slowest_seconds = await _slowest_pong(target, 2 * _CONNECT_SECONDS)
            statuses = watch.statuses
        return_seconds = await watch.wait_for(200, _MAX_RETURN_SECONDS)
        nursery.cancel_scope.cancel()
    if before_seconds == inf:
        return "the server was not ready before"
    if unnoticed_seconds > _MAX_UNNOTICED_SECONDS:
        return f"the server seemed ready for {unnoticed_seconds:.1f} s"
    if statuses != [200, 503]:
        return f"/readyz was {statuses} while the Sentinels were silent"
    if return_seconds == inf:
        return f"the server was not ready {_MAX_RETURN_SECONDS:.0f} s after the Sentinels answered"
    return _slow(watch, slowest_seconds)


@contextmanager
def _silenced(target: Target) -> Iterator[None]:
    """Stop the Sentinels: their systems accept connections, and nothing is said."""
    for pid in target.sentinel_pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in target.sentinel_pids:
            os.kill(pid, signal.SIGCONT)


def _end_connections(target: Target) -> None:
    """End all connections of the server to Redis, and those of no one else."""
    with redis_py.Redis.from_url(target.redis_url) as redis:
        for connection in redis.client_list():
            name = connection["name"]
            if name.startswith("streamer-") and "publisher" not in name:
                with suppress(redis_py.ResponseError):  # it has gone
                    redis.client_kill_filter(_id=connection["id"])
