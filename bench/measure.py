"""One measurement: a Redis, a server, a load, and the resulting figures."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from bench.load import Topic, Workload, run_load
from bench.memory import KernelMemory
from bench.rig import Cores, RigError, running_redis
from bench.servers import Start

STATISTICS_TIMEOUT_SECONDS = 10.0
FAULTS = ("duplicates", "out_of_order", "malformed", "errors")


@attrs.frozen
class Measurement:
    """One run; latency is from just before PUBLISH to receipt, in the parsed sample of clients."""

    clients: int
    topics: int
    rate_per_second: float
    payload_bytes: int
    delivered_per_second: float
    frames_per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    age_max_ms: float
    """The longest time that a client of the sample had a value that was no longer the newest."""
    server_cpu_us_per_delivery: float
    server_cpu_share: float
    """Share of one core, from the start of measuring until everything was drained or given up."""
    server_memory_bytes_per_client: float
    """The growth from the start until all clients are subscribed."""
    server_memory_peak_bytes: float
    """The largest of the run's samples; with slow clients, that of when they read again."""
    connects_per_second: float
    storm_connects_per_second: float
    lost: int
    """Updates that the sample never received although later ones of the topic arrived."""
    undelivered: int
    """Updates that the sample had not received when the run ended."""
    merged: int
    gaps: int
    violations: int
    """Duplicates, messages out of order or not JSON, errors, connections refused or cut off."""
    client_cpu_share: float
    """Share of the load client's core; near 1, the client was measured and not the server."""
    foreign_cpu_share: float
    """Share of both cores that other programs used."""
    server_waiting_share: float
    """Share of the time in which it waited for its core, or its threads for each other."""
    client_waiting_share: float
    """The same for the load client, which may also wait for Redis and the publisher."""
    detail: dict[str, Any]
    longest_pause_ms: float = 0.0
    """The longest turn of the server's event loop, from its start until all clients were closed;
    0 if the server does not report it."""
    bytes_per_update: float = 0.0
    """Bytes that clients read from their sockets for each update, heads of frames included."""
    server_cpu_us_per_connect: float = 0.0
    """For each handshake and its subscriptions, until they were acknowledged; without the storm."""
    kernel_memory_bytes_per_client: float = 0.0
    """The growth of the kernel's memory from the start until all clients are subscribed: half of
    it, since both ends of each connection are on this machine."""
    conflation_ratio: float = 1.0
    """Updates due for each update that the sample received: 1 where nothing is merged."""


@attrs.frozen
class Snapshot:
    """CPU time that the server and Redis had used at one moment of the run."""

    at_seconds: float
    cpu_seconds: float
    redis_cpu_seconds: float
    memory_bytes: int
    waiting_seconds: float
    busy_seconds: float
    """CPU time of both cores, by all programs."""
    kernel: KernelMemory


def price_topics(count: int) -> list[Topic]:
    """Price topics of `count` made-up stocks; with the marker field about 165 bytes a message."""
    head = (
        '{{"type":"price_update","stock_code":"T{:05}","price":72500,"change":500,'
        '"change_percent":0.69,"volume":1234567,"timestamp":"2024-08-09T00:00:00Z"'
    )
    return [Topic(f"stock:T{i:05}:price", head.format(i)) for i in range(count)]


def spread_subscriptions(clients: int, topics: int, per_client: int) -> list[list[int]]:
    """Each client's topics, so that each topic has nearly the same number of clients."""
    return [
        sorted({(client * per_client + k) % topics for k in range(per_client)})
        for client in range(clients)
    ]


def measure(start: Start, workload: Workload, cores: Cores) -> Measurement:
    """Start Redis and a server, run one load against it, stop both.

    Raises:
        RigError: a part of the rig is not available, or failed.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fanout-")))
        redis_port, redis = stack.enter_context(running_redis(directory, cores.client))
        endpoint, server = stack.enter_context(start(directory, cores.server, redis_port))

        def snapshot() -> Snapshot:
            return Snapshot(
                time.monotonic(),
                server.cpu_seconds(),
                redis.cpu_seconds(),
                server.memory_bytes(),
                server.waiting_seconds(),
                cores.busy_seconds(),
                KernelMemory.now(),
            )

        snapshots = {"started": snapshot()}

        def on_event(event: str) -> None:
            snapshots[event] = snapshot()

        try:
            report = run_load(workload, endpoint, core=cores.client, on_event=on_event)
        except RigError as error:
            raise RigError(f"{error}\nThe server said:\n{server.tail()}") from error
        if server.popen.poll() is not None:
            raise RigError(f"The server ended during the run:\n{server.tail()}")
        pause_ms = _longest_pause_ms(endpoint.statistics_url)
    return attrs.evolve(_measurement(workload, report, snapshots), longest_pause_ms=pause_ms)


def _longest_pause_ms(statistics_url: str) -> float:
    if not statistics_url:
        return 0.0
    with urllib.request.urlopen(statistics_url, timeout=STATISTICS_TIMEOUT_SECONDS) as answer:
        pause_seconds: float = json.load(answer)["loop"]["longest_pause_seconds"]
    return 1000 * pause_seconds


def _measurement(
    workload: Workload, report: dict[str, Any], at: dict[str, Snapshot]
) -> Measurement:
    load, clients = workload.load, len(workload.subscriptions)
    sample, slow = report["sample"], report["slow"]
    latency = sample["latency_ms"]
    cpu_seconds = at["drained"].cpu_seconds - at["measuring"].cpu_seconds
    wall_seconds = at["drained"].at_seconds - at["measuring"].at_seconds
    redis_cpu_seconds = at["drained"].redis_cpu_seconds - at["measuring"].redis_cpu_seconds
    rig_cpu_seconds = (
        cpu_seconds
        + redis_cpu_seconds
        + report["client_cpu_seconds"]
        + report.get("publisher_cpu_seconds", 0.0)
    )
    foreign_seconds = at["drained"].busy_seconds - at["measuring"].busy_seconds - rig_cpu_seconds
    delivered = report["messages_measured"]
    connecting_seconds = at["connected"].cpu_seconds - at["started"].cpu_seconds
    connected_bytes = at["connected"].memory_bytes - at["started"].memory_bytes
    kernel_bytes = at["connected"].kernel.sockets_bytes(at["started"].kernel) / 2
    updates = sample["updates"]
    return Measurement(
        clients=clients,
        topics=len(workload.topics),
        rate_per_second=load.rate_per_second or len(workload.schedule) / load.seconds,
        payload_bytes=load.payload_bytes,
        delivered_per_second=report["delivered_per_second"],
        frames_per_second=report["frames_measured"] / wall_seconds,
        p50_ms=latency["p50"],
        p99_ms=latency["p99"],
        p999_ms=latency["p99.9"],
        max_ms=latency["max"],
        age_max_ms=sample["age_ms"]["max"],
        server_cpu_us_per_delivery=1e6 * cpu_seconds / delivered if delivered else 0.0,
        server_cpu_share=cpu_seconds / wall_seconds,
        server_memory_bytes_per_client=connected_bytes / max(1, clients - load.storm),
        server_cpu_us_per_connect=1e6 * connecting_seconds / max(1, clients - load.storm),
        server_memory_peak_bytes=max(one.memory_bytes for one in at.values()),
        connects_per_second=report["connects_per_second"],
        storm_connects_per_second=report.get("storm_connects_per_second", 0.0),
        lost=sample["lost"] + slow["lost"],
        undelivered=sample["undelivered"] + slow["undelivered"],
        merged=sample["merged"] + slow["merged"],
        gaps=sample["gaps"] + slow["gaps"],
        violations=report["failed"]
        + report["ended"]
        + sum(sample[fault] + slow[fault] for fault in FAULTS),
        client_cpu_share=report["client_cpu_share"],
        foreign_cpu_share=max(0.0, foreign_seconds / (2 * wall_seconds)),
        server_waiting_share=(at["drained"].waiting_seconds - at["measuring"].waiting_seconds)
        / wall_seconds,
        client_waiting_share=report["client_waiting_share"],
        bytes_per_update=report["bytes_measured"] / delivered if delivered else 0.0,
        kernel_memory_bytes_per_client=kernel_bytes / max(1, clients - load.storm),
        conflation_ratio=(updates + sample["merged"]) / updates if updates else 1.0,
        detail={
            **report,
            "server_cpu_seconds": cpu_seconds,
            "redis_cpu_seconds": redis_cpu_seconds,
        },
    )


Column = tuple[str, Callable[[Measurement], str]]

COLUMNS: Sequence[Column] = (
    ("clients", lambda m: f"{m.clients:,}"),
    ("topics", lambda m: f"{m.topics:,}"),
    ("publications/s", lambda m: f"{m.rate_per_second:,.0f}"),
    ("delivered/s", lambda m: f"{m.delivered_per_second:,.0f}"),
    ("p50 ms", lambda m: f"{m.p50_ms:.2f}"),
    ("p99 ms", lambda m: f"{m.p99_ms:.2f}"),
    ("p99.9 ms", lambda m: f"{m.p999_ms:.2f}"),
    ("bytes/update", lambda m: f"{m.bytes_per_update:.0f}"),
    ("server µs/delivery", lambda m: f"{m.server_cpu_us_per_delivery:.2f}"),
    ("server core", lambda m: f"{m.server_cpu_share:.0%}"),
    ("KB/client", lambda m: f"{m.server_memory_bytes_per_client / 1024:.1f}"),
    ("connects/s", lambda m: f"{m.connects_per_second:,.0f}"),
    ("lost", lambda m: f"{m.lost:,}"),
    ("undelivered", lambda m: f"{m.undelivered:,}"),
    ("merged", lambda m: f"{m.merged:,}"),
    ("violations", lambda m: f"{m.violations:,}"),
    ("load client core", lambda m: f"{m.client_cpu_share:.0%}"),
    ("waited", lambda m: f"{max(m.server_waiting_share, m.client_waiting_share):.0%}"),
    ("foreign", lambda m: f"{m.foreign_cpu_share:.0%}"),
)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first row is its head."""
    head, *body = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_table(measurements: Sequence[Measurement]) -> str:
    """Return the measurements as a Markdown table, one row each."""
    body = [[show(measurement) for _, show in COLUMNS] for measurement in measurements]
    return markdown([[name for name, _ in COLUMNS], *body])
