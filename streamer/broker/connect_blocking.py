"""Connections for threads: each step blocks, within a deadline."""

from __future__ import annotations

import random
import select
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from streamer.broker.blocking import BlockingConnector, Handover
from streamer.broker.cluster import DEFAULT_PORT, CommandRouting, Topology, check_state
from streamer.broker.connection import (
    INCOMPLETE,
    RECEIVE_BYTES,
    Command,
    RedisConnectionError,
    RedisReplyError,
    RedisTimeoutError,
    Replies,
    new_reader,
    pack,
)
from streamer.broker.urls import CLUSTER_SCHEMES, HostsURL, has_scheme


class BlockingRequestConnection(Protocol):
    """A connection for requests: to one server, or to all of a Cluster as if they were one."""

    @property
    def reader(self) -> Replies:
        """The replies, in the order of the commands."""

    @property
    def is_over(self) -> bool:
        """Whether Redis has closed it while no answer was awaited."""

    def receive(self) -> int:
        """Wait for bytes of replies; return how many. Raises RedisConnectionError."""

    def send(self, commands: Iterable[Command]) -> None:
        """Write commands. Raises RedisConnectionError."""


class BlockingConnection:
    """An authenticated connection to one server, for one thread at a time."""

    def __init__(self, sock: socket.socket, *, timeout_seconds: float) -> None:
        sock.settimeout(timeout_seconds)
        self._sock = sock
        self._timeout_seconds = timeout_seconds
        self.reader = new_reader()
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)

    @property
    def is_over(self) -> bool:
        """Whether Redis has closed it while no answer was awaited. Never known of TLS.

        A TLS connection may have something to read that is no answer: a session ticket.
        """
        return not isinstance(self._sock, ssl.SSLSocket) and bool(self._readable.poll(0))

    def receive(self) -> int:
        """Wait for bytes of replies; return how many.

        Raises RedisTimeoutError after `timeout_seconds`, RedisConnectionError if it is over.
        """
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except TimeoutError:
            raise RedisTimeoutError(f"no answer within {self._timeout_seconds:g} s") from None
        except OSError as error:
            raise RedisConnectionError(f"connection lost: {error}") from error
        if not data:
            raise RedisConnectionError("connection closed by Redis")
        self.reader.feed(data)
        return len(data)

    def send(self, commands: Iterable[Command]) -> None:
        """Write commands. Raises as `receive`."""
        try:
            self._sock.sendall(pack(commands))
        except TimeoutError:
            raise RedisTimeoutError(f"no write within {self._timeout_seconds:g} s") from None
        except OSError as error:
            raise RedisConnectionError(f"connection lost: {error}") from error

    def execute(self, *command: str | bytes | float) -> Any:
        """Send one command and return its reply. Raises RedisReplyError, and as `receive`."""
        self.send([command])
        while (reply := self.reader.gets()) is INCOMPLETE:
            self.receive()
        if isinstance(reply, RedisReplyError):
            raise reply
        return reply

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class BlockingClusterConnection:
    """Connections to all masters of a Cluster; see `streamer.broker.cluster.ClusterConnection`."""

    def __init__(self, topology: Topology, connections: Sequence[BlockingConnection]) -> None:
        self._connections = connections
        self.reader = CommandRouting(topology, connections)

    @property
    def is_over(self) -> bool:
        """Whether a master has closed its connection while no answer was awaited."""
        return any(connection.is_over for connection in self._connections)

    def receive(self) -> int:
        """Wait for bytes of the next reply, of which there must be one; return how many."""
        node = self.reader.next_node
        assert node is not None
        return node.receive()

    def send(self, commands: Iterable[Command]) -> None:
        """Write commands, to one master after the other."""
        for node, batch in self.reader.divide(commands).items():
            node.send(batch)


@contextmanager
def open_blocking(
    url: str, *, timeout_seconds: float, answer_seconds: float, client_name: str
) -> Iterator[BlockingRequestConnection]:
    """Connect to the Redis at `url`, for requests, and close the connection at the end.

    The same URLs as `streamer.broker.connect.open_connection`. `timeout_seconds` bounds all of
    connecting (but name resolution), `answer_seconds` each later wait for an answer. Raises
    RedisTimeoutError, RedisConnectionError, and ValueError for a URL that is not one of Redis.
    """
    handover = Handover()
    connections: list[BlockingConnection] = []
    try:
        topology = connect(url, handover, timeout_seconds=timeout_seconds, client_name=client_name)
        connections = [
            BlockingConnection(sock, timeout_seconds=answer_seconds) for sock in handover.take()
        ]
        if topology is None:
            yield connections[0]
        else:
            yield BlockingClusterConnection(topology, connections)
    finally:
        handover.abandon()
        for connection in connections:
            connection.close()


def connect(
    url: str, handover: Handover, *, timeout_seconds: float, client_name: str
) -> Topology | None:
    """Give the sockets of a connection to `handover`: one, or one for each master of the topology.

    Raises as `open_blocking`.
    """
    deadline = time.monotonic() + timeout_seconds
    if not has_scheme(url, CLUSTER_SCHEMES):
        _connector(url, deadline, client_name).connect(handover)
        return None
    topology = _discover(url, deadline, client_name)
    for master in topology.masters:
        _connector(master, deadline, client_name).connect(handover)
    return topology


def _connector(url: str, deadline: float, client_name: str) -> BlockingConnector:
    left_seconds = max(0.001, deadline - time.monotonic())
    return BlockingConnector(url, timeout_seconds=left_seconds, client_name=client_name)


def _discover(url: str, deadline: float, client_name: str) -> Topology:
    """Ask the servers of `url`, in random order; see `streamer.broker.cluster.discover`."""
    parts = HostsURL.parse(url, default_port=DEFAULT_PORT)
    problems = []
    hosts = random.sample(parts.hosts, len(parts.hosts))
    for asked, (host, port) in enumerate(hosts):
        share_seconds = max(0.001, deadline - time.monotonic()) / (len(hosts) - asked)
        try:
            with open_blocking(
                parts.of_one(host, port),
                timeout_seconds=share_seconds,
                answer_seconds=share_seconds,
                client_name=client_name,
            ) as connection:
                assert isinstance(connection, BlockingConnection)
                check_state(connection.execute("CLUSTER", "INFO"))
                return Topology.parse(connection.execute("CLUSTER", "SLOTS"), parts, host)
        except (RedisConnectionError, RedisReplyError) as error:
            problems.append(f"{host}:{port}: {error}")
    raise RedisConnectionError(f"no server knows a working Cluster: {'; '.join(problems)}")
