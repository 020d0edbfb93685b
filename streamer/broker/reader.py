"""The Redis reader: each publication on the channels that are wanted, as fast as Redis sends them.

While `ServerReader.run` runs there is at most one `PubSubConnection`. When it is lost, the reader
waits (full jitter) and connects again. `streamer.broker.cluster_reader` has one to each master of a
Cluster.
"""

import abc
import random
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

import attrs
import trio

from streamer.broker.connect import check_url
from streamer.broker.connection import RedisConnectionError
from streamer.broker.pubsub import Message, PubSubConnection, PubSubContext


class MessageHandler(Protocol):
    """Whoever wants the publications. Each call is made on the event loop and must not wait."""

    def on_messages(self, messages: list[Message]) -> None:
        """The publications of one read, in the order in which Redis sent them.

        After a reconnect, channels that are already confirmed deliver before `on_connected`.
        """

    def on_connected(self) -> None:
        """Every channel that was wanted when the connection was made is confirmed."""

    def on_lost(self, reason: str) -> None:
        """The connection is gone, and with it what is published until the next `on_connected`.

        These two alternate: attempts that fail in between are not reported.
        """


@attrs.frozen
class ReaderStatistics:
    """What `ServerReader.statistics` returns; counters begin when the source is made."""

    connected: bool
    ready: bool
    channels_wanted: int
    channels_confirmed: int
    messages: int
    bytes_received: int
    """All that came over subscription connections, protocol included."""
    reconnects: int
    """Connections regained after the first."""
    probe_round_trip_seconds: float | None
    """From opening the last probe's publishing connection to its return; None before the first."""
    last_error: str | None


class PubSubReader(abc.ABC):
    """Reads exact channels from Redis, and proves that it still hears them.

    `probe_interval_seconds` lie between the return of one probe and the next; a probe that is not
    back after `probe_timeout_seconds` ends the connection. `connect_timeout_seconds` bounds each
    step of connecting. Before it reconnects, the source waits a random time between 0 and a limit
    that doubles with each failure in a row, from `backoff_seconds` to `max_backoff_seconds` (full
    jitter: the servers that lost a Redis together must not come back together).

    Raises `ValueError` for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        listener: MessageHandler,
        *,
        probe_interval_seconds: float = 5.0,
        probe_timeout_seconds: float = 10.0,
        connect_timeout_seconds: float = 5.0,
        backoff_seconds: float = 0.1,
        max_backoff_seconds: float = 3.0,
    ) -> None:
        check_url(url)
        self._url = url
        self._listener = listener
        self._backoff_seconds = backoff_seconds
        self._max_backoff_seconds = max_backoff_seconds

        self._instance_id = secrets.token_hex(8)
        self._context = PubSubContext(
            client_name=f"streamer-{self._instance_id}",
            connect_timeout_seconds=connect_timeout_seconds,
            probe_interval_seconds=probe_interval_seconds,
            probe_timeout_seconds=probe_timeout_seconds,
            on_messages=self._receiver(listener),
            on_subscribed=self._on_subscribed,
            on_probe_failed=self._on_probe_failed,
        )
        self._pubsubs = self._first_connections()

        self._first_attempt_ended = trio.Event()
        self._connected = False
        self._connections = 0
        self._last_error: str | None = None

    @property
    def connected(self) -> bool:
        """Between `on_connected` and `on_lost`."""
        return self._connected

    @property
    def ready(self) -> bool:
        """Connected, and the last probe came back."""
        return self._connected and all(pubsub.ready for pubsub in self._pubsubs)

    @property
    def last_error(self) -> str | None:
        """Why the last connection or probe failed; kept after recovery."""
        return self._last_error

    def statistics(self) -> ReaderStatistics:
        """A snapshot; the probe's own channel and messages are not counted."""
        wanted, traffic = self._wanted, self._context.traffic
        return ReaderStatistics(
            connected=self.connected,
            ready=self.ready,
            channels_wanted=len(wanted),
            channels_confirmed=sum(map(self._is_confirmed, wanted)),
            messages=traffic.messages,
            bytes_received=traffic.bytes_received,
            reconnects=max(0, self._connections - 1),
            probe_round_trip_seconds=traffic.probe_round_trip_seconds,
            last_error=self._last_error,
        )

    def subscribe(self, channels: Iterable[str]) -> None:
        """Want `channels` from now on, through every reconnect, until `unsubscribe`. Idempotent.

        Redis is told by the run task, several channels in one command.
        """
        self._want([self._name(channel) for channel in channels])

    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Want `channels` no longer. Idempotent; what Redis has already sent still arrives."""
        self._release([self._name(channel) for channel in channels])

    async def wait_subscribed(self, channels: Iterable[str]) -> None:
        """Wait until Redis has confirmed all of `channels` on the current connection.

        From then on nothing published to them is missed while the source stays connected. Waits
        through lost connections too, and for ever where a channel is unsubscribed meanwhile.
        """
        names = [self._name(channel) for channel in channels]
        await trio.lowlevel.checkpoint()
        while not all(map(self._is_confirmed, names)):
            await self._context.confirmations.park()

    async def run(self, *, task_status: trio.TaskStatus[bool] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a subscription connection alive until cancelled.

        Started once the first attempt has ended, with whether it succeeded (if not, see
        `last_error`). Cancelling while a connection is being made takes as long as that does.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._reconnect_forever)
            await self._first_attempt_ended.wait()
            task_status.started(self._connected)

    async def _reconnect_forever(self) -> None:
        backoff_seconds = self._backoff_seconds
        while True:
            try:
                reason = await self._keep_connection()
            finally:
                was_connected = self._connected
                self._connected = False
            self._last_error = reason
            if was_connected:
                backoff_seconds = self._backoff_seconds
                self._listener.on_lost(reason)
            self._first_attempt_ended.set()
            await trio.sleep(random.uniform(0, backoff_seconds))  # noqa: S311 - guards nothing
            backoff_seconds = min(2 * backoff_seconds, self._max_backoff_seconds)

    async def _keep_connection(self) -> str:
        """Connect, subscribe and read until the connection is lost; return why."""
        reason = ""
        try:
            await self._run_connections()
        except* RedisConnectionError as lost:
            reason = _first(lost)  # the other tasks lost the same connection
        return reason

    def _on_subscribed(self) -> None:
        if all(pubsub.subscribed for pubsub in self._pubsubs):
            self._connections += 1
            self._connected = True
            self._listener.on_connected()
            self._first_attempt_ended.set()

    def _on_probe_failed(self, reason: str) -> None:
        self._last_error = reason

    # What is different with several servers

    @abc.abstractmethod
    def _first_connections(self) -> Sequence[PubSubConnection]:
        """The connections that there are before the first connection; called once."""

    def _receiver(self, listener: MessageHandler) -> Callable[[list[Message]], None]:
        """What takes the messages, by the names that Redis has for their channels."""
        return listener.on_messages

    @property
    @abc.abstractmethod
    def _wanted(self) -> Collection[bytes]:
        """The names of the channels that are wanted."""

    @abc.abstractmethod
    def _name(self, channel: str) -> bytes:
        """The name of a channel in Redis."""

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
        return self._pubsub.subscriptions.wanted

    def _name(self, channel: str) -> bytes:
        return channel.encode()

    def _want(self, names: Collection[bytes]) -> None:
        self._pubsub.want(names)

    def _release(self, names: Collection[bytes]) -> None:
        self._pubsub.release(names)

    def _is_confirmed(self, name: bytes) -> bool:
        return self._pubsub.subscriptions.is_confirmed(name)

    async def _run_connections(self) -> None:
        await self._pubsub.run()


def _first(group: BaseExceptionGroup[RedisConnectionError]) -> str:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else str(error)
