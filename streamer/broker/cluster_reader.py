"""The reader of a Redis Cluster: sharded channels, over one pub/sub connection to each master.

Messages published with SPUBLISH stay within the shard that serves the channel's slot, so a Cluster
carries as much as its masters together. `sharded_channel` gives the names of the channels.

When one of the connections is lost, or a slot with a wanted channel moves, all connections are
closed and opened again with the Cluster's new topology. The topics of the other masters count as
possibly missed, too: those with a history are read from it once, and no record is needed of which
topics are complete.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import NoReturn

import trio

from streamer.broker.cluster import Topology, discover
from streamer.broker.connection import RedisConnectionError
from streamer.broker.errors import RedisUnreachableError
from streamer.broker.keys import plain_channel, sharded_channel
from streamer.broker.pubsub import Message, PubSubConnection
from streamer.broker.pubsub_state import SHARDED_CHANNELS
from streamer.broker.reader import PubSubReader, ServerReader
from streamer.broker.urls import CLUSTER_SCHEMES, has_scheme


def reader_type(url: str) -> type[PubSubReader]:
    """Return the type of reader for the kind of Redis that a URL names."""
    return ClusterReader if has_scheme(url, CLUSTER_SCHEMES) else ServerReader


class ClusterReader(PubSubReader):
    """A reader of all masters of a Cluster; its handler is given the plain names of channels."""

    _topology: Topology

    def _first_connections(self) -> Sequence[PubSubConnection]:
        self._wanted_names: set[bytes] = set()
        return ()

    def _on_messages(self, messages: list[Message]) -> None:
        plain = self._plain
        self._handler.on_messages([(plain(name), payload) for name, payload in messages])

    @property
    def _wanted(self) -> Collection[bytes]:
        return self._wanted_names

    def _name(self, channel: str) -> bytes:
        return sharded_channel(channel).encode()

    def _plain(self, name: bytes) -> bytes:
        return plain_channel(name)

    def _want(self, names: Collection[bytes]) -> None:
        self._wanted_names.update(names)
        if self._pubsubs:
            for name in names:
                self._pubsub(name).want([name])

    def _release(self, names: Collection[bytes]) -> None:
        self._wanted_names.difference_update(names)
        for name in names:
            if self._pubsubs:
                self._pubsub(name).release([name])
            else:
                self._context.refused.pop(name, None)

    def _is_confirmed(self, name: bytes) -> bool:
        return bool(self._pubsubs) and self._pubsub(name).state.is_confirmed(name)

    def _pubsub(self, name: bytes) -> PubSubConnection:
        return self._pubsubs[self._topology.master_of(name)]

    async def _run_connections(self) -> None:
        self._topology = await self._discover()
        self._pubsubs = [
            PubSubConnection(master, self._context, self._probe_channel(index), SHARDED_CHANNELS)
            for index, master in enumerate(self._topology.masters)
        ]
        try:
            self._want(self._wanted_names.copy())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                for pubsub in self._pubsubs:
                    nursery.start_soon(pubsub.run)
        finally:
            self._pubsubs = ()

    async def _discover(self) -> Topology:
        return await discover(
            self._url,
            timeout_seconds=self._context.connect_timeout_seconds,
            client_name=self._context.client_name,
        )

    async def _watch(self) -> NoReturn:
        """Close the connections when the Cluster has changed since they were made.

        The probes do not notice that: a master that is cut off from the others still delivers
        sharded messages, its own probe among them, while publishers already use its replica.
        """
        while True:
            await trio.sleep(self._context.probe_interval_seconds)
            try:
                topology = await self._discover()
            except RedisUnreachableError as error:
                # As with a probe that is refused (too many clients): the subscriptions may be
                # whole, and could not be made again. Their own probes notice if they are not.
                self._context.on_probe_failed(str(error))
                continue
            if topology != self._topology:
                raise RedisConnectionError("the Cluster has changed")

    def _probe_channel(self, master: int) -> bytes:
        """Return a channel of this reader in a slot of the master."""
        names = (f"streamer:probe:{{{self._instance_id}.{n}}}".encode() for n in itertools.count())
        return next(name for name in names if self._topology.master_of(name) == master)
