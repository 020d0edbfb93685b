"""A Redis Cluster: which master serves which slot, and requests to all masters as to one server.

Everything about a topic is in one slot: the braces in its keys (`streamer.broker.keys`) and in its
channels are a hash tag. So a command goes to one server, and one script may use all of it. The
specification: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/.

When a slot has moved or a master has failed, the answer is an error, or there is none. Then all
connections are closed and the Cluster is asked again: a topology is used as a whole or not at all.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, Generic, Protocol, Self, TypeVar

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
    SocketConnection,
    Word,
    check_server_url,
    open_server,
    unexpected_reply,
)
from streamer.broker.errors import RedisUnreachableError
from streamer.broker.replies import is_elsewhere
from streamer.broker.urls import HostsURL

DEFAULT_PORT: Final = 6379


@attrs.frozen
class Topology:
    """The master of each slot, as one server of the Cluster reported it."""

    masters: tuple[str, ...] = attrs.field(repr=False)
    """Their URLs."""
    _master_by_slot: Sequence[int] = attrs.field(repr=False)

    def master_of(self, key: bytes) -> int:
        """Return the index of the master that serves a key, or a channel."""
        return self._master_by_slot[key_slot(key)]

    @classmethod
    def parse(cls, slots: Any, url: HostsURL, asked_host: str) -> Self:
        """Read the reply to CLUSTER SLOTS. Raises RedisConnectionError where a slot has no master.

        `asked_host` is the host of the server that replied, which may not know its own.
        """
        try:
            ranges = [
                (int(first), int(last) + 1, url.of_one(_host(host) or asked_host, int(port)))
                for first, last, (host, port, *_), *_replicas in slots
            ]
        except (AttributeError, TypeError, ValueError):
            raise unexpected_reply(slots) from None
        # Sorted, so that the replies of two servers compare equal if they mean the same.
        masters = sorted({master for _, _, master in ranges})
        by_slot = [-1] * REDIS_CLUSTER_HASH_SLOTS
        for first, end, master in ranges:
            by_slot[first:end] = [masters.index(master)] * (end - first)
        if len(by_slot) != REDIS_CLUSTER_HASH_SLOTS:
            raise unexpected_reply(slots)
        if -1 in by_slot:
            raise RedisConnectionError("the Cluster does not cover all slots")
        return cls(tuple(masters), by_slot)


def check_cluster_url(url: str) -> None:
    """Raise ValueError if `url` is not one that `open_cluster` understands."""
    try:
        parts = HostsURL.parse(url, default_port=DEFAULT_PORT)
    except ValueError:
        parts = None
    if parts is None or parts.path:
        # The cause is dropped: urllib's messages may quote parts of the password.
        raise ValueError(
            "not a Redis URL: expected redis+cluster://[USER:PASSWORD@]HOST[:PORT],… without a"
            " database, of which a Cluster has only one"
        )
    check_server_url(parts.of_one(*parts.hosts[0]))


async def discover(url: str, *, timeout_seconds: float, client_name: str) -> Topology:
    """Ask the servers of `url`, in random order, until one knows a Cluster that works.

    `timeout_seconds` bounds all of it; each server gets an equal share of what is left, so that a
    silent one does not take the time of the others. Raises RedisConnectionError where no server
    knows a working Cluster, and RedisUnreachableError if none could be asked.
    """
    parts = HostsURL.parse(url, default_port=DEFAULT_PORT)
    deadline = trio.current_time() + timeout_seconds
    problems = []
    unknown: type[RedisConnectionError] = RedisUnreachableError
    hosts = random.sample(parts.hosts, len(parts.hosts))
    for asked, (host, port) in enumerate(hosts):
        share_seconds = max(0.001, deadline - trio.current_time()) / (len(hosts) - asked)
        try:
            with trio.fail_after(share_seconds):
                async with open_server(
                    parts.of_one(host, port), timeout_seconds=share_seconds, client_name=client_name
                ) as connection:
                    unknown = RedisConnectionError
                    return await _read_topology(connection, parts, host)
        except (RedisConnectionError, RedisReplyError) as error:
            problems.append(f"{host}:{port}: {error}")
        except trio.TooSlowError:
            problems.append(f"{host}:{port}: no answer within {share_seconds:.1f} s")
    raise unknown(f"no server knows a working Cluster: {'; '.join(problems)}")


async def _read_topology(connection: Connection, parts: HostsURL, host: str) -> Topology:
    check_state(await connection.execute("CLUSTER", "INFO"))
    return Topology.parse(await connection.execute("CLUSTER", "SLOTS"), parts, host)


def check_state(information: Any) -> None:
    """Raise RedisConnectionError if a reply to CLUSTER INFO reports a Cluster that does not work.

    A server that is cut off from most of the others reports that, but its slots may be out of date.
    """
    if not isinstance(information, bytes):
        raise unexpected_reply(information)
    if b"cluster_state:ok" not in information:
        raise RedisConnectionError("the Cluster is not working")


def _host(name: bytes | None) -> str:
    """Return the host of a master as CLUSTER SLOTS has it; empty if it is that of the server."""
    if name == b"?":
        # In a URL, that would be the beginning of the options of a server on this machine.
        raise RedisConnectionError("the Cluster prefers host names, and has none for a master")
    return name.decode() if name else ""


class Node(Protocol):
    """A connection to one master."""

    @property
    def reader(self) -> Replies:
        """Its replies, in the order of its commands."""


N = TypeVar("N", bound=Node)


class CommandRouting(Generic[N]):
    """Divides commands among the masters of a Cluster, and puts their replies in order.

    No I/O. A script that is sent to one master is loaded by all.
    """

    def __init__(self, topology: Topology, nodes: Sequence[N]) -> None:
        """`nodes` are connections to the masters, in the order of the topology."""
        self._topology = topology
        self._nodes = nodes
        self._awaited: deque[tuple[N, bool]] = deque()
        """The connection of each reply outstanding, and whether the caller wants the reply."""

    @property
    def next_node(self) -> N | None:
        """The connection of the next reply; None while no reply is outstanding."""
        return self._awaited[0][0] if self._awaited else None

    def divide(self, commands: Iterable[Command]) -> dict[N, list[Command]]:
        """Return the commands to write to each master; their replies are awaited from now on."""
        batches: dict[N, list[Command]] = {}
        for command in commands:
            master = self._nodes[self._master_of(command)]
            script = _script(command)
            if script is not None:
                for node in self._nodes:
                    if node is not master:
                        batches.setdefault(node, []).append(("SCRIPT", "LOAD", script))
                        self._awaited.append((node, False))
            batches.setdefault(master, []).append(command)
            self._awaited.append((master, True))
        return batches

    def gets(self) -> Any:
        """Return the next reply; `INCOMPLETE` if more bytes have to be received.

        Raises RedisConnectionError once a slot turns out to have moved.
        """
        while self._awaited:
            node, wanted = self._awaited[0]
            reply = node.reader.gets()
            if reply is INCOMPLETE:
                break
            self._awaited.popleft()
            if isinstance(reply, RedisReplyError) and is_elsewhere(reply):
                raise RedisConnectionError(f"the Cluster has changed: {reply}")
            if wanted:
                return reply
        return INCOMPLETE

    def _master_of(self, command: Command) -> int:
        if command[0] == "SCRIPT":
            return 0
        key = command[3] if command[0] in {"EVAL", "EVALSHA"} else command[1]
        return self._topology.master_of(key if isinstance(key, bytes) else str(key).encode())


class Event(Protocol):
    """An event of Trio or asyncio."""

    def set(self) -> None:
        """Wake those that wait."""

    async def wait(self) -> object:
        """Wait until it is set."""


class ClusterConnection:
    """Connections to all masters of a Cluster, each command sent to the one that has its key.

    Replies come in the order of the commands. The connection is over once a slot turns out to have
    moved.
    """

    def __init__(
        self,
        topology: Topology,
        connections: Sequence[SocketConnection],
        *,
        new_event: Callable[[], Event] = trio.Event,
    ) -> None:
        """`new_event` makes an event of the library that waits for the connections."""
        self.reader = CommandRouting(topology, connections)
        self._new_event = new_event
        self._sent = new_event()

    async def receive(self) -> int:
        """Wait for bytes of the next reply; return how many."""
        while (node := self.reader.next_node) is None:
            self._sent = self._new_event()
            await self._sent.wait()
        return await node.receive()

    async def send(self, commands: Iterable[Command]) -> None:
        """Write `commands`, to one master after the other."""
        batches = self.reader.divide(commands)
        self._sent.set()
        for node, batch in batches.items():
            await node.send(batch)


def _script(command: Command) -> Word | None:
    """Return the script that a command loads into the server that gets it."""
    if command[0] == "EVAL":
        return command[1]
    return command[2] if command[:2] == ("SCRIPT", "LOAD") else None


@asynccontextmanager
async def open_cluster(
    url: str, *, timeout_seconds: float, client_name: str
) -> AsyncIterator[ClusterConnection]:
    """Connect to all masters of the Cluster that the servers of `url` belong to.

    `timeout_seconds` bounds all of it. Raises the errors of `open_server`, also if only one master
    cannot be reached.
    """
    deadline = trio.current_time() + timeout_seconds
    topology = await discover(url, timeout_seconds=timeout_seconds, client_name=client_name)
    async with AsyncExitStack() as stack:
        connections = []
        for master in topology.masters:
            left_seconds = max(0.001, deadline - trio.current_time())
            opening = open_server(master, timeout_seconds=left_seconds, client_name=client_name)
            connections.append(await stack.enter_async_context(opening))
        yield ClusterConnection(topology, connections)
