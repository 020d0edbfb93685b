"""From the bytes of a channel to a publication in the hub.

Each message is looked up, validated and handed on once. What does not fit its channel is counted by
reason, logged at a bounded rate, and never forwarded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

import attrs
import structlog
import trio

from streamer.hub.hub import Hub
from streamer.hub.streams import TopicStream
from streamer.protocol.codec import decode_publication
from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.messages import GapReason, Position
from streamer.protocol.topics import Kind, SubscriptionType, Topic

_LOG_INTERVAL_SECONDS: Final = 1.0
"""Between two log lines about invalid publications: a broken producer must not fill the disk."""

log = structlog.get_logger()


class Bus(Protocol):
    """What carries channels: Redis, or the bus inside the process."""

    @property
    def connected(self) -> bool:
        """Whether publications arrive."""

    def subscribe(self, channels: Iterable[str]) -> None:
        """Want these channels."""

    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Want them no more."""

    async def wait_subscribed(self, channels: Iterable[str]) -> None:
        """Until nothing published to them can be missed."""


@attrs.frozen
class IngestStatistics:
    """What came from the bus."""

    received: int
    rejected: int
    """Publications that did not fit their channel."""
    last_rejection: str | None
    unrouted: int
    """Messages of channels that had just been released."""


class Ingest:
    """The hub's upstream: it asks the bus for channels and takes what they carry."""

    def __init__(self, *, max_publication_bytes: int, subscribe_timeout_seconds: float) -> None:
        self._max_publication_bytes = max_publication_bytes
        self._subscribe_timeout_seconds = subscribe_timeout_seconds
        self._routes: dict[bytes, tuple[TopicStream, Kind, str | None]] = {}
        self._unproven: set[TopicStream] = set()
        """Streams that may have missed something: they resume with a gap."""
        self._received = 0
        self._rejected = 0
        self._unrouted = 0
        self._last_rejection: str | None = None
        self._log_after_seconds = 0.0
        self._unlogged = 0

    def attach(self, hub: Hub, bus: Bus) -> None:
        """Connect the two; once, before anything is received."""
        self._hub = hub
        self._bus = bus

    # Called by the hub

    def want(self, stream: TopicStream) -> None:
        """Route the channels of a topic to its stream."""
        topic = stream.topic
        # Sectors and watchlists tell of many stocks; a stock's or market's channel of itself alone.
        about_itself = topic.subscription_type in (SubscriptionType.STOCK, SubscriptionType.MARKET)
        for kind in topic.kinds:
            key = topic.target if about_itself else None
            self._routes[topic.channel(kind).encode()] = (stream, kind, key)
        if not self._bus.connected:
            self._unproven.add(stream)
        self._bus.subscribe(_channels(topic))

    def release(self, topic: Topic) -> None:
        """Let go of the channels of a topic."""
        for channel in _channels(topic):
            stream, _, _ = self._routes.pop(channel.encode())
            self._unproven.discard(stream)
        self._bus.unsubscribe(_channels(topic))

    async def wait_ready(self, topics: Iterable[Topic]) -> None:
        """Wait until nothing published to these topics can be missed.

        Not while the bus is down, and not for ever: a client is better off with its subscription
        and a gap later than with no answer.
        """
        if self._bus.connected:
            channels = [channel for topic in topics for channel in _channels(topic)]
            with trio.move_on_after(self._subscribe_timeout_seconds):
                await self._bus.wait_subscribed(channels)

    # Called by the bus

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """Take one message: hot."""
        route = self._routes.get(channel)
        if route is None:
            self._unrouted += 1
            return
        stream, kind, key = route
        self._received += 1
        if len(payload) > self._max_publication_bytes:
            self._reject(channel, f"{len(payload)} bytes, more than {self._max_publication_bytes}")
            return
        try:
            publication = decode_publication(kind, key, payload)
        except InvalidPublicationError as error:
            self._reject(channel, str(error))
            return
        self._hub.publish(stream, kind, publication.text)

    def on_connected(self) -> None:
        """All channels are subscribed (again): streams that may have a hole say so."""
        log.info("source connected")
        for stream in self._unproven:
            position = Position(self._hub.new_epoch(), 0)
            self._hub.start_epoch(stream, GapReason.SOURCE_RECONNECTED, position)
        self._unproven.clear()

    def on_lost(self, reason: str) -> None:
        """The bus is gone: what is published from now on may be missed."""
        log.warning("source lost", reason=reason)
        self._unproven.update(stream for stream, _, _ in self._routes.values())

    def _reject(self, channel: bytes, reason: str) -> None:
        self._rejected += 1
        self._last_rejection = f"{channel.decode(errors='replace')}: {reason}"
        now = trio.current_time()
        if now < self._log_after_seconds:
            self._unlogged += 1
            return
        log.warning(
            "publication rejected",
            channel=channel.decode(errors="replace"),
            reason=reason,
            rejected_since_last_line=self._unlogged + 1,
        )
        self._unlogged = 0
        self._log_after_seconds = now + _LOG_INTERVAL_SECONDS

    def statistics(self) -> IngestStatistics:
        """The counts up to now."""
        return IngestStatistics(
            received=self._received,
            rejected=self._rejected,
            last_rejection=self._last_rejection,
            unrouted=self._unrouted,
        )


def _channels(topic: Topic) -> list[str]:
    return [topic.channel(kind) for kind in topic.kinds]
