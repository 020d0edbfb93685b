"""Readers of publications: they pass on each message on the wanted channels.

While `ServerReader.run` runs there is at most one `PubSubConnection`. When it is lost, the reader
waits (full jitter) and connects again. `streamer.broker.cluster_reader` has one to each master of a
Cluster.
"""

import abc
import secrets
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import attrs
import trio

from streamer.backoff import Backoff
from streamer.broker.connect import check_url
from streamer.broker.connection import RedisConnectionError
from streamer.broker.pubsub import Message, PubSubConnection, PubSubContext
from streamer.nursery import first_of


class MessageHandler(Protocol):
    """Takes a reader's messages and events. Its methods run on the event loop and must not wait."""

    def on_messages(self, messages: list[Message]) -> None:
        """Take the publications of one read, in the order in which Redis sent them.

        After a reconnect, channels that are already confirmed deliver before `on_connected`.
        """

    def on_connected(self) -> None:
        """Take note that every channel that was wanted at the start of the connection is settled.

        Each is confirmed by Redis, or refused (`on_refused`).
        """

    def on_lost(self, reason: str) -> None:
        """Take note that publications until the next `on_connected` are missed.

        Attempts that fail in between are reported only if they delivered messages: those of the
        next connection do not follow them.
        """

    def on_refused(self, channel: bytes, reason: str) -> None:
        """Take note that Redis forbids a wanted channel, which is missed until `on_accepted`."""

    def on_accepted(self, channel: bytes) -> None:
        """Take note that Redis has confirmed a channel that it had refused."""


@attrs.frozen
class ReaderStatistics:
    """The state of a reader; counters begin when it is made. Probes are not counted."""

    connected: bool
    ready: bool
    channels_wanted: int
    channels_confirmed: int
    channels_refused: int
    """Channels that the Redis user may not read."""
    messages: int
    bytes_received: int
    """Bytes of the pub/sub connections, protocol included."""
    reconnects: int
    """Connections regained after the first."""
    probe_round_trip_seconds: float | None
    """From opening the last probe's publishing connection to its return; None before the first."""
    last_error: str | None


class PubSubReader(abc.ABC):
    """Reads exact channels from Redis, and proves that it still receives them.

    `probe_interval_seconds` lie between the return of one probe and the next; a probe that is not
    back after `probe_timeout_seconds` ends the connection. `connect_timeout_seconds` bounds all
    steps of connecting together. Before it reconnects, the reader waits a random time between 0 and
    a bound that doubles with each failure in a row, from `backoff_seconds` to `max_backoff_seconds`
    (full jitter: servers that lost a Redis together must not reconnect together). A connection that
    was lost before `lasting_seconds` is such a failure, too: after each, all positions are read.

    Raises `ValueError` for a URL that is not one of Redis.
    """

    def __init__(
        self,
        url: str,
        handler: MessageHandler,
        *,
        probe_interval_seconds: float = 5.0,
        probe_timeout_seconds: float = 10.0,
        connect_timeout_seconds: float = 5.0,
        backoff_seconds: float = 0.1,
        max_backoff_seconds: float = 3.0,
        lasting_seconds: float = 1.0,
    ) -> None:
        check_url(url)
        self._url = url
        self._handler = handler
        self._backoff = Backoff(backoff_seconds, max_backoff_seconds)
        self._lasting_seconds = lasting_seconds

        self._instance_id = secrets.token_hex(8)
        self._context = PubSubContext(
            client_name=f"streamer-{self._instance_id}",
            connect_timeout_seconds=connect_timeout_seconds,
            probe_interval_seconds=probe_interval_seconds,
            probe_timeout_seconds=probe_timeout_seconds,
            on_messages=self._on_messages,
            on_subscribed=self._on_subscribed,
            on_refused=lambda name, reason: handler.on_refused(self._plain(name), reason),
            on_accepted=lambda name: handler.on_accepted(self._plain(name)),
            on_probe_failed=self._on_probe_failed,
        )
        self._pubsubs = self._first_connections()

        self._first_attempt_ended = trio.Event()
        self._connected = False
        self._connected_at = 0.0
        self._connections = 0
        self._last_error: str | None = None

    @property
    def connected(self) -> bool:
        """Whether publications arrive: true between `on_connected` and `on_lost`."""
        return self._connected

    @property
    def ready(self) -> bool:
        """Whether it is connected and the last probe came back."""
        return self._connected and all(pubsub.ready for pubsub in self._pubsubs)

    @property
    def last_error(self) -> str | None:
        """Why the last connection or probe failed; kept after recovery."""
        return self._last_error

    def statistics(self) -> ReaderStatistics:
        """Return the present state."""
        wanted, traffic = self._wanted, self._context.traffic
        return ReaderStatistics(
            connected=self.connected,
            ready=self.ready,
            channels_wanted=len(wanted),
            channels_confirmed=sum(map(self._is_confirmed, wanted)),
            channels_refused=len(self._context.refused),
            messages=traffic.messages,
            bytes_received=traffic.bytes_received,
            reconnects=max(0, self._connections - 1),
            probe_round_trip_seconds=traffic.probe_round_trip_seconds,
            last_error=self._last_error,
        )

    def subscribe(self, channels: Iterable[str]) -> None:
        """Subscribe to channels, through every reconnect, until `unsubscribe`. Idempotent.

        The run task sends it, with several channels in one command.
        """
        self._want([self._name(channel) for channel in channels])

    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Unsubscribe from channels. Idempotent; what Redis has already sent still arrives."""
        self._release([self._name(channel) for channel in channels])

    async def wait_subscribed(self, channels: Iterable[str]) -> None:
        """Wait until Redis has confirmed or refused each of `channels`.

        From then on nothing published to the confirmed ones is missed while the reader stays
        connected; `refusal` gives the reason for a refused one. Waits through lost connections too,
        and for ever if a channel is unsubscribed meanwhile.
        """
        names = [self._name(channel) for channel in channels]
        await trio.lowlevel.checkpoint()
        while not all(map(self._is_settled, names)):
            await self._context.answers.park()

    def refusal(self, channel: str) -> str | None:
        """Why Redis refuses a wanted channel; None where it does not."""
        return self._context.refused.get(self._name(channel))

    @property
    def refuses_some(self) -> bool:
        """Whether Redis refuses any wanted channel."""
        return bool(self._context.refused)

    def is_refused(self, channel: str) -> bool:
        """Whether Redis refuses a wanted channel."""
        return self.refusal(channel) is not None

    def _is_settled(self, name: bytes) -> bool:
        return name in self._context.refused or self._is_confirmed(name)

    def is_settled(self, channels: Iterable[str]) -> bool:
        """Whether Redis has confirmed or refused each of `channels` on this connection."""
        return all(self._is_settled(self._name(channel)) for channel in channels)

    async def wait_answer(self) -> None:
        """Wait until Redis confirms or refuses one more channel."""
        await self._context.answers.park()

    async def run(self, *, task_status: trio.TaskStatus[bool] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a connection until cancelled.

        Started once the first attempt has ended, with whether it succeeded (if not, see
        `last_error`).
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._reconnect_forever)
            await self._first_attempt_ended.wait()
            task_status.started(self._connected)

    async def _reconnect_forever(self) -> None:
        traffic = self._context.traffic
        while True:
            messages_before = traffic.messages
            try:
                reason = await self._keep_connection()
            finally:
                was_connected = self._connected
                self._connected = False
            self._last_error = reason
            if was_connected and trio.current_time() - self._connected_at >= self._lasting_seconds:
                self._backoff.reset()
            if was_connected or traffic.messages != messages_before:
                self._handler.on_lost(reason)
            self._first_attempt_ended.set()
            await trio.sleep(self._backoff.next_delay())

    async def _keep_connection(self) -> str:
        """Connect, subscribe and read until the connection is lost; return why."""
        reason = ""
        try:
            await self._run_connections()
        except* RedisConnectionError as lost:
            reason = str(first_of(lost))  # the other tasks lost the same connection
        return reason

    def _on_messages(self, messages: list[Message]) -> None:
        self._handler.on_messages(messages)

    def _on_subscribed(self) -> None:
        if all(pubsub.subscribed for pubsub in self._pubsubs):
            self._connections += 1
            self._connected = True
            self._connected_at = trio.current_time()
            self._handler.on_connected()
            self._first_attempt_ended.set()

    def _on_probe_failed(self, reason: str) -> None:
        self._last_error = reason

    # Implemented for one server, and for several

    @abc.abstractmethod
    def _first_connections(self) -> Sequence[PubSubConnection]:
        """Return the connections that exist before `run`; called once."""

    @property
    @abc.abstractmethod
    def _wanted(self) -> Collection[bytes]:
        """The names of the wanted channels."""

    @abc.abstractmethod
    def _name(self, channel: str) -> bytes:
        """Return the name of a channel in Redis."""

    @abc.abstractmethod
    def _plain(self, name: bytes) -> bytes:
        """Return the channel that has a name in Redis."""

    @abc.abstractmethod
    def _want(self, names: Collection[bytes]) -> None: ...

    @abc.abstractmethod
    def _release(self, names: Collection[bytes]) -> None: ...

    @abc.abstractmethod
    def _is_confirmed(self, name: bytes) -> bool: ...

    @abc.abstractmethod
    async def _run_connections(self) -> None:
        """Keep a connection to each server until one is lost.

        Raises RedisConnectionError, in groups.
        """


class ServerReader(PubSubReader):
    """A reader of one Redis server: that of the URL, or the master that Sentinel names."""

    def _first_connections(self) -> Sequence[PubSubConnection]:
        probe_channel = f"streamer:probe:{self._instance_id}".encode()
        self._pubsub = PubSubConnection(self._url, self._context, probe_channel)
        return (self._pubsub,)

    @property
    def _wanted(self) -> Collection[bytes]:
        return self._pubsub.state.wanted

    def _name(self, channel: str) -> bytes:
        return channel.encode()

    def _plain(self, name: bytes) -> bytes:
        return name

    def _want(self, names: Collection[bytes]) -> None:
        self._pubsub.want(names)

    def _release(self, names: Collection[bytes]) -> None:
        self._pubsub.release(names)

    def _is_confirmed(self, name: bytes) -> bool:
        return self._pubsub.state.is_confirmed(name)

    async def _run_connections(self) -> None:
        await self._pubsub.run()
