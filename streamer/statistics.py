"""The statistics of a server: the models of `/v1/ws/stats`."""

from __future__ import annotations

import attrs

from streamer.broker.reader import ReaderStatistics
from streamer.histogram import HistogramStatistics
from streamer.hub.flush import FlushStatistics
from streamer.hub.hub import HubStatistics
from streamer.loop_lag import LoopStatistics
from streamer.process_usage import ProcessStatistics
from streamer.source.report import SourceStatistics
from streamer.wire.deflate import CompressionStatistics


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
