"""Fan-out of `streamer serve`: delivered updates, latency, and what the server spends on them.

python -m bench.fanout --clients 100 --clients 1000 --rate 100
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from bench import servers
from bench.load import Load, Topic, run_load
from bench.rig import Cores, RigError, running_redis
from bench.servers import Start


@attrs.frozen
class Measurement:
    """One run; latency is from just before PUBLISH to receipt, in the parsed sample of clients."""

    clients: int
    topics: int
    rate_per_second: float
    payload_bytes: int
    delivered_per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    server_cpu_us_per_delivery: float
    server_cpu_share: float
    """Of one core, from the start of measuring until everything was drained or given up."""
    server_memory_bytes_per_client: float
    connects_per_second: float
    lost: int
    """Updates the sample never received although later ones of the topic came."""
    undelivered: int
    """Updates still not there for the sample when the run ended."""
    merged: int
    violations: int
    """Duplicates, messages out of order or not JSON, errors, connections refused or cut off."""
    client_cpu_share: float
    """Of the load client's core; near 1 the client, not the server, is what was measured."""
    detail: dict[str, Any]


@attrs.frozen
class Snapshot:
    """What the server and Redis had used at one moment of the run."""

    at_seconds: float
    cpu_seconds: float
    redis_cpu_seconds: float
    memory_bytes: int


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


def measure(
    start: Start,
    load: Load,
    topics: Sequence[Topic],
    subscriptions: Sequence[Sequence[int]],
    cores: Cores,
) -> Measurement:
    """Start Redis and a server, run one load against it, stop both.

    Raises:
        RigError: a part of the rig could not be had, or failed.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fanout-")))
        redis_port, redis = stack.enter_context(running_redis(directory, cores.client))
        endpoint, server = stack.enter_context(start(directory, cores.server, redis_port))

        def snapshot() -> Snapshot:
            return Snapshot(
                time.monotonic(), server.cpu_seconds(), redis.cpu_seconds(), server.memory_bytes()
            )

        snapshots = {"started": snapshot()}

        def on_event(event: str) -> None:
            snapshots[event] = snapshot()

        try:
            report = run_load(
                load, endpoint, topics, subscriptions, core=cores.client, on_event=on_event
            )
        except RigError as error:
            raise RigError(f"{error}\nThe server said:\n{server.tail()}") from error
    return _measurement(load, len(topics), len(subscriptions), report, snapshots)


def _measurement(
    load: Load, topics: int, clients: int, report: dict[str, Any], at: dict[str, Snapshot]
) -> Measurement:
    sample, slow = report["sample"], report["slow"]
    latency = sample["latency_ms"]
    cpu_seconds = at["drained"].cpu_seconds - at["measuring"].cpu_seconds
    delivered = report["messages_measured"]
    faults = ("duplicates", "out_of_order", "malformed", "errors")
    redis_cpu_seconds = at["drained"].redis_cpu_seconds - at["measuring"].redis_cpu_seconds
    connected_bytes = at["connected"].memory_bytes - at["started"].memory_bytes
    return Measurement(
        clients=clients,
        topics=topics,
        rate_per_second=load.rate_per_second,
        payload_bytes=load.payload_bytes,
        delivered_per_second=report["delivered_per_second"],
        p50_ms=latency["p50"],
        p99_ms=latency["p99"],
        p999_ms=latency["p99.9"],
        max_ms=latency["max"],
        server_cpu_us_per_delivery=1e6 * cpu_seconds / delivered if delivered else 0.0,
        server_cpu_share=cpu_seconds / (at["drained"].at_seconds - at["measuring"].at_seconds),
        server_memory_bytes_per_client=connected_bytes / max(1, clients - load.storm),
        connects_per_second=report["connects_per_second"],
        lost=sample["lost"] + slow["lost"],
        undelivered=sample["undelivered"] + slow["undelivered"],
        merged=sample["merged"] + slow["merged"],
        violations=sum(sample[name] + slow[name] for name in faults)
        + report["failed"]
        + report["ended"],
        client_cpu_share=report["client_cpu_share"],
        detail={
            **report,
            "server_cpu_seconds": cpu_seconds,
            "redis_cpu_seconds": redis_cpu_seconds,
        },
    )


COLUMNS: Sequence[tuple[str, Callable[[Measurement], str]]] = (
    ("clients", lambda m: f"{m.clients:,}"),
    ("topics", lambda m: f"{m.topics:,}"),
    ("publications/s", lambda m: f"{m.rate_per_second:,.0f}"),
    ("delivered/s", lambda m: f"{m.delivered_per_second:,.0f}"),
    ("p50 ms", lambda m: f"{m.p50_ms:.2f}"),
    ("p99 ms", lambda m: f"{m.p99_ms:.2f}"),
    ("p99.9 ms", lambda m: f"{m.p999_ms:.2f}"),
    ("server µs/delivery", lambda m: f"{m.server_cpu_us_per_delivery:.2f}"),
    ("server core", lambda m: f"{m.server_cpu_share:.0%}"),
    ("KB/client", lambda m: f"{m.server_memory_bytes_per_client / 1024:.1f}"),
    ("connects/s", lambda m: f"{m.connects_per_second:,.0f}"),
    ("lost", lambda m: f"{m.lost:,}"),
    ("undelivered", lambda m: f"{m.undelivered:,}"),
    ("merged", lambda m: f"{m.merged:,}"),
    ("violations", lambda m: f"{m.violations:,}"),
    ("load client core", lambda m: f"{m.client_cpu_share:.0%}"),
)


def markdown_table(measurements: Sequence[Measurement]) -> str:
    """The measurements as a Markdown table, one row each."""
    rows = [[name for name, _ in COLUMNS], ["---:" for _ in COLUMNS]]
    rows += [[show(measurement) for _, show in COLUMNS] for measurement in measurements]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _runs(clients: Sequence[int], rates: Sequence[float]) -> Iterator[tuple[int, float]]:
    yield from ((count, rate) for count in clients for rate in rates)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option(
    "--clients",
    multiple=True,
    default=(1, 100, 1000),
    type=click.IntRange(1, 10_000),
    help="Connections; repeat for more runs.",
)
@click.option(
    "--rate",
    "rates",
    multiple=True,
    default=(100.0,),
    type=click.FloatRange(min=0),
    help="Publications a second over all topics; repeat for more runs. 0 measures idle clients.",
)
@click.option(
    "--topics", default=1, type=click.IntRange(1, 100_000), help="Topics published to in turn."
)
@click.option(
    "--topics-per-client",
    default=1,
    type=click.IntRange(1, 500),
    help="Topics each client subscribes to.",
)
@click.option(
    "--payload-bytes",
    default=165,
    type=click.IntRange(1, 60_000),
    help="Size that publications are padded to.",
)
@click.option(
    "--seconds", default=5.0, type=click.FloatRange(0.1, 3600), help="How long to measure each run."
)
@click.option(
    "--warmup-seconds",
    default=0.5,
    type=click.FloatRange(0, 60),
    help="Publishing before measuring.",
)
@click.option(
    "--sample",
    default=50,
    type=click.IntRange(0),
    help="Clients that parse all they receive; the others count.",
)
@click.option(
    "--slow",
    default=0,
    type=click.IntRange(0),
    help="Clients that stop reading when measuring starts.",
)
@click.option(
    "--slow-seconds", default=2.0, type=click.FloatRange(0), help="For how long these do."
)
@click.option(
    "--flush-interval-ms",
    default=0.0,
    type=click.FloatRange(0),
    help="The server's batching window.",
)
@click.option(
    "--serve-flag",
    "serve_flags",
    multiple=True,
    help="One more argument for `streamer serve`; repeatable.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write all figures to this file.",
)
def main(  # noqa: PLR0917 - one for each option
    clients: tuple[int, ...],
    rates: tuple[float, ...],
    topics: int,
    topics_per_client: int,
    payload_bytes: int,
    seconds: float,
    warmup_seconds: float,
    sample: int,
    slow: int,
    slow_seconds: float,
    flush_interval_ms: float,
    serve_flags: tuple[str, ...],
    json_path: Path | None,
) -> None:
    """Measure the fan-out of `streamer serve` on this machine.

    Starts a real Redis, the server on a core of its own, and on another core a load client in C
    that publishes at the given rate, receives, and checks loss and order. Prints a Markdown table.
    """
    flags = ("--flush-interval-ms", f"{flush_interval_ms:g}", *serve_flags)

    start = servers.streamer(*flags)
    done: list[Measurement] = []
    try:
        for count, rate in _runs(clients, rates):
            click.echo(f"{count:,} clients, {rate:,.0f} publications/s …", err=True)
            load = Load(
                rate_per_second=rate,
                seconds=seconds,
                payload_bytes=payload_bytes,
                warmup_seconds=warmup_seconds,
                sample=min(sample, count - min(slow, count)),
                slow=min(slow, count),
                slow_seconds=slow_seconds,
            )
            per_client = spread_subscriptions(count, topics, min(topics, topics_per_client))
            done.append(measure(start, load, price_topics(topics), per_client, Cores.available()))
    except RigError as error:
        click.echo(f"bench.fanout: error: {error}", err=True)
        sys.exit(1)
    finally:
        if done:
            click.echo(markdown_table(done))
            if json_path is not None:
                json_path.write_text(
                    json.dumps([attrs.asdict(one) for one in done], indent=1) + "\n"
                )


if __name__ == "__main__":
    main()
