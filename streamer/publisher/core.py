"""The publisher without I/O: what is held, what is sent next, and what an answer settles.

`streamer.publisher.publisher` (Trio), `.asyncio` and `.sync` (threads) each keep a connection and
wait in their own way. All rules are here, so the guarantees are the same:

- One script per publication takes the topic's next position, stores the text in the topic's history
  and publishes it.
- Publications are held until they are answered. After a lost connection they are sent again, in
  order; the script recognises those that it has carried out.
- Up to a window of commands is sent without an answer.
"""

from __future__ import annotations

import math
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypedDict
from weakref import WeakValueDictionary

import attrs

from streamer.broker.connect import (
    Command,
    RedisConnectionError,
    RedisReplyError,
    check_url,
    unexpected_reply,
)
from streamer.broker.keys import sharded_channel
from streamer.broker.replies import is_passing
from streamer.broker.urls import CLUSTER_SCHEMES, has_scheme
from streamer.protocol.errors import InvalidPublicationError
from streamer.publisher.commands import WINDOW, PlainCommands, PublishCommands, ScriptCommands
from streamer.publisher.destination import Destination, Payload, Stream
from streamer.publisher.receipts import PublishFailedError, PublishRefusedError, Receipt

BACKOFF_SECONDS: Final = 0.1
MAX_BACKOFF_SECONDS: Final = 3.0
"""Bounds of the random pause before a lost connection is reopened."""

_RECORD_SECONDS: Final = 600
"""How long Redis keeps records of a publisher's last publications, beyond the hold time."""

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


@attrs.frozen(kw_only=True)
class PublisherOptions:
    """How a publisher publishes; `open_publisher` describes each.

    Raises ValueError for `hold_seconds` that are not above 0, or not finite.
    """

    positioned: bool = True
    history_length: int = 5000
    history_seconds: float = 300
    hold_seconds: float = attrs.field(
        default=30.0, validator=[attrs.validators.gt(0), attrs.validators.lt(math.inf)]
    )
    """With 0, each call would be overdue before Redis could answer."""
    hold_messages: int = 10_000
    max_publication_bytes: int = 262_144
    timeout_seconds: float = 5


class PublisherArguments(TypedDict, total=False):
    """Keyword arguments of `PublisherOptions`; its defaults hold for those left out."""

    positioned: bool
    history_length: int
    history_seconds: float
    hold_seconds: float
    hold_messages: int
    max_publication_bytes: int
    timeout_seconds: float


@attrs.frozen
class Checked:
    """One publication that fits its channel."""

    destination: Destination
    stream: Stream
    text: bytes


@attrs.define(eq=False)
class Call:
    """Publications that were given to a publisher together, and their outcome."""

    began_seconds: float
    receipts: list[Receipt | None]
    unsettled: int
    on_settled: Callable[[], None]
    """Called when the last of them is settled."""
    refusal: str | None = None
    failure: str | None = None
    """Why publications were given up that Redis has not refused."""
    abandoned: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether nothing of it is held any more."""
        return not self.unsettled

    def settle(self, index: int, receipt: Receipt | None) -> None:
        """Take the outcome of one publication."""
        self.receipts[index] = receipt
        self.unsettled -= 1
        if not self.unsettled:
            self.on_settled()

    def result(self) -> list[Receipt]:
        """Return the receipts of a call that is settled.

        Raises PublishFailedError and PublishRefusedError where some have none.
        """
        if self.refusal is not None:
            raise PublishRefusedError(self.refusal, self.receipts)
        if self.failure is not None:
            raise PublishFailedError(self.failure, self.receipts)
        return [receipt for receipt in self.receipts if receipt is not None]  # none is None


@attrs.define(eq=False)
class _Publication:
    number: int
    """Its number among the publisher's publications, over all topics."""
    checked: Checked
    call: Call
    index: int

    @property
    def destination(self) -> Destination:
        return self.checked.destination

    @property
    def stream(self) -> Stream:
        return self.checked.stream

    @property
    def text(self) -> bytes:
        return self.checked.text


@attrs.frozen
class Attempt:
    """The state of a publisher before an attempt to keep a connection."""

    answered_seconds: float
    connections: int


class PublisherCore:
    """The state of one publisher. It is not safe for several threads: its owner sees to that."""

    def __init__(self, url: str, options: PublisherOptions) -> None:
        """Raises ValueError for a URL that is not one of Redis."""
        check_url(url)
        self.options = options
        self._sharded = has_scheme(url, CLUSTER_SCHEMES)
        publisher_id = secrets.token_hex(8)
        self.client_name = f"streamer-publisher-{publisher_id}"
        self._commands: PublishCommands
        if options.positioned:
            self._commands = ScriptCommands(
                publisher_id,
                history_length=options.history_length,
                history_ms=max(1, round(options.history_seconds * 1000)),
                record_seconds=math.ceil(options.hold_seconds) + _RECORD_SECONDS,
            )
        else:
            self._commands = PlainCommands(sharded=self._sharded)
        self._max_text_bytes = options.max_publication_bytes - self._commands.added_bytes

        self._destinations: OrderedDict[str, tuple[Destination, Stream]] = OrderedDict()
        """By channel, the least recently used first."""
        # A stream lives as long as its destinations and its held publications, since later ones of
        # it must follow these.
        self._streams: WeakValueDictionary[str, Stream] = WeakValueDictionary()

        self._numbers = 0
        self._unsent: deque[_Publication] = deque()
        self._sent: deque[_Publication] = deque()
        self._answered_seconds = -math.inf

        self._connected = False
        self.is_away = False
        """Whether the last attempt to connect failed, so that there may be no room for long."""
        self._connections = 0
        self._acknowledged = 0
        self.last_error: str | None = None

    def statistics(self) -> PublisherStatistics:
        """Return the present state."""
        return PublisherStatistics(
            connected=self._connected,
            held=self._held,
            acknowledged=self._acknowledged,
            connections=self._connections,
            last_error=self.last_error,
        )

    # Publications

    def check(self, channel: str, payload: Payload) -> Checked:
        """Return a publication that fits its channel. Raises InvalidPublicationError."""
        destination, stream = self._destination(channel)
        text = destination.check(payload)
        self.check_size(text)
        return Checked(destination, stream, text)

    def check_size(self, text: bytes) -> None:
        """Raise `InvalidPublicationError` if a text is too large to be published."""
        if len(text) > self._max_text_bytes:
            raise InvalidPublicationError(
                f"{len(text)} bytes, where servers take {self._max_text_bytes} without a position"
            )

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

    @property
    def _held(self) -> int:
        return len(self._unsent) + len(self._sent)

    @property
    def is_full(self) -> bool:
        """Whether as many publications are held as the options allow."""
        return self._held >= self.options.hold_messages

    def has_room(self, wanted: int) -> bool:
        """Whether one more call is taken.

        Raises PublishFailedError where there is none and Redis is away: there may be none for long.
        """
        if not self.is_full:
            return True
        if self.is_away:
            reason = f"{self._held} publications are held already; {self.last_error}"
            raise PublishFailedError(reason, [None] * wanted)
        return False

    def begin(
        self, checked: Sequence[Checked], now_seconds: float, on_settled: Callable[[], None]
    ) -> Call:
        """Hold publications until they are answered; return their call."""
        call = Call(now_seconds, [None] * len(checked), len(checked), on_settled)
        for index, publication in enumerate(checked):
            self._numbers += 1
            self._unsent.append(_Publication(self._numbers, publication, call, index))
        return call

    def gives_up_at(self, call: Call) -> float:
        """Return the time at which a call fails that is not settled."""
        # Measured from the last progress: a call with a million publications takes long.
        return max(call.began_seconds, self._answered_seconds) + self.options.hold_seconds

    def overdue(self, call: Call) -> PublishFailedError:
        """Return the error of a call that has waited for the hold time."""
        reason = self.last_error or "no answer from Redis"
        return PublishFailedError(
            f"nothing acknowledged for {self.options.hold_seconds:g} s: {reason}", call.receipts
        )

    def withdraw(self, call: Call) -> bool:
        """Send nothing more of a call whose caller no longer waits; return whether any was held."""
        if call.is_settled:
            return False
        call.abandoned = True
        self._unsent = deque(held for held in self._unsent if held.call is not call)
        return True

    # The connection

    def connected(self) -> None:
        """Take note of a new connection."""
        self._connected = True
        self.is_away = False
        self._connections += 1
        self._commands.begin()

    def disconnected(self, reason: str) -> None:
        """Resend unanswered publications in order, unless that might publish them twice."""
        self._connected = False
        unanswered = [held for held in self._sent if not held.call.abandoned]
        self._sent.clear()
        if self._commands.retries:
            self._unsent.extendleft(reversed(unanswered))
            return
        for held in unanswered:
            held.call.failure = f"{reason}; it may have been published, and is not sent again"
            held.call.settle(held.index, None)

    def fail(self, reason: str) -> None:
        """Give up everything that is held: nothing will ever be sent again."""
        held = [*self._sent, *self._unsent]
        self._sent.clear()
        self._unsent.clear()
        for publication in held:
            publication.call.failure = reason
            publication.call.settle(publication.index, None)

    def note_attempt(self, attempt: Attempt, reason: str) -> bool:
        """Take note of how an attempt to keep a connection ended; return whether it was any use."""
        self.last_error = reason
        self.is_away = self._connections == attempt.connections
        return self._answered_seconds > attempt.answered_seconds

    def attempt(self) -> Attempt:
        """Return the state before an attempt to keep a connection."""
        return Attempt(self._answered_seconds, self._connections)

    def next_commands(self) -> list[Command]:
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

    @property
    def awaits_answers(self) -> bool:
        """Whether commands are sent and not answered."""
        return bool(self._sent)

    @property
    def has_unsent(self) -> bool:
        """Whether publications wait to be sent."""
        return bool(self._unsent)

    def settle(self, reply: Any, now_seconds: float) -> None:
        """Take the reply to the oldest command.

        Raises RedisConnectionError where Redis cannot publish now: all that is unanswered has to be
        sent again, over a new connection.
        """
        if not self._sent:
            raise unexpected_reply(reply)
        if isinstance(reply, RedisReplyError) and is_passing(reply):
            # The commands after it in the pipeline are sent again, too, in order.
            raise RedisConnectionError(f"Redis cannot publish now: {reply}")
        self._answered_seconds = now_seconds
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
