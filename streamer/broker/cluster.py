"""A Redis Cluster: who has which slot, and its masters asked as if they were one server.

Everything about a topic is in one slot: the braces in its keys (`streamer.broker.keys`) and in its
channels are a hash tag. So a command goes to one server, and one script may use all of it. The
specification: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/.

When a slot has moved or a master has failed, the answer is an error or none. Then all connections
are given up and the Cluster is asked anew: what is held here is never half right.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, Self

import attrs
import trio
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from streamer.broker.connection import (
    INCOMPLETE,
    Command,
    Connection,
    RedisConnectionError,
    RedisReplyError,
    Replies,
    Word,
    check_server_url,
    open_server,
)
from streamer.broker.replies import is_elsewhere
from streamer.broker.urls import HostsURL

DEFAULT_PORT: Final = 6379


@attrs.frozen
class Topology:
    """Which master has which slot, as a server of the Cluster knew it."""

    masters: tuple[str, ...] = attrs.field(repr=False)
    """Their URLs."""
    _owners: Sequence[int] = attrs.field(repr=False)

    def owner(self, key: bytes) -> int:
        """The index of the master that has a key, or a channel."""
        return self._owners[key_slot(key)]

    @classmethod
    def parse(cls, slots: Any, url: HostsURL, asked_host: str) -> Self:
        """Read the reply to CLUSTER SLOTS. Raises RedisConnectionError where a slot has no master.

        `asked_host` is that of the server that replied, which may not know its own.
        """
        ranges = [
            (first, last + 1, url.of_one(host.decode() if host else asked_host, port))
            for first, last, (host, port, *_), *_replicas in slots
        ]
        # Sorted, so that what two servers say is equal where they mean the same.
        masters = sorted({master for _, _, master in ranges})
        owners = [-1] * REDIS_CLUSTER_HASH_SLOTS
        for first, end, master in ranges:
            owners[first:end] = [masters.index(master)] * (end - first)
        if -1 in owners:
            raise RedisConnectionError("the Cluster does not cover all slots")
        return cls(tuple(masters), owners)


def check_cluster_url(url: str) -> None:
    """Raise ValueError if `url` is not one that `open_cluster` understands."""
    try:
        parts = HostsURL.parse(url, default_port=DEFAULT_PORT)
    except ValueError:
        parts = None
    if parts is None or parts.path:
        # The cause is dropped: what urllib quotes in its messages can be part of the password.
        raise ValueError(
            "not a Redis URL: expected redis+cluster://[USER:PASSWORD@]HOST[:PORT],… and no"
            " database, of which a Cluster has only one"
        )
    check_server_url(parts.of_one(*parts.hosts[0]))


async def discover(url: str, *, timeout_seconds: float, client_name: str) -> Topology:
    """Ask the servers of `url`, in random order, until one knows a Cluster that works.

    Raises RedisConnectionError where none does.
    """
    parts = HostsURL.parse(url, default_port=DEFAULT_PORT)
    problems = []
    for host, port in random.sample(parts.hosts, len(parts.hosts)):
        try:
            async with open_server(
                parts.of_one(host, port), timeout_seconds=timeout_seconds, client_name=client_name
            ) as connection:
                with trio.move_on_after(timeout_seconds):
                    # A server that is cut off from most of the others knows that it is, and not
                    # what has become of them.
                    if b"cluster_state:ok" in await connection.execute("CLUSTER", "INFO"):
                        slots = await connection.execute("CLUSTER", "SLOTS")
                        return Topology.parse(slots, parts, host)
                problems.append(f"{host}:{port}: the Cluster is not working")
        except (RedisConnectionError, RedisReplyError) as error:
            problems.append(f"{host}:{port}: {error}")
    raise RedisConnectionError(f"no server knows a working Cluster: {'; '.join(problems)}")


class ClusterConnection:
    """Connections to all masters of a Cluster, each command sent to the one that has its key.

    Replies come in the order of the commands. A script is made known to all masters when it is
    sent to one. Where a slot turns out to have moved, the connection is over.
    """

    def __init__(self, topology: Topology, connections: Sequence[Connection]) -> None:
        self._topology = topology
        self._connections = connections
        self._awaited: deque[tuple[Connection, bool]] = deque()
        """For each reply outstanding, who will send it, and whether the caller wants it."""
        self._sent = trio.Event()

    @property
    def reader(self) -> Replies:
        """The replies, in the order of the commands."""
        return self

    def gets(self) -> Any:
        """The next reply; `INCOMPLETE` where more has to be received."""
        while self._awaited:
            connection, wanted = self._awaited[0]
            reply = connection.reader.gets()
            if reply is INCOMPLETE:
                break
            self._awaited.popleft()
            if isinstance(reply, RedisReplyError) and is_elsewhere(reply):
                raise RedisConnectionError(f"the Cluster has changed: {reply}")
            if wanted:
                return reply
        return INCOMPLETE

    async def receive(self) -> int:
        """Wait for bytes of the reply that is next; return how many."""
        while not self._awaited:
            self._sent = trio.Event()
            await self._sent.wait()
        return await self._awaited[0][0].receive()

    async def send(self, commands: Iterable[Command]) -> None:
        """Write `commands`, to one master after the other."""
        batches: dict[Connection, list[Command]] = {node: [] for node in self._connections}
        for command in commands:
            owner = self._connections[self._owner(command)]
            script = _script(command)
            if script is not None:
                for node in self._connections:
                    if node is not owner:
                        batches[node].append(("SCRIPT", "LOAD", script))
                        self._awaited.append((node, False))
            batches[owner].append(command)
            self._awaited.append((owner, True))
        self._sent.set()
        for node, batch in batches.items():
            if batch:
                await node.send(batch)

    def _owner(self, command: Command) -> int:
        if command[0] == "SCRIPT":
            return 0
        key = command[3] if command[0] in {"EVAL", "EVALSHA"} else command[1]
        return self._topology.owner(key if isinstance(key, bytes) else str(key).encode())


def _script(command: Command) -> Word | None:
    """The script that a command makes known to the server that gets it."""
    if command[0] == "EVAL":
        return command[1]
    return command[2] if command[:2] == ("SCRIPT", "LOAD") else None


@asynccontextmanager
async def open_cluster(
    url: str, *, timeout_seconds: float, client_name: str
) -> AsyncIterator[ClusterConnection]:
    """Connect to all masters of the Cluster that the servers of `url` belong to.

    Raises what `open_server` does, where one of them cannot be reached too.
    """
    topology = await discover(url, timeout_seconds=timeout_seconds, client_name=client_name)
    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(
                open_server(master, timeout_seconds=timeout_seconds, client_name=client_name)
            )
            for master in topology.masters
        ]
        yield ClusterConnection(topology, connections)
