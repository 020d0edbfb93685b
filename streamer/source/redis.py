"""The Redis reader: each publication on the channels that are wanted, as fast as Redis sends them.

While `RedisSource.run` runs there is at most one subscription connection, with three tasks:

    run             connect; when the connection is lost, wait (full jitter) and connect again
    ├── reader      socket -> hiredis -> Listener.on_message, a batch per read
    ├── writer      SUBSCRIBE and UNSUBSCRIBE: what is wanted and Redis was not told yet
    └── probe       publishes to a channel of its own and expects it back through the reader
"""

import random
import secrets
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import attrs
import trio

from streamer.source.connect import (
    INCOMPLETE,
    Connection,
    RedisConnectionError,
    RedisReplyError,
    RedisTimeoutError,
    check_url,
    open_connection,
)
from streamer.source.subscriptions import Subscriptions


class Listener(Protocol):
    """Whoever wants the publications. Each call is made on the event loop and must not wait."""

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """One publication, in the order in which Redis sent it.

        After a reconnect, channels that are already confirmed deliver before `on_connected`.
        """

    def on_connected(self) -> None:
        """Every channel that was wanted when the connection was made is confirmed."""

    def on_lost(self, reason: str) -> None:
        """The connection is gone, and with it what is published until the next `on_connected`.

        These two alternate: attempts that fail in between are not reported.
        """


@attrs.frozen
class RedisSourceStatistics:
    """What `RedisSource.statistics` returns; counters begin when the source is made."""

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


class RedisSource:
    """Reads exact channels from one Redis, and proves that it still hears them.

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
        listener: Listener,
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
        self._probe_interval_seconds = probe_interval_seconds
        self._probe_timeout_seconds = probe_timeout_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        self._backoff_seconds = backoff_seconds
        self._max_backoff_seconds = max_backoff_seconds

        instance_id = secrets.token_hex(8)
        self._client_name = f"streamer-{instance_id}"
        self._probe_channel = f"streamer:probe:{instance_id}".encode()
        self._probe_returned = trio.Event()
        self._probe_round_trip_seconds: float | None = None

        self._subscriptions = Subscriptions(self._probe_channel)
        self._subscriptions_changed = trio.Event()
        self._confirmations = trio.lowlevel.ParkingLot()

        self._first_attempt_ended = trio.Event()
        self._connected = False
        self._ready = False
        self._connections = 0
        self._messages = 0
        self._bytes_received = 0
        self._last_error: str | None = None

    @property
    def connected(self) -> bool:
        """Between `on_connected` and `on_lost`."""
        return self._connected

    @property
    def ready(self) -> bool:
        """Connected, and the last probe came back."""
        return self._connected and self._ready

    @property
    def last_error(self) -> str | None:
        """Why the last connection or probe failed; kept after recovery."""
        return self._last_error

    def statistics(self) -> RedisSourceStatistics:
        """A snapshot; the probe's own channel and messages are not counted."""
        subscriptions = self._subscriptions
        return RedisSourceStatistics(
            connected=self.connected,
            ready=self.ready,
            channels_wanted=len(subscriptions.wanted),
            channels_confirmed=sum(map(subscriptions.is_confirmed, subscriptions.wanted)),
            messages=self._messages,
            bytes_received=self._bytes_received,
            reconnects=max(0, self._connections - 1),
            probe_round_trip_seconds=self._probe_round_trip_seconds,
            last_error=self._last_error,
        )

    def subscribe(self, channels: Iterable[str]) -> None:
        """Want `channels` from now on, through every reconnect, until `unsubscribe`. Idempotent.

        Redis is told by the run task, several channels in one command.
        """
        self._subscriptions.want(map(str.encode, channels))
        self._subscriptions_changed.set()

    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Want `channels` no longer. Idempotent; what Redis has already sent still arrives."""
        self._subscriptions.release(map(str.encode, channels))
        self._subscriptions_changed.set()

    async def wait_subscribed(self, channels: Iterable[str]) -> None:
        """Wait until Redis has confirmed all of `channels` on the current connection.

        From then on nothing published to them is missed while the source stays connected. Waits
        through lost connections too, and for ever where a channel is unsubscribed meanwhile.
        """
        await self._wait_confirmed([channel.encode() for channel in channels])

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
                self._connected = self._ready = False
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
            async with self._open_connection(self._connect_timeout_seconds) as connection:
                self._subscriptions.restart()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read, connection)
                    nursery.start_soon(self._write, connection)
                    nursery.start_soon(self._probe)
        except* RedisConnectionError as lost:
            reason = str(lost.exceptions[0])  # the other tasks lost the same connection
        finally:
            self._subscriptions.restart()
        return reason

    def _open_connection(self, timeout_seconds: float) -> AbstractAsyncContextManager[Connection]:
        return open_connection(
            self._url, timeout_seconds=timeout_seconds, client_name=self._client_name
        )

    async def _read(self, connection: Connection) -> None:
        gets = connection.reader.gets
        on_message = self._listener.on_message
        probe_channel = self._probe_channel
        while True:
            received = await connection.receive()
            self._bytes_received += received
            while (reply := gets()) is not INCOMPLETE:
                if isinstance(reply, RedisReplyError):
                    # Refused as a whole (by an ACL that forbids one of the channels, say): none
                    # of the command's channels would ever be heard of, so going on is no option.
                    raise RedisConnectionError(f"Redis refused to subscribe: {reply}")
                kind, channel, payload = reply
                if kind != b"message":
                    self._on_answer(channel)
                elif channel != probe_channel:
                    self._messages += 1
                    on_message(channel, payload)
                else:
                    self._probe_returned.set()

    def _on_answer(self, channel: bytes) -> None:
        self._subscriptions.answered(channel)
        self._confirmations.unpark_all()
        if channel == self._probe_channel:
            self._connections += 1
            self._connected = True
            self._listener.on_connected()
            self._first_attempt_ended.set()

    async def _write(self, connection: Connection) -> None:
        while True:
            self._subscriptions_changed = trio.Event()
            while commands := self._subscriptions.next_commands():
                await connection.send(commands)
            await self._subscriptions_changed.wait()

    async def _wait_confirmed(self, channels: Sequence[bytes]) -> None:
        await trio.lowlevel.checkpoint()
        while not all(map(self._subscriptions.is_confirmed, channels)):
            await self._confirmations.park()

    async def _probe(self) -> None:
        """Prove again and again that what is published to this Redis arrives here.

        A PING on the subscription connection would not do: a replica that lost its primary
        answers it. Nor would a publishing connection that is kept open: after a failover behind a
        DNS name or a virtual address it would talk on to the same wrong server. So each probe
        connects anew.
        """
        while True:
            try:
                with trio.fail_after(self._probe_timeout_seconds):
                    await self._round_trip()
            except (trio.TooSlowError, RedisTimeoutError):
                raise RedisConnectionError(
                    f"probe timeout: nothing came back within {self._probe_timeout_seconds:g} s"
                ) from None
            except (RedisConnectionError, RedisReplyError) as error:
                # A clear no (too many clients, an ACL without PUBLISH) says nothing against the
                # subscription. Giving that up as well would turn a broken probe into an outage.
                self._ready = False
                self._last_error = f"probe not published: {error}"
            else:
                self._ready = True
            await trio.sleep(self._probe_interval_seconds)

    async def _round_trip(self) -> None:
        await self._wait_confirmed([self._probe_channel])
        began = trio.current_time()
        self._probe_returned = trio.Event()
        async with self._open_connection(self._probe_timeout_seconds) as connection:
            await connection.execute("PUBLISH", self._probe_channel, b"")
        await self._probe_returned.wait()
        self._probe_round_trip_seconds = trio.current_time() - began
