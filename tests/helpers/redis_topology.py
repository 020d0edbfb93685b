"""Several real redis-server processes that make one service: Sentinel, and Cluster."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any, Final, Self

import redis
from redis.crc import key_slot

from streamer.broker.keys import sharded_channel
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import wait_until

MASTER_NAME: Final = "main"
"""By which the sentinels know it."""


class Sentinel(RedisServer):
    """One sentinel that watches the Redis at `master_port`, and calls it down if it is silent.

    `quorum` sentinels have to say so, after `down_after_ms`: long where nothing is to fail, since
    on a busy machine a Redis may have no core for half a second. `options` are other lines of its
    configuration.
    """

    arguments = ("--sentinel",)
    sign_of_life = "+monitor master"

    def __init__(
        self, master_port: int, *, quorum: int = 1, down_after_ms: int = 60_000, **options: str
    ) -> None:
        lines = (
            f"monitor {MASTER_NAME} 127.0.0.1 {master_port} {quorum}",
            f"down-after-milliseconds {MASTER_NAME} {down_after_ms}",
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
                stack.enter_context(Sentinel(master_port, quorum=2, down_after_ms=500))
                for _ in range(3)
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
        _sever(self.master, self.replica)

    def wait_failed_over(self) -> None:
        """Wait until the replica is the master."""
        wait_until(self._is_promoted)

    def _is_promoted(self) -> bool:
        # Sentinel closes the connections of clients to what it promotes.
        with contextlib.suppress(redis.exceptions.ConnectionError):
            return bool(_role(self.replica)[0] == b"master")
        return False

    @staticmethod
    def _knows_all(sentinel: RedisServer) -> bool:
        with sentinel.connect() as client:
            state = client.sentinel_master(MASTER_NAME)
        return bool(state["num-other-sentinels"] == 2 and state["num-slaves"] == 1)


class ClusterNode(RedisServer):
    """A server that can join a Cluster, and calls another one down after a while."""

    minimum_version = (7, 0)

    def __init__(self, *, node_timeout_ms: int) -> None:
        super().__init__(
            cluster_enabled="yes",
            cluster_node_timeout=node_timeout_ms,
            repl_diskless_sync_delay=0,
            # However long ago it lost its master: tests stop and sever it.
            cluster_replica_validity_factor=0,
        )

    @property
    def id(self) -> str:
        """By which the others know it."""
        with self.connect() as client:
            return str(client.execute_command("CLUSTER MYID").decode())


class ClusterService:
    """A Cluster of three masters with a third of the slots and one replica each.

    A context manager: it starts them, and at the end stops them. A `calm` one
    replaces no master: on a busy machine a node may have no core for a second.
    """

    def __init__(self, *, calm: bool = False) -> None:
        self._node_timeout_ms = 60_000 if calm else 1000
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            nodes = [
                stack.enter_context(ClusterNode(node_timeout_ms=self._node_timeout_ms))
                for _ in range(6)
            ]
            self.masters, self.replicas = nodes[:3], nodes[3:]
            for index, node in enumerate(nodes):
                with node.connect() as client:
                    client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
                    client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port)
                    if node in self.masters:
                        client.execute_command("CLUSTER ADDSLOTSRANGE", *_SLOTS[index])
            wait_until(lambda: all(_cluster_info(node, "known_nodes") == "6" for node in nodes))
            for master, replica in zip(self.masters, self.replicas, strict=True):
                with replica.connect() as client:
                    client.execute_command("CLUSTER REPLICATE", master.id)
            wait_until(lambda: all(_role(master)[2] for master in self.masters))
            wait_until(lambda: all(_cluster_info(node, "state") == "ok" for node in nodes))
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
    def url(self) -> str:
        """The URL that names all that were masters at first."""
        hosts = ",".join(f"127.0.0.1:{master.port}" for master in self.masters)
        return f"redis+cluster://{hosts}"

    def index(self, channel: str) -> int:
        """Which of the masters has a channel, and its topic's keys."""
        slot = key_slot(sharded_channel(channel).encode())
        return next(i for i, (first, last) in enumerate(_SLOTS) if first <= slot <= last)

    def replicate(self, index: int) -> None:
        """Wait until the replica of a master has all that the master has."""
        with self.masters[index].connect() as client:
            wait_until(lambda: client.wait(1, 100))

    def sever(self, index: int) -> None:
        """Cut a replica off from its master, as `SentinelService.sever` does."""
        _sever(self.masters[index], self.replicas[index])

    def move(self, channel: str, target: int) -> None:
        """Move the slot of a channel, with its keys, to another master, as an operator would."""
        slot = key_slot(sharded_channel(channel).encode())
        source = self.masters[self.index(channel)]
        destination = self.masters[target]
        with source.connect() as old, destination.connect() as new:
            new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
            old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", destination.id)
            while keys := old.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
                old.execute_command(
                    "MIGRATE", "127.0.0.1", destination.port, "", 0, 5000, "KEYS", *keys
                )
            for client in (new, old):
                client.execute_command("CLUSTER SETSLOT", slot, "NODE", destination.id)


_SLOTS: Final = ((0, 5460), (5461, 10922), (10923, 16383))


def _cluster_info(node: RedisServer, name: str) -> str:
    with node.connect() as client:
        information: dict[str, str] = client.execute_command("CLUSTER INFO")
    return information[f"cluster_{name}"]


def _sever(master: RedisServer, replica: RedisServer) -> None:
    replica.pause()
    with master.connect() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")


def _role(server: RedisServer) -> Any:
    with server.connect() as client:
        return client.execute_command("ROLE")
