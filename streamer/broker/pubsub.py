"""One subscription connection to one Redis server.

PubSubConnection.run
├── reader      socket -> hiredis -> on_messages, once for each read
├── writer      SUBSCRIBE and UNSUBSCRIBE: what is wanted and Redis was not told yet
└── probe       publishes to a channel of its own and expects it back through the reader
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import attrs
import trio

from streamer.broker.connection import (
    INCOMPLETE,
    Connection,
    RedisConnectionError,
    RedisReplyError,
    RedisTimeoutError,
    open_server,
)
from streamer.broker.pubsub_state import CHANNELS, Dialect, PubSubState

Message: TypeAlias = tuple[bytes, bytes]
"""Channel and payload."""


@attrs.define
class Traffic:
    """What came over a source's links, those before included."""

    messages: int = 0
    bytes_received: int = 0
    probe_round_trip_seconds: float | None = None


@attrs.frozen
class PubSubContext:
    """What the links of a source have in common."""

    client_name: str
    connect_timeout_seconds: float
    probe_interval_seconds: float
    probe_timeout_seconds: float
    on_messages: Callable[[list[Message]], None]
    on_subscribed: Callable[[], None]
    """All that was wanted of a link when its connection was made is confirmed."""
    on_probe_failed: Callable[[str], None]
    """Redis did not take a probe; says nothing against what it delivers."""
    traffic: Traffic = attrs.field(factory=Traffic)
    confirmations: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    """Unparked when Redis has confirmed something."""


class PubSubConnection:
    """Reads the channels that are wanted of one server, one connection after the other."""

    def __init__(
        self, url: str, context: PubSubContext, probe_channel: bytes, dialect: Dialect = CHANNELS
    ) -> None:
        self._url = url
        self._context = context
        self._dialect = dialect
        self._probe_channel = probe_channel
        self._probe_returned = trio.Event()
        self.subscriptions = PubSubState(probe_channel, dialect)
        self._subscriptions_changed = trio.Event()
        self.ready = False
        """The last probe came back."""

    @property
    def subscribed(self) -> bool:
        """All that was wanted when the connection was made is confirmed."""
        return self.subscriptions.is_confirmed(self._probe_channel)

    def want(self, channels: Iterable[bytes]) -> None:
        """Want these channels, on later connections too."""
        self.subscriptions.want(channels)
        self._subscriptions_changed.set()

    def release(self, channels: Iterable[bytes]) -> None:
        """Want them no longer."""
        self.subscriptions.release(channels)
        self._subscriptions_changed.set()

    async def run(self) -> None:
        """Connect, subscribe and read until the connection is lost.

        Raises RedisConnectionError, in groups.
        """
        try:
            async with self._open_connection(self._context.connect_timeout_seconds) as connection:
                self.subscriptions.restart()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read, connection)
                    nursery.start_soon(self._write, connection)
                    nursery.start_soon(self._probe)
        finally:
            self.subscriptions.restart()
            self.ready = False

    def _open_connection(self, timeout_seconds: float) -> AbstractAsyncContextManager[Connection]:
        return open_server(
            self._url, timeout_seconds=timeout_seconds, client_name=self._context.client_name
        )

    async def _read(self, connection: Connection) -> None:
        gets = connection.reader.gets
        traffic = self._context.traffic
        message = self._dialect.message
        probe_channel = self._probe_channel
        messages: list[Message] = []
        while True:
            received = await connection.receive()
            traffic.bytes_received += received
            while (reply := gets()) is not INCOMPLETE:
                if isinstance(reply, RedisReplyError):
                    self._pass_on(messages)
                    # Refused as a whole (by an ACL that forbids one of the channels, say): none
                    # of the command's channels would ever be heard of, so going on is no option.
                    raise RedisConnectionError(f"Redis refused to subscribe: {reply}")
                kind, channel, payload = reply
                if kind != message:
                    messages = self._pass_on(messages)
                    self._on_answer(channel)
                elif channel != probe_channel:
                    messages.append((channel, payload))
                else:
                    self._probe_returned.set()
            messages = self._pass_on(messages)

    def _pass_on(self, messages: list[Message]) -> list[Message]:
        """Give the messages to who wants them; returns the list for those that follow."""
        if messages:
            self._context.traffic.messages += len(messages)
            self._context.on_messages(messages)
        return []

    def _on_answer(self, channel: bytes) -> None:
        if not self.subscriptions.answered(channel):
            raise RedisConnectionError(f"unsubscribed by Redis: {channel.decode()} has moved")
        self._context.confirmations.unpark_all()
        if channel == self._probe_channel:
            self._context.on_subscribed()

    async def _write(self, connection: Connection) -> None:
        while True:
            self._subscriptions_changed = trio.Event()
            while commands := self.subscriptions.next_commands():
                await connection.send(commands)
            await self._subscriptions_changed.wait()

    async def _probe(self) -> None:
        """Prove again and again that what is published to this Redis arrives here.

        A PING on the subscription connection would not do: a replica that lost its primary
        answers it. Nor would a publishing connection that is kept open: after a failover behind a
        DNS name or a virtual address it would talk on to the same wrong server. So each probe
        connects anew.
        """
        timeout_seconds = self._context.probe_timeout_seconds
        while True:
            try:
                with trio.fail_after(timeout_seconds):
                    await self._round_trip()
            except (trio.TooSlowError, RedisTimeoutError):
                raise RedisConnectionError(
                    f"probe timeout: nothing came back within {timeout_seconds:g} s"
                ) from None
            except (RedisConnectionError, RedisReplyError) as error:
                # A clear no (too many clients, an ACL without PUBLISH) says nothing against the
                # subscription. Giving that up as well would turn a broken probe into an outage.
                self.ready = False
                self._context.on_probe_failed(f"probe not published: {error}")
            else:
                self.ready = True
            await trio.sleep(self._context.probe_interval_seconds)

    async def _round_trip(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self.subscribed:
            await self._context.confirmations.park()
        began = trio.current_time()
        self._probe_returned = trio.Event()
        async with self._open_connection(self._context.probe_timeout_seconds) as connection:
            await connection.execute(self._dialect.publish, self._probe_channel, b"")
        await self._probe_returned.wait()
        self._context.traffic.probe_round_trip_seconds = trio.current_time() - began
