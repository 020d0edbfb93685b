"""Several real redis-server processes that make one service: Sentinel with its replicas."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from tests.redis_server import RedisServer

SETTLE_DEADLINE_SECONDS: Final = 30.0
"""For servers to find each other, and to agree on what has become of one of them."""


def wait_until(condition: Callable[[], object]) -> None:
    """Wait, blocking, for what no server tells by itself. Raises TimeoutError."""
    deadline = time.monotonic() + SETTLE_DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the servers did not come to an agreement")
        time.sleep(0.02)


MASTER_NAME: Final = "main"
"""By which the sentinels know it."""


class Sentinel(RedisServer):
    """One sentinel that watches the Redis at `master_port`, and calls it down after half a second.

    `quorum` sentinels have to say so. `options` are other lines of its configuration.
    """

    arguments = ("--sentinel",)
    sign_of_life = "+monitor master"

    def __init__(self, master_port: int, *, quorum: int = 1, **options: str) -> None:
        lines = (
            f"monitor {MASTER_NAME} 127.0.0.1 {master_port} {quorum}",
            f"down-after-milliseconds {MASTER_NAME} 500",
            # Also how long one that lost an election waits before it tries again.
            f"failover-timeout {MASTER_NAME} 3000",
        )
        super().__init__(sentinel="\nsentinel ".join(lines), **options)


class SentinelService:
    """A master with one replica, and three sentinels that promote it when the master fails.

    A context manager: it starts them, and at the end stops them.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            # No waiting for more replicas before the first is served.
            self.master = stack.enter_context(RedisServer(repl_diskless_sync_delay=0))
            master_port = self.master.port
            self.replica = stack.enter_context(RedisServer(replicaof=f"127.0.0.1 {master_port}"))
            wait_until(lambda: _role(self.master)[2])
            self.sentinels = [
                stack.enter_context(Sentinel(master_port, quorum=2)) for _ in range(3)
            ]
            wait_until(lambda: all(map(self._knows_all, self.sentinels)))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def hosts(self) -> str:
        """The sentinels' addresses, as a URL lists them."""
        return ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)

    @property
    def url(self) -> str:
        """The URL that asks the sentinels."""
        return f"redis+sentinel://{self.hosts}/{MASTER_NAME}"

    def replicate(self) -> None:
        """Wait until the replica has all that the master has."""
        with self.master.connect() as client:
            wait_until(lambda: client.wait(1, 100))

    def sever(self) -> None:
        """Cut the replica off from the master, to come back only when it is promoted.

        The replica is stopped, or it would be back at once; and cut while stopped, or it would
        later read what the master had sent into the socket.
        """
        self.replica.pause()
        with self.master.connect() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")

    def wait_failed_over(self) -> None:
        """Wait until the replica is the master."""
        wait_until(lambda: _role(self.replica)[0] == b"master")

    @staticmethod
    def _knows_all(sentinel: RedisServer) -> bool:
        with sentinel.connect() as client:
            state = client.sentinel_master(MASTER_NAME)
        return bool(state["num-other-sentinels"] == 2 and state["num-slaves"] == 1)


def _role(server: RedisServer) -> Any:
    with server.connect() as client:
        return client.execute_command("ROLE")
