"""The reader of a Redis Cluster: sharded channels, over one subscription connection to each master.

What a topic's producers publish stays within the shard that has its slot (`SPUBLISH`), so a Cluster
carries as much as its masters together. Its channels are named as `sharded_channel` says.

When one of the connections is lost, or a slot with a channel that is wanted moves, all are given up
and made anew with what the Cluster then says of itself. That marks topics of other masters as
possibly missed, too, which costs those with a history a look into it, and spares keeping account of
which topics are whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

import trio

from streamer.broker.cluster import Topology, discover
from streamer.broker.connection import RedisConnectionError
from streamer.broker.keys import plain_channel, sharded_channel
from streamer.broker.pubsub import Message, PubSubConnection
from streamer.broker.pubsub_state import SHARDED_CHANNELS
from streamer.broker.reader import MessageHandler, PubSubReader, ServerReader
from streamer.broker.urls import CLUSTER_SCHEMES, has_scheme


def reader_type(url: str) -> type[PubSubReader]:
    """The reader for the kind of Redis that a URL names."""
    return ClusterReader if has_scheme(url, CLUSTER_SCHEMES) else ServerReader


class ClusterReader(PubSubReader):
    """A reader of all masters of a Cluster; listeners hear of channels by their plain names."""

    _topology: Topology

    def _first_connections(self) -> Sequence[PubSubConnection]:
        self._wanted_names: set[bytes] = set()
        return ()

    def _receiver(self, listener: MessageHandler) -> Callable[[list[Message]], None]:
        return lambda messages: listener.on_messages(
            [(plain_channel(name), payload) for name, payload in messages]
        )

    @property
    def _wanted(self) -> Collection[bytes]:
        return self._wanted_names

    def _name(self, channel: str) -> bytes:
        return sharded_channel(channel).encode()

    def _want(self, names: Collection[bytes]) -> None:
        self._wanted_names.update(names)
        if self._pubsubs:
            for name in names:
                self._pubsub(name).want([name])

    def _release(self, names: Collection[bytes]) -> None:
        self._wanted_names.difference_update(names)
        if self._pubsubs:
            for name in names:
                self._pubsub(name).release([name])

    def _is_confirmed(self, name: bytes) -> bool:
        return bool(self._pubsubs) and self._pubsub(name).subscriptions.is_confirmed(name)

    def _pubsub(self, name: bytes) -> PubSubConnection:
        return self._pubsubs[self._topology.owner(name)]

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
        """Give up the connections when the Cluster is no longer what they were made for.

        The probes alone would not tell: a master that is cut off from the others still takes
        sharded messages and hears its own, while the publishers have gone on to its replica.
        """
        while True:
            await trio.sleep(self._context.probe_interval_seconds)
            if await self._discover() != self._topology:
                raise RedisConnectionError("the Cluster has changed")

    def _probe_channel(self, master: int) -> bytes:
        """A channel of this source that is in a slot of the master."""
        names = (f"streamer:probe:{{{self._instance_id}.{n}}}".encode() for n in itertools.count())
        return next(name for name in names if self._topology.owner(name) == master)
