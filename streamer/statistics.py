"""The statistics of a server: the models of `/v1/ws/stats`, and how they are gathered."""

from __future__ import annotations

import platform
from collections import Counter
from typing import TypeVar

import attrs
import trio

from streamer.broker.reader import PubSubReader, ReaderStatistics
from streamer.edge.acceptor import Acceptor
from streamer.edge.served import Transport
from streamer.histogram import Histogram, HistogramStatistics
from streamer.hub.flush import FlushLoop, FlushStatistics
from streamer.hub.hub import Hub, HubStatistics
from streamer.hub.parts import CLIENTS_PER_PART, Parts, Walk
from streamer.loop_lag import LoopLag, LoopStatistics
from streamer.process_usage import ProcessStatistics, process_statistics
from streamer.source.report import SourceStatistics
from streamer.source.router import Router
from streamer.wire.deflate import Compression, CompressionStatistics

T = TypeVar("T")


@attrs.frozen
class RateLimitStatistics:
    """Frames and connections that were refused."""

    messages_refused: int
    """Frames over the rate limit, of the clients connected now."""
    connections_refused: dict[str, int]
    """Connections since the start, by cause (`edge.admission.Cause`)."""


@attrs.frozen
class ServerStatistics:
    """Every figure that the server counts."""

    build: dict[str, str]
    """The versions of streamer and Python."""
    started_at: str
    uptime_seconds: float
    active_connections: int
    connections_by_transport: dict[str, int]
    """The same, by how they are served: over WebSocket or HTTP (`edge.served.Transport`)."""
    connections_total: int
    """Connections since the start."""
    pending_handshakes: int
    """Connections whose handshake is not finished."""
    subscriptions: int
    subscriptions_by_type: dict[str, int]
    messages_received: int
    """Messages from the clients connected now."""
    messages_sent: int
    bytes_received: int
    bytes_sent: int
    """Bytes of all clients since the start (`hub.traffic.Traffic`)."""
    messages_queued: int
    messages_conflated: int
    messages_dropped: dict[str, int]
    """Messages that will never be sent, by reason."""
    loop: LoopStatistics
    hub: HubStatistics
    batching: FlushStatistics
    rate_limiting: RateLimitStatistics
    compression: CompressionStatistics | None
    """None where the settings turn it off."""
    ingest: SourceStatistics
    process: ProcessStatistics
    closes: dict[str, int]
    """Connections that have ended, by the server's close code; `client` for those that the client
    closed or that broke."""
    ping_round_trips: HistogramStatistics
    """How long clients took to answer pings over WebSocket."""
    redis: ReaderStatistics | None
    """None with the bus in the process."""


def statistics_in_parts(
    hub: Hub,
    flush_loop: FlushLoop,
    acceptor: Acceptor,
    router: Router,
    loop_lag: LoopLag,
    *,
    compression: Compression | None,
    ping_round_trips: Histogram,
    redis: PubSubReader | None,
    version: str,
    started_at: str,
    uptime_seconds: float,
) -> Parts[ServerStatistics]:
    """Gather the statistics in parts, between which the event loop may serve clients."""
    counted = yield from hub.statistics_in_parts()
    sessions = tuple(acceptor.sessions.values())
    transports = Counter(dict.fromkeys(Transport, 0))
    messages_received = messages_refused = 0
    for number, session in enumerate(sessions, 1):
        if number % CLIENTS_PER_PART == 0:
            yield
        transports[session.transport] += 1
        messages_received += session.messages_received
        messages_refused += session.messages_refused
    return ServerStatistics(
        build={"version": version, "python": platform.python_version()},
        started_at=started_at,
        uptime_seconds=uptime_seconds,
        active_connections=len(sessions),
        connections_by_transport={
            transport.value: count for transport, count in transports.items()
        },
        connections_total=acceptor.connections_total,
        pending_handshakes=acceptor.pending_handshakes,
        subscriptions=sum(counted.subscriptions_by_type.values()),
        subscriptions_by_type=counted.subscriptions_by_type,
        messages_received=messages_received,
        messages_sent=counted.messages_delivered,
        bytes_received=hub.traffic.received_bytes,
        bytes_sent=hub.traffic.sent_bytes,
        messages_queued=counted.messages_queued,
        messages_conflated=counted.messages_conflated,
        messages_dropped=counted.messages_dropped,
        loop=loop_lag.statistics(),
        hub=counted,
        batching=flush_loop.statistics(updates_conflated=counted.messages_conflated),
        rate_limiting=RateLimitStatistics(
            messages_refused=messages_refused,
            connections_refused={
                cause.value: count for cause, count in acceptor.refusals.counts.items()
            },
        ),
        compression=None if compression is None else compression.statistics(),
        ingest=router.statistics(),
        process=process_statistics(),
        closes=dict(acceptor.closes),
        ping_round_trips=ping_round_trips.statistics(),
        redis=None if redis is None else redis.statistics(),
    )


async def in_turns(parts: Parts[T]) -> T:
    """Take the parts of a walk, each in a turn of the event loop of its own."""
    walk = Walk(parts)
    for _ in walk:
        await trio.lowlevel.checkpoint()
    return walk.result
