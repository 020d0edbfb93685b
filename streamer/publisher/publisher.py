"""A publisher over one connection, which it reopens when it is lost.

A plain PUBLISH is lost to every server that is not connected. Here one script per publication takes
the topic's next position, stores the text in the topic's history and publishes it, so that all
servers see the same positions and can fetch publications that they missed.

    open_publisher
    └── run             connect; when the connection is lost, wait (full jitter) and connect again
        ├── send        held publications, up to a window of commands without an answer
        └── receive     answers, in the order of the commands; each settles one publication

The callers of `publish` only wait. They do not use the connection, so a cancelled caller leaves
nothing half written or half read.
"""

from __future__ import annotations

import math
import secrets
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final
from weakref import WeakValueDictionary

import attrs
import trio

from streamer.backoff import Backoff
from streamer.broker.connect import (
    INCOMPLETE,
    Command,
    RedisConnectionError,
    RedisReplyError,
    RedisTimeoutError,
    RequestConnection,
    check_url,
    open_connection,
    unexpected_reply,
)
from streamer.broker.keys import sharded_channel
from streamer.broker.replies import is_passing
from streamer.broker.urls import CLUSTER_SCHEMES, has_scheme
from streamer.nursery import open_background_nursery
from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.messages import DataMessage
from streamer.publisher.commands import WINDOW, PlainCommands, PublishCommands, ScriptCommands
from streamer.publisher.destination import Destination, Stream
from streamer.publisher.receipts import PublishFailedError, PublishRefusedError, Receipt

_RECORD_SECONDS: Final = 600
"""How long Redis keeps records of a publisher's last publications, beyond the hold time."""

_BACKOFF_SECONDS: Final = 0.1
_MAX_BACKOFF_SECONDS: Final = 3.0

_MAX_DESTINATIONS: Final = 10_000
"""Channels that are remembered. A publisher to more of them forgets the least recently used, and
the position of their topics, by which it would notice that Redis has lost writes."""


@attrs.frozen
class PublisherStatistics:
    """The state of a publisher; counters begin when it is opened."""

    connected: bool
    held: int
    """Publications that are not acknowledged yet, sent ones included."""
    acknowledged: int
    connections: int
    last_error: str | None


@attrs.define(eq=False)
class _Call:
    """One call of `publish_many` and its outcome."""

    began_seconds: float
    receipts: list[Receipt | None]
    unsettled: int
    refusal: str | None = None
    failure: str | None = None
    """Why publications were given up that Redis has not refused."""
    abandoned: bool = False
    settled: trio.Event = attrs.field(factory=trio.Event)

    def settle(self, index: int, receipt: Receipt | None) -> None:
        self.receipts[index] = receipt
        self.unsettled -= 1
        if not self.unsettled:
            self.settled.set()


@attrs.define(eq=False)
class _Publication:
    number: int
    """Its number among the publisher's publications, over all topics."""
    destination: Destination
    stream: Stream
    text: bytes
    call: _Call
    index: int


class Publisher:
    """Publishes over a connection of its own; made by `open_publisher`.

    Any number of tasks may call it. Publications of one task to one topic stay in order.
    """

    def __init__(
        self,
        url: str,
        *,
        positioned: bool,
        history_length: int,
        history_seconds: float,
        hold_seconds: float,
        hold_messages: int,
        max_publication_bytes: int,
        timeout_seconds: float,
    ) -> None:
        check_url(url)
        self._url = url
        self._sharded = has_scheme(url, CLUSTER_SCHEMES)
        self._id = secrets.token_hex(8)
        self._commands: PublishCommands
        if positioned:
            self._commands = ScriptCommands(
                self._id,
                history_length=history_length,
                history_ms=max(1, round(history_seconds * 1000)),
                record_seconds=math.ceil(hold_seconds) + _RECORD_SECONDS,
            )
        else:
            self._commands = PlainCommands(sharded=self._sharded)
        self._max_text_bytes = max_publication_bytes - self._commands.added_bytes
        self._hold_seconds = hold_seconds
        self._hold_messages = hold_messages
        self._timeout_seconds = timeout_seconds

        self._destinations: OrderedDict[str, tuple[Destination, Stream]] = OrderedDict()
        """By channel, the least recently used first."""
        # A stream lives as long as its destinations and its held publications, since later ones of
        # it must follow these.
        self._streams: WeakValueDictionary[str, Stream] = WeakValueDictionary()

        self._numbers = 0
        self._unsent: deque[_Publication] = deque()
        self._sent: deque[_Publication] = deque()
        self._work = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._answered_seconds = -math.inf
        self._silence = trio.CancelScope()

        self._connected = False
        self._away = False
        """Whether the last attempt to connect failed, so that there may be no room for long."""
        self._connections = 0
        self._acknowledged = 0
        self._last_error: str | None = None

    def statistics(self) -> PublisherStatistics:
        """Return the present state."""
        return PublisherStatistics(
            connected=self._connected,
            held=self._held,
            acknowledged=self._acknowledged,
            connections=self._connections,
            last_error=self._last_error,
        )

    async def publish(self, channel: str, payload: bytes | DataMessage) -> Receipt:
        """Publish one data message and wait until Redis has it.

        `channel` is a topic's (`stock:005930:price`) or a user's (`alerts:u1`); `payload` is the
        JSON text or the model. Raises as `publish_many`.
        """
        (receipt,) = await self.publish_many([(channel, payload)])
        return receipt

    async def publish_many(
        self, publications: Iterable[tuple[str, bytes | DataMessage]]
    ) -> list[Receipt]:
        """Publish (channel, payload) after (channel, payload); return the receipts in that order.

        While Redis is away, they are held, and sent again when it is back, never twice.

        Raises `InvalidPublicationError`, before anything is sent, if one of them does not fit its
        channel or is too large. Raises `PublishFailedError` when Redis has acknowledged nothing for
        the hold time, or at once if it is away and the maximum number of publications is held.
        Without positions it is also raised if the connection is lost before an answer: the
        publication may have been published, and is not sent again. Raises `PublishRefusedError` if
        Redis refuses some of them; the others are published.

        After a cancelled call it is unknown how much of it was published.
        """
        checked = []
        for channel, payload in publications:
            destination, stream = self._destination(channel)
            text = destination.check(payload)
            self.check_size(text)
            checked.append((destination, stream, text))
            if not len(checked) % WINDOW:
                await trio.lowlevel.checkpoint()  # a long call must not hold up other tasks
        await self._wait_for_room(len(checked))
        if not checked:
            return []
        call = _Call(trio.current_time(), [None] * len(checked), len(checked))
        for index, (destination, stream, text) in enumerate(checked):
            self._numbers += 1
            self._unsent.append(_Publication(self._numbers, destination, stream, text, call, index))
        self._work.set()
        try:
            await self._wait_settled(call)
        finally:
            self._withdraw(call)
        return [receipt for receipt in call.receipts if receipt is not None]  # none is None

    def check_size(self, text: bytes) -> None:
        """Raise `InvalidPublicationError` if a text is too large to be published."""
        if len(text) > self._max_text_bytes:
            raise InvalidPublicationError(
                f"{len(text)} bytes, where servers take {self._max_text_bytes} without a position"
            )

    # Waiting

    @property
    def _held(self) -> int:
        return len(self._unsent) + len(self._sent)

    async def _wait_for_room(self, wanted: int) -> None:
        await trio.lowlevel.checkpoint()
        while self._held >= self._hold_messages:
            if self._away:
                reason = f"{self._held} publications are held already; {self._last_error}"
                raise PublishFailedError(reason, [None] * wanted)
            await self._room.park()

    async def _wait_settled(self, call: _Call) -> None:
        while not call.settled.is_set():
            with trio.move_on_at(self._give_up_at(call)):
                await call.settled.wait()
            if not call.settled.is_set() and trio.current_time() >= self._give_up_at(call):
                reason = self._last_error or "no answer from Redis"
                raise PublishFailedError(
                    f"nothing acknowledged for {self._hold_seconds:g} s: {reason}", call.receipts
                )
        if call.refusal is not None:
            raise PublishRefusedError(call.refusal, call.receipts)
        if call.failure is not None:
            raise PublishFailedError(call.failure, call.receipts)

    def _give_up_at(self, call: _Call) -> float:
        # Measured from the last progress: a call with a million publications takes long.
        return max(call.began_seconds, self._answered_seconds) + self._hold_seconds

    def _withdraw(self, call: _Call) -> None:
        """Send nothing more of a call whose caller no longer waits."""
        if not call.settled.is_set():
            call.abandoned = True
            self._unsent = deque(held for held in self._unsent if held.call is not call)
            self._room.unpark_all()

    def _destination(self, channel: str) -> tuple[Destination, Stream]:
        known = self._destinations.get(channel)
        if known is not None:
            self._destinations.move_to_end(channel)
            return known
        destination = Destination.parse(channel)
        # The kinds of a topic share its stream.
        topic = str(destination.topic)
        stream = self._streams.get(topic)
        if stream is None:
            stream = self._streams[topic] = Stream(self._commands.keys(topic))
        if self._sharded:
            destination = attrs.evolve(destination, channel=sharded_channel(channel))
        known = self._destinations[channel] = destination, stream
        if len(self._destinations) > _MAX_DESTINATIONS:
            self._destinations.popitem(last=False)
        return known

    # The connection

    async def run(self) -> None:
        """Keep a connection and send held publications until cancelled (see `open_publisher`)."""
        backoff = Backoff(_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS)
        while True:
            answered_seconds, connections = self._answered_seconds, self._connections
            self._last_error = await self._keep_connection()
            self._away = self._connections == connections
            self._room.unpark_all()
            if self._answered_seconds > answered_seconds:
                backoff.reset()
            await trio.sleep(backoff.next_delay())

    async def _keep_connection(self) -> str:
        """Connect, send and receive until the connection is lost; return why."""
        reason = ""
        try:
            async with open_connection(
                self._url,
                timeout_seconds=self._timeout_seconds,
                client_name=f"streamer-publisher-{self._id}",
            ) as connection:
                self._connected = True
                self._away = False
                self._connections += 1
                self._commands.begin()
                with trio.CancelScope() as self._silence:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._send, connection)
                        nursery.start_soon(self._receive, connection)
                raise RedisTimeoutError(f"no answer within {self._timeout_seconds:g} s")
        except* RedisConnectionError as lost:
            reason = str(lost.exceptions[0])  # the other task lost the same connection
        finally:
            self._connected = False
            self._give_up_or_retry(reason or "the publisher was closed")
        return reason

    def _give_up_or_retry(self, reason: str) -> None:
        """Resend unanswered publications in order, unless that might publish them twice."""
        unanswered = [held for held in self._sent if not held.call.abandoned]
        self._sent.clear()
        if self._commands.retries:
            self._unsent.extendleft(reversed(unanswered))
            return
        for held in unanswered:
            held.call.failure = f"{reason}; it may have been published, and is not sent again"
            held.call.settle(held.index, None)

    async def _send(self, connection: RequestConnection) -> None:
        while True:
            self._work = trio.Event()
            if commands := self._next_commands():
                if self._silence.deadline == math.inf:
                    self._silence.deadline = trio.current_time() + self._timeout_seconds
                await connection.send(commands)
            else:
                await self._work.wait()

    async def _receive(self, connection: RequestConnection) -> None:
        gets = connection.reader.gets
        while True:
            await connection.receive()
            while (reply := gets()) is not INCOMPLETE:
                self._settle(reply)
            silent_until = trio.current_time() + self._timeout_seconds
            self._silence.deadline = silent_until if self._sent else math.inf
            if self._unsent:
                self._work.set()
            if self._held < self._hold_messages:
                self._room.unpark_all()

    def _next_commands(self) -> list[Command]:
        """Return commands for the publications that fit the window, and count them as sent."""
        commands: list[Command] = []
        while self._unsent:
            publication = self._unsent[0]
            oldest = self._sent[0].number if self._sent else publication.number
            if publication.number >= oldest + WINDOW:
                break
            commands.append(self._commands.command(publication, oldest=oldest))
            self._sent.append(self._unsent.popleft())
        return commands

    def _settle(self, reply: Any) -> None:
        """Take the reply to the oldest command."""
        if not self._sent:
            raise unexpected_reply(reply)
        if isinstance(reply, RedisReplyError) and is_passing(reply):
            # The commands after it in the pipeline are sent again, too, in order.
            raise RedisConnectionError(f"Redis cannot publish now: {reply}")
        self._answered_seconds = trio.current_time()
        publication = self._sent[0]
        if isinstance(reply, RedisReplyError):
            self._sent.popleft()
            publication.call.refusal = f"Redis refused {publication.destination.channel}: {reply}"
            publication.call.settle(publication.index, None)
            return
        receipt = self._commands.receipt(publication, reply)
        self._sent.popleft()
        self._acknowledged += 1
        publication.call.settle(publication.index, receipt)


@asynccontextmanager
async def open_publisher(
    url: str,
    *,
    positioned: bool = True,
    history_length: int = 5000,
    history_seconds: float = 300,
    hold_seconds: float = 30,
    hold_messages: int = 10_000,
    max_publication_bytes: int = 262_144,
    timeout_seconds: float = 5,
) -> AsyncIterator[Publisher]:
    """Open a publisher to the Redis at `url` (see `open_connection`) for the length of the block.

    Redis may be away, at the beginning too. Each topic's history in Redis keeps `history_length`
    publications (or up to a hundred more: Redis trims in blocks) for `history_seconds`. While Redis
    is away, up to `hold_messages` publications (and the rest of the call that exceeds that) are
    held for `hold_seconds`. A publication over `max_publication_bytes`, its position included, is
    refused, as by servers with the setting of that name. `timeout_seconds` is how long Redis may
    take to accept a connection or to answer.

    With `positioned` false, each publication is a plain PUBLISH (SPUBLISH in a Cluster), which
    needs no other permission: it has no position and no history, and one whose answer is lost is
    not sent again, since Redis could not tell the retry from a new publication.

    Raises `ValueError` for a URL that is not one of Redis.
    """
    publisher = Publisher(
        url,
        positioned=positioned,
        history_length=history_length,
        history_seconds=history_seconds,
        hold_seconds=hold_seconds,
        hold_messages=hold_messages,
        max_publication_bytes=max_publication_bytes,
        timeout_seconds=timeout_seconds,
    )
    async with open_background_nursery() as nursery:
        nursery.start_soon(publisher.run)
        yield publisher
