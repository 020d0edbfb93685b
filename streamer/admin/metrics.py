"""The statistics in the formats of Prometheus and OpenMetrics.

Every metric is read from the statistics, so that the two never disagree, and the metrics of several
workers are added up with their statistics (`workers.totals`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector


class Shape(enum.Enum):
    """How the figure of a metric looks in the statistics."""

    NUMBERS = enum.auto()
    """A number, or an object of numbers."""
    HISTOGRAM = enum.auto()
    """A `HistogramStatistics`."""
    INFORMATION = enum.auto()
    """An object of texts, which become the labels of a 1."""


@attrs.frozen
class Family:
    """One metric, and the path of its figure in the statistics."""

    name: str
    path: tuple[str, ...]
    help: str
    counts: bool = False
    """Whether it only grows; its name then ends in _total."""
    label: str | None = None
    """The name of the label for the keys, if the figure is an object."""
    shape: Shape = Shape.NUMBERS


FAMILIES: Final = (
    Family(
        "streamer_build_info",
        ("build",),
        "1, with the versions as labels.",
        shape=Shape.INFORMATION,
    ),
    Family(
        "process_cpu_seconds",
        ("process", "cpu_seconds_total"),
        "CPU time of the process, or of all workers.",
        counts=True,
    ),
    Family(
        "process_resident_memory_bytes",
        ("process", "resident_bytes"),
        "Memory of the process, or of all workers.",
    ),
    Family(
        "process_max_fds",
        ("process", "max_open_files"),
        "Files that the process, or all workers, may have open.",
    ),
    Family("streamer_uptime_seconds", ("uptime_seconds",), "Since the start."),
    Family("streamer_connections", ("active_connections",), "Clients connected now."),
    Family(
        "streamer_connections_by_transport",
        ("connections_by_transport",),
        "Clients connected now, over WebSocket and over HTTP.",
        label="transport",
    ),
    Family(
        "streamer_connections_opened",
        ("connections_total",),
        "Clients since the start.",
        counts=True,
    ),
    Family(
        "streamer_connections_refused",
        ("rate_limiting", "connections_refused"),
        "Connections refused or closed for abuse, by cause.",
        counts=True,
        label="cause",
    ),
    Family(
        "streamer_connections_closed",
        ("closes",),
        "Connections that have ended, by the server's close code, or client.",
        counts=True,
        label="code",
    ),
    Family(
        "streamer_ping_round_trip_seconds",
        ("ping_round_trips",),
        "How long clients took to answer pings.",
        shape=Shape.HISTOGRAM,
    ),
    Family(
        "streamer_recoveries",
        ("hub", "recoveries"),
        "Topics that clients came back to, with all that they missed, or a gap.",
        counts=True,
        label="result",
    ),
    Family(
        "streamer_pending_handshakes",
        ("pending_handshakes",),
        "Connections whose handshake is not finished.",
    ),
    Family(
        "streamer_subscriptions",
        ("subscriptions_by_type",),
        "Subscriptions held now.",
        label="type",
    ),
    Family(
        "streamer_topics", ("hub", "topics"), "Topics that have a subscriber, or had one just now."
    ),
    Family(
        "streamer_blocked_clients",
        ("hub", "blocked_clients"),
        "Clients that read more slowly than they are sent to.",
    ),
    Family("streamer_messages_sent", ("messages_sent",), "Data messages written.", counts=True),
    Family(
        "streamer_sent_bytes",
        ("bytes_sent",),
        "Bytes that clients were sent, without TLS.",
        counts=True,
    ),
    Family(
        "streamer_received_bytes",
        ("bytes_received",),
        "Bytes that came from clients after their handshakes, without TLS.",
        counts=True,
    ),
    Family("streamer_messages_queued", ("messages_queued",), "Messages that wait for a client."),
    Family(
        "streamer_messages_conflated",
        ("messages_conflated",),
        "Publications replaced by a newer one before they were sent.",
        counts=True,
    ),
    Family(
        "streamer_messages_dropped",
        ("messages_dropped",),
        "Messages that will never be sent.",
        counts=True,
        label="reason",
    ),
    Family(
        "streamer_delta_checksum_failures",
        ("hub", "delta_checksum_failures"),
        "Topics for which a client asked for whole messages, since a delta did not fit.",
        counts=True,
    ),
    Family(
        "streamer_publications",
        ("hub", "publications"),
        "Publications that were passed on.",
        counts=True,
    ),
    Family(
        "streamer_publications_rejected",
        ("ingest", "rejected"),
        "Publications that did not fit their channel.",
        counts=True,
    ),
    Family(
        "streamer_publications_recovered",
        ("ingest", "recovered"),
        "Publications read from the history after Redis was lost.",
        counts=True,
    ),
    Family(
        "streamer_publications_duplicate",
        ("ingest", "duplicates"),
        "Publications that had been received before.",
        counts=True,
    ),
    Family(
        "streamer_source_steps_back",
        ("ingest", "steps_back"),
        "Times that the positions of a topic began anew within an epoch.",
        counts=True,
    ),
    Family(
        "streamer_history_unreadable",
        ("ingest", "unreadable"),
        "Positions and history entries in Redis that are not valid.",
        counts=True,
    ),
    Family("streamer_flushes", ("batching", "flushes"), "Flushes.", counts=True),
    Family(
        "streamer_flushes_stretched",
        ("batching", "stretched"),
        "Flushes that conflated because the server was behind.",
        counts=True,
    ),
    Family(
        "streamer_flush_duration_seconds",
        ("batching", "durations"),
        "From the beginning of a flush to its end.",
        shape=Shape.HISTOGRAM,
    ),
    Family(
        "streamer_delivery_seconds",
        ("batching", "latencies"),
        "From the first publication of a flush to its write to the last client.",
        shape=Shape.HISTOGRAM,
    ),
    Family(
        "streamer_flush_seconds",
        ("batching", "seconds_total"),
        "Time from the beginning of flushes to their end.",
        counts=True,
    ),
    Family(
        "streamer_flush_window_seconds",
        ("batching", "window_seconds_last"),
        "How long the last window was open.",
    ),
    Family("streamer_writes", ("batching", "writes"), "Writes to sockets.", counts=True),
    Family(
        "streamer_compressors",
        ("compression", "compressors"),
        "Groups of clients that have a compressor of their own.",
    ),
    Family(
        "streamer_compressor_memory_bytes",
        ("compression", "memory_bytes"),
        "Memory of all compressors.",
    ),
    Family(
        "streamer_compressed_messages",
        ("compression", "messages"),
        "Messages compressed, each once for all its receivers.",
        counts=True,
    ),
    Family(
        "streamer_compression_input_bytes",
        ("compression", "input_bytes"),
        "Size of compressed messages before, each once for all its receivers.",
        counts=True,
    ),
    Family(
        "streamer_compression_output_bytes",
        ("compression", "output_bytes"),
        "Size of compressed messages after, each once for all its receivers.",
        counts=True,
    ),
    Family(
        "streamer_compression_full_flushes",
        ("compression", "full_flushes"),
        "Times that a compressor gave up its window for a client that joined its group.",
        counts=True,
    ),
    Family(
        "streamer_compression_skipped_bytes",
        ("compression", "skipped_bytes"),
        "Bytes not compressed because the server was behind, each once for all its receivers.",
        counts=True,
    ),
    Family(
        "streamer_loop_longest_pause_seconds",
        ("loop", "longest_pause_seconds"),
        "Longest turn of the event loop since the start.",
    ),
    Family(
        "streamer_loop_longest_pause_last_minute_seconds",
        ("loop", "longest_pause_seconds_last_minute"),
        "Longest turn of the event loop in the last minute.",
    ),
    Family(
        "streamer_redis_connected", ("redis", "connected"), "1 while the connection to Redis is up."
    ),
    Family("streamer_redis_ready", ("redis", "ready"), "1 while the last probe came back."),
    Family("streamer_redis_messages", ("redis", "messages"), "Messages received.", counts=True),
    Family(
        "streamer_redis_received_bytes",
        ("redis", "bytes_received"),
        "Bytes received, protocol included.",
        counts=True,
    ),
    Family("streamer_redis_reconnects", ("redis", "reconnects"), "Reconnects.", counts=True),
    Family(
        "streamer_redis_probe_seconds",
        ("redis", "probe_round_trip_seconds"),
        "Round trip of the last probe.",
    ),
)


@attrs.frozen
class _Snapshot(Collector):
    statistics: Mapping[str, Any]

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            value = self._find(family)
            if value is None:
                continue  # as without a Redis, or before its first probe
            if family.shape is not Shape.NUMBERS:
                yield _shaped(family, value)
                continue
            make = CounterMetricFamily if family.counts else GaugeMetricFamily
            if family.label is None:
                yield make(family.name, family.help, value=float(value))
                continue
            metric = make(family.name, family.help, labels=(family.label,))
            for key, number in value.items():
                metric.add_metric((key,), float(number))
            yield metric

    def _find(self, family: Family) -> Any:
        value: Any = self.statistics
        for name in family.path:
            value = None if value is None else value.get(name)  # there may be no worker
        return value


def _shaped(family: Family, value: Mapping[str, Any]) -> Metric:
    if family.shape is Shape.HISTOGRAM:
        buckets = [(bound, float(count)) for bound, count in value["buckets"].items()]
        return HistogramMetricFamily(
            family.name, family.help, buckets=buckets, sum_value=float(value["seconds_total"])
        )
    information = GaugeMetricFamily(family.name, family.help, labels=tuple(value))
    information.add_metric(tuple(value.values()), 1.0)
    return information


def exposition(statistics: Mapping[str, Any], accept: str) -> tuple[bytes, str]:
    """Return statistics, in the JSON types of the page, as metrics text, and its content type.

    `accept` is the header of the request: it may ask for OpenMetrics.
    """
    encode, content_type = choose_encoder(accept)
    return encode(_Snapshot(statistics)), content_type
