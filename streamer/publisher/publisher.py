"""For producers: publish with a position, once and in order, through whatever befalls Redis.

A plain PUBLISH is gone when nobody heard it. Here one script per publication takes the topic's next
position, keeps the text in the topic's history and publishes it, so that every server sees the same
positions and can fetch what it missed.

    open_publisher
    └── run             connect; when the connection is lost, wait (full jitter) and connect again
        ├── send        what is held, up to a window of commands without an answer
        └── receive     answers, in the order of the commands; each settles one publication

The callers of `publish` only wait. The connection is no concern of theirs, so one that is cancelled
leaves nothing half written or half read.
"""

from __future__ import annotations

import hashlib
import math
import random
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, Final

import attrs
import trio

from streamer.broker.connect import (
    INCOMPLETE,
    Command,
    RedisConnectionError,
    RedisReplyError,
    RedisTimeoutError,
    RequestConnection,
    check_url,
    open_connection,
)
from streamer.broker.keys import history_key, position_key, published_key, sharded_channel
from streamer.broker.replies import is_passing
from streamer.broker.urls import CLUSTER_SCHEMES, has_scheme
from streamer.protocol.messages import DataMessage, Position
from streamer.publisher.destination import Destination, Stream

_SCRIPT: Final = files(__package__).joinpath("publish.lua").read_bytes()
_SCRIPT_SHA1: Final = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest()

_WINDOW: Final = 128
"""Publications sent and not yet answered: enough to keep Redis busy over a network's delay."""

_RECORD_SECONDS: Final = 600
"""How long Redis remembers a publisher's last publications, beyond the time that they are held."""

_BACKOFF_SECONDS: Final = 0.1
_MAX_BACKOFF_SECONDS: Final = 3.0


class PublishFailedError(Exception):
    """Redis did not acknowledge every publication of a call.

    `receipts` has one for each that was acknowledged and None for the others, in the order of the
    call. An unacknowledged publication may still have been published: the answer can be what was
    lost. Publishing it again is a new publication.
    """

    def __init__(self, reason: str, receipts: Sequence[Receipt | None]) -> None:
        self.reason = reason
        self.receipts = tuple(receipts)
        self.unacknowledged = tuple(
            index for index, receipt in enumerate(receipts) if receipt is None
        )
        super().__init__(
            f"{len(self.unacknowledged)} of {len(receipts)} not acknowledged: {reason}"
        )


class PublishRefusedError(PublishFailedError):
    """Redis answered that it will not publish, and would again (permissions, a wrong key)."""


@attrs.frozen
class Receipt:
    """Redis' answer to one publication."""

    position: Position | None
    """Its place in the topic's stream; None where the publisher gives no positions."""
    receivers: int
    """Subscriptions that received it: servers, not their clients."""


@attrs.frozen
class PublisherStatistics:
    """What `Publisher.statistics` returns; counters begin when the publisher is opened."""

    connected: bool
    held: int
    """Publications that are not acknowledged yet, those under way included."""
    acknowledged: int
    connections: int
    last_error: str | None


@attrs.define(eq=False)
class _Call:
    """One call of `publish_many`, and what has become of it."""

    began_seconds: float
    receipts: list[Receipt | None]
    unsettled: int
    refusal: str | None = None
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
    """Counted by the publisher, over all topics."""
    destination: Destination
    stream: Stream
    text: bytes
    call: _Call
    index: int


class Publisher:
    """Publishes over one connection of its own; made by `open_publisher`.

    Any number of tasks may call it. What one task publishes after another, on one topic, stays in
    that order.
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
        timeout_seconds: float,
    ) -> None:
        check_url(url)
        self._url = url
        self._sharded = has_scheme(url, CLUSTER_SCHEMES)
        self._positioned = positioned
        self._history = (history_length, max(1, round(history_seconds * 1000)))
        self._record_seconds = math.ceil(hold_seconds) + _RECORD_SECONDS
        self._hold_seconds = hold_seconds
        self._hold_messages = hold_messages
        self._timeout_seconds = timeout_seconds

        self._id = secrets.token_hex(8)
        self._destinations: dict[str, tuple[Destination, Stream]] = {}
        self._streams: dict[str, Stream] = {}

        self._numbers = 0
        self._unsent: deque[_Publication] = deque()
        self._sent: deque[_Publication] = deque()
        self._last_sent: dict[Stream, int] = {}
        """Number of the last publication that this connection has been sent."""
        self._candidate_epoch = ""
        self._work = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._answered_seconds = -math.inf
        self._silence = trio.CancelScope()

        self._connected = False
        self._away = False
        """The last attempt to connect failed: longer than a reconnect, nothing makes room."""
        self._connections = 0
        self._acknowledged = 0
        self._last_error: str | None = None

    def statistics(self) -> PublisherStatistics:
        """A snapshot."""
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

        Raises `InvalidPublicationError` before anything is sent, where one of them does not fit its
        channel. Raises `PublishFailedError` when Redis has acknowledged nothing for the hold time,
        or at once where it is away and as many publications are held as may be. Raises
        `PublishRefusedError` when Redis refuses some of them, which stops none of the others.

        A call that is cancelled leaves open what of it was published.
        """
        checked = []
        for channel, payload in publications:
            destination, stream = self._destination(channel)
            checked.append((destination, stream, destination.check(payload)))
            if not len(checked) % _WINDOW:
                await trio.lowlevel.checkpoint()  # a long call holds nobody up
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

    # What callers wait for

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

    def _give_up_at(self, call: _Call) -> float:
        # Progress counts, not age: a call of a million takes its time.
        return max(call.began_seconds, self._answered_seconds) + self._hold_seconds

    def _withdraw(self, call: _Call) -> None:
        """Send nothing more of a call that nobody waits for."""
        if not call.settled.is_set():
            call.abandoned = True
            self._unsent = deque(held for held in self._unsent if held.call is not call)
            self._room.unpark_all()

    def _destination(self, channel: str) -> tuple[Destination, Stream]:
        known = self._destinations.get(channel)
        if known is None:
            destination = Destination.parse(channel)
            if self._sharded:
                destination = attrs.evolve(destination, channel=sharded_channel(channel))
            # The kinds of a topic share its stream.
            name = str(destination.topic)
            stream = self._streams.get(name)
            if stream is None:
                keys = [published_key(name, self._id)]
                if self._positioned:
                    keys += [position_key(name), history_key(name)]
                stream = self._streams[name] = Stream(tuple(keys))
            known = self._destinations[channel] = destination, stream
        return known

    # The connection

    async def run(self) -> None:
        """Keep a connection and send what is held, until cancelled; `open_publisher` does this."""
        backoff_seconds = _BACKOFF_SECONDS
        while True:
            answered_seconds, connections = self._answered_seconds, self._connections
            self._last_error = await self._keep_connection()
            self._away = self._connections == connections
            self._room.unpark_all()
            if self._answered_seconds > answered_seconds:
                backoff_seconds = _BACKOFF_SECONDS
            await trio.sleep(random.uniform(0, backoff_seconds))  # noqa: S311 - guards nothing
            backoff_seconds = min(2 * backoff_seconds, _MAX_BACKOFF_SECONDS)

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
                self._candidate_epoch = secrets.token_hex(8)
                with trio.CancelScope() as self._silence:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._send, connection)
                        nursery.start_soon(self._receive, connection)
                raise RedisTimeoutError(f"no answer within {self._timeout_seconds:g} s")
        except* RedisConnectionError as lost:
            reason = str(lost.exceptions[0])  # the other task lost the same connection
        finally:
            self._connected = False
            self._last_sent.clear()
            unanswered = [held for held in self._sent if not held.call.abandoned]
            self._unsent.extendleft(reversed(unanswered))
            self._sent.clear()
        return reason

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
        """What there is to send and the window has room for."""
        commands: list[Command] = []
        while self._unsent:
            publication = self._unsent[0]
            oldest = self._sent[0].number if self._sent else publication.number
            if publication.number >= oldest + _WINDOW:
                break
            commands.append(self._command(publication, oldest))
            self._sent.append(self._unsent.popleft())
            self._last_sent[publication.stream] = publication.number
        return commands

    def _command(self, publication: _Publication, oldest: int) -> Command:
        number, stream = publication.number, publication.stream
        # What is answered need not have gone before: Redis may have lost it since.
        prior = self._last_sent.get(stream, 0)
        prior = prior if prior >= oldest else 0
        # The first command makes the script known to Redis.
        script = ("EVALSHA", _SCRIPT_SHA1) if self._last_sent else ("EVAL", _SCRIPT)
        common = (
            *script,
            len(stream.keys),
            *stream.keys,
            number,
            number % _WINDOW,
            prior,
            self._record_seconds,
            publication.destination.channel,
            publication.text[:-1],
        )
        if len(stream.keys) == 1:
            return common
        known = stream.position
        return (
            *common,
            publication.destination.kind,
            # No two are alike, even if Redis loses everything twice on one connection.
            f"{self._candidate_epoch}.{number}",
            *((known.epoch, known.sequence) if known else ("", 0)),
            *self._history,
        )

    def _settle(self, reply: Any) -> None:
        """Take the answer to the oldest command."""
        if isinstance(reply, RedisReplyError) and is_passing(reply):
            # What is in the pipeline behind it is sent again, too, in the order that it had.
            raise RedisConnectionError(f"Redis cannot publish now: {reply}")
        self._answered_seconds = trio.current_time()
        publication = self._sent.popleft()
        if isinstance(reply, RedisReplyError):
            publication.call.refusal = f"Redis refused {publication.destination.channel}: {reply}"
            publication.call.settle(publication.index, None)
            return
        epoch, sequence, receivers = reply
        stream = publication.stream
        position = Position(epoch.decode(), sequence) if len(stream.keys) > 1 else None
        stream.position = position
        self._acknowledged += 1
        publication.call.settle(publication.index, Receipt(position, receivers))


@asynccontextmanager
async def open_publisher(
    url: str,
    *,
    positioned: bool = True,
    history_length: int = 1000,
    history_seconds: float = 300,
    hold_seconds: float = 30,
    hold_messages: int = 10_000,
    timeout_seconds: float = 5,
) -> AsyncIterator[Publisher]:
    """A publisher to the Redis at `url` (see `open_connection`), inside the block.

    Redis may be away, at the beginning too. Each topic's history in Redis keeps `history_length`
    publications (or up to a hundred more: Redis trims by the block) for `history_seconds`. While
    Redis is away, `hold_messages` publications are held (and what is left of the call that passes
    that) for `hold_seconds`. `timeout_seconds` is how long Redis may take to accept a connection or
    to answer. With `positioned` false, what is published has no position and no history, as with
    any other program's PUBLISH.

    Raises `ValueError` for a URL that is none.
    """
    publisher = Publisher(
        url,
        positioned=positioned,
        history_length=history_length,
        history_seconds=history_seconds,
        hold_seconds=hold_seconds,
        hold_messages=hold_messages,
        timeout_seconds=timeout_seconds,
    )
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publisher.run)
        try:
            yield publisher
        except Exception as error:  # noqa: BLE001 - raised below
            # Through the nursery it would be a group, of which the caller knows nothing.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
