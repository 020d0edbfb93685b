"""One pub/sub connection to one Redis server.

PubSubConnection.run
├── reader      socket -> hiredis -> on_messages, once for each read
├── writer      SUBSCRIBE and UNSUBSCRIBE, as the wanted channels change
└── probe       publishes to a channel of its own and expects it back through the reader
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeAlias

import attrs
import trio

from streamer.broker.connection import (
    INCOMPLETE,
    Connection,
    RedisConnectionError,
    RedisReplyError,
    RedisTimeoutError,
    open_server,
    unexpected_reply,
)
from streamer.broker.pubsub_state import CHANNELS, Dialect, PubSubState
from streamer.broker.replies import is_forbidden

Message: TypeAlias = tuple[bytes, bytes]
"""Channel and payload."""

_SHOWN_CHARACTERS: Final = 100
"""Characters of a channel's name that an error message shows."""


@attrs.define
class PubSubTotals:
    """Totals of a reader's pub/sub connections, former ones included."""

    messages: int = 0
    bytes_received: int = 0
    probe_round_trip_seconds: float | None = None


@attrs.frozen
class PubSubContext:
    """Settings and callbacks shared by a reader's pub/sub connections.

    Channels are named as in Redis.
    """

    client_name: str
    connect_timeout_seconds: float
    probe_interval_seconds: float
    probe_timeout_seconds: float
    on_messages: Callable[[list[Message]], None]
    on_subscribed: Callable[[], None]
    """Called when every channel that was wanted at the start of a connection is settled."""
    on_refused: Callable[[bytes, str], None]
    """Called with a channel that Redis begins to refuse, and the reason."""
    on_accepted: Callable[[bytes], None]
    """Called with a channel that Redis no longer refuses."""
    on_probe_failed: Callable[[str], None]
    """Called when Redis refuses a probe, which does not mean that publications are missed."""
    refused: dict[bytes, str] = attrs.field(factory=dict)
    """The wanted channels that Redis refuses, each with the reason."""
    traffic: PubSubTotals = attrs.field(factory=PubSubTotals)
    answers: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    """Unparked when Redis has confirmed or refused a channel."""


class PubSubConnection:
    """Reads the wanted channels from one server; `run` is called again after a connection is lost.

    A channel that Redis forbids does not affect the others. It is tried again after each probe,
    since permissions may change.
    """

    def __init__(
        self, url: str, context: PubSubContext, probe_channel: bytes, dialect: Dialect = CHANNELS
    ) -> None:
        self._url = url
        self._context = context
        self._dialect = dialect
        self._probe_channel = probe_channel
        self._probe_returned = trio.Event()
        self.state = PubSubState(probe_channel, dialect, refused=context.refused)
        self._state_changed = trio.Event()
        self.ready = False
        """Whether the last probe came back."""

    @property
    def subscribed(self) -> bool:
        """Whether every channel that was wanted at the start of the connection is settled."""
        return self.state.is_confirmed(self._probe_channel)

    def want(self, channels: Iterable[bytes]) -> None:
        """Subscribe to channels, on later connections too, until `release`."""
        self.state.want(channels)
        self._state_changed.set()

    def release(self, channels: Iterable[bytes]) -> None:
        """Unsubscribe from channels."""
        self.state.release(channels)
        self._state_changed.set()

    async def run(self) -> None:
        """Connect, subscribe and read until the connection is lost.

        Raises RedisConnectionError, in groups.
        """
        try:
            async with self._open_connection(self._context.connect_timeout_seconds) as connection:
                self.state.restart()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read, connection)
                    nursery.start_soon(self._write, connection)
                    nursery.start_soon(self._probe)
        finally:
            self.state.restart()
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
                try:
                    kind, channel, payload = reply
                except (TypeError, ValueError):
                    messages = self._pass_on(messages)
                    self._on_error(reply)
                    continue
                if kind != message:
                    messages = self._pass_on(messages)
                    self._on_confirmation(kind, channel)
                elif channel != probe_channel:
                    messages.append((channel, payload))
                else:
                    self._probe_returned.set()
            messages = self._pass_on(messages)

    def _pass_on(self, messages: list[Message]) -> list[Message]:
        """Hand the messages to the reader's handler; return a list for those that follow."""
        if messages:
            self._context.traffic.messages += len(messages)
            try:
                self._context.on_messages(messages)
            except Exception:
                # Types are checked only after a failure: a check of each message would slow the
                # hot path.
                for message in messages:
                    if not all(isinstance(word, bytes) for word in message):
                        raise unexpected_reply(message) from None
                raise
        return []

    def _on_error(self, reply: Any) -> None:
        """Take a reply that is neither a message nor a confirmation."""
        if not isinstance(reply, RedisReplyError):
            raise unexpected_reply(reply)
        reason = str(reply)
        refused = self.state.refuse(reason) if is_forbidden(reply) else None
        if refused is None:
            raise RedisConnectionError(f"Redis refused to subscribe: {reason}")
        for channel in refused:
            self._context.on_refused(channel, reason)
        self._on_answer()

    def _on_confirmation(self, kind: Any, channel: Any) -> None:
        if kind not in self._dialect.confirmations or not isinstance(channel, bytes):
            raise unexpected_reply((kind, channel))
        if not self.state.confirm(channel):
            # A Cluster unsubscribes clients from a slot that moves to another server.
            name = channel.decode(errors="replace")[:_SHOWN_CHARACTERS]
            raise RedisConnectionError(f"unsubscribed by Redis: {name} has moved")
        refused = self._context.refused
        if channel in refused and self.state.is_confirmed(channel):
            del refused[channel]
            self._context.on_accepted(channel)
        self._on_answer()
        if channel == self._probe_channel:
            self._context.on_subscribed()

    def _on_answer(self) -> None:
        if self.state.has_commands:
            self._state_changed.set()
        self._context.answers.unpark_all()

    async def _write(self, connection: Connection) -> None:
        while True:
            self._state_changed = trio.Event()
            while commands := self.state.next_commands():
                await connection.send(commands)
            await self._state_changed.wait()

    async def _probe(self) -> None:
        """Prove periodically that publications to this Redis arrive here.

        A PING on the pub/sub connection is not enough: a replica that lost its primary answers it.
        A publishing connection that is kept open is not enough either: after a failover behind a
        DNS name or a virtual address it would still be one to the old server. So each probe opens a
        new connection.
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
                # A refusal (too many clients, an ACL without PUBLISH) does not mean that the
                # subscription is broken: ending it would turn a broken probe into an outage.
                self.ready = False
                self._context.on_probe_failed(f"probe not published: {error}")
            else:
                self.ready = True
            await trio.sleep(self._context.probe_interval_seconds)
            if self._context.refused:
                self.state.retry_refused()
                self._state_changed.set()

    async def _round_trip(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self.subscribed:
            await self._context.answers.park()
        began = trio.current_time()
        self._probe_returned = trio.Event()
        async with self._open_connection(self._context.probe_timeout_seconds) as connection:
            await connection.execute(self._dialect.publish, self._probe_channel, b"")
        await self._probe_returned.wait()
        self._context.traffic.probe_round_trip_seconds = trio.current_time() - began
