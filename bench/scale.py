"""As many clients as one machine carries: memory, latency, pauses, a drain, and the return of all.

The server has several workers, since a process may have only so many files open. The clients
(scaleclient/, in C) keep the position of every topic and check every message by it. They connect,
receive for a while, are dismissed by a SIGTERM to the whole server, and come back to the next one,
with their sessions, while publications continue.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import click

from bench.crowd import CLIENTS_PER_PROCESS, Mix
from bench.measure import markdown
from bench.options import JSON_PATH
from bench.rig import RigError
from bench.scale_rig import Pauses, Plan
from bench.scale_run import Memory, Received, Result, Returned, run

DEFAULT_MIX = ("1:0.96", "10:0.03", "30:0.01")
"""Most clients watch one topic, some a list."""


def _pauses(found: Pauses) -> str:
    return f"{found.longest_ms:.0f} ms ({', '.join(f'{ms:.0f}' for ms in found.each_ms)})"


def _memory(found: Memory) -> str:
    return f"{found.process / 1024:.1f} + {found.kernel / 1024:.1f} KB/client"


def _receiving(plan: Plan, one: Received) -> Iterator[tuple[str, str]]:
    latency = one.latency
    yield "updates/s", f"{one.updates_per_second:,.0f} of {plan.updates_per_second:,.0f} due"
    yield "frames/s", f"{one.frames_per_second:,.0f}"
    yield "merged", f"{one.merged_share:.1%}"
    percentiles = (latency.percentile_ms(share) for share in (0.5, 0.99, 0.999))
    yield "p50, p99, p99.9", f"{', '.join(f'{ms:.0f}' for ms in percentiles)} ms"
    yield "memory, processes + kernel, receiving", _memory(one.memory)
    yield "cores of the workers", f"{one.server_cores:.2f}"
    yield "cores of the load clients", f"{one.load_client_cores:.2f}"
    yield "cores of Redis", f"{one.redis_cores:.2f}"
    yield "a worker waited for a core", f"{one.waiting_share:.1%}"
    yield "machine busy", f"{one.busy_share:.0%}"
    yield "longest pause, receiving", _pauses(one.pauses)


def _returning(one: Returned) -> Iterator[tuple[str, str]]:
    yield "drain", f"{one.drain_seconds:.1f} s; {one.dismissed:,} dismissed"
    yield "without a server", f"{one.start_seconds:.1f} s"
    yield "all back", f"{one.seconds:.1f} s after that"
    p50, p99 = (one.away.percentile_ms(share) / 1000 for share in (0.5, 0.99))
    yield "a client was away", f"{p50:.1f} s, p99 {p99:.1f} s"
    yield "longest pause, return", _pauses(one.pauses)


def _rows(one: Result) -> Iterator[tuple[str, str]]:
    plan, connected, last = one.plan, one.connected, one.last
    mix = ", ".join(f"{part.share:.0%} have {part.topics}" for part in plan.mix)
    yield "figure", ""
    yield "clients", f"{plan.clients:,}, {plan.workers} workers"
    yield "topics", f"{plan.topics:,}; of the clients {mix}"
    yield "publications/s", f"{plan.rate_per_second:,.0f}"
    yield "window", f"{plan.flush_interval_ms:g} ms"
    pace = plan.clients / connected.seconds
    yield "connected in", f"{connected.seconds:.1f} s, {pace:,.0f}/s"
    yield "memory, processes + kernel, quiet", _memory(connected.memory)
    yield "longest pause, connecting", _pauses(connected.pauses)
    yield from _receiving(plan, one.received)
    yield from _returning(one.returned)
    yield "sessions restored", f"{last['returned']:,.0f}"
    yield "missed and replayed", f"{last['replayed']:,.0f} updates"
    yield "cut without a delay", f"{last['cut']:,.0f}"
    yield "not arrived", f"{one.missing:,}"
    yield "faults", ", ".join(f"{n:,} {name}" for name, n in last.faults.items()) or "none"


def table(one: Result) -> str:
    """Return the figures as a Markdown table."""
    return markdown(list(_rows(one)))


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--clients", default=10_000, type=click.IntRange(1, 200_000))
@click.option(
    "--workers",
    default=0,
    type=click.IntRange(0, 64),
    help=f"0: as many as needed, with at most {CLIENTS_PER_PROCESS:,} clients each.",
)
@click.option("--topics", default=2500, type=click.IntRange(1, 99_999))
@click.option(
    "--rate",
    default=1000.0,
    type=click.FloatRange(min=0, min_open=True),
    help="Publications a second, over all topics.",
)
@click.option(
    "--mix",
    default=DEFAULT_MIX,
    multiple=True,
    help="TOPICS:SHARE, a share of the clients and how many topics each has; repeatable.",
)
@click.option("--seconds", default=60.0, type=click.FloatRange(1, 3600), help="Measured.")
@click.option(
    "--flush-interval-ms",
    default=100.0,
    type=click.FloatRange(0),
    help="The server's batching window.",
)
@click.option(
    "--in-flight", default=600, type=click.IntRange(1), help="Handshakes under way at a time."
)
@click.option(
    "--drain-timeout-seconds",
    default=120.0,
    type=click.FloatRange(1),
    help="How long the server waits for its clients to leave.",
)
@click.option(
    "--absence-seconds",
    default=300.0,
    type=click.FloatRange(1),
    help="How long the server keeps sessions and histories, so how long a client may be away.",
)
@click.option(
    "--niceness",
    default=0,
    type=click.IntRange(-20, 19),
    help="Of all parts of the rig; below 0 needs root, and keeps other programs out of the way.",
)
@JSON_PATH
def scale(  # noqa: PLR0917 - one for each option
    clients: int,
    workers: int,
    topics: int,
    rate: float,
    mix: tuple[str, ...],
    seconds: float,
    flush_interval_ms: float,
    in_flight: int,
    drain_timeout_seconds: float,
    absence_seconds: float,
    niceness: int,
    json_path: Path | None,
) -> None:
    """Connect very many clients to one machine, drain them, and have all return.

    Ends with 1 if a client has lost anything, or not got it in the end.
    """
    try:
        parts = [Mix.parse(text) for text in mix]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--mix") from error
    plan = Plan(
        clients,
        workers or max(2, -(-clients // CLIENTS_PER_PROCESS)),
        topics,
        rate,
        parts,
        seconds,
        flush_interval_ms,
        in_flight,
        drain_timeout_seconds,
        absence_seconds,
        niceness,
    )
    try:
        result = run(plan, lambda line: click.echo(line, err=True))
    except RigError as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(1)
    click.echo(table(result))
    if result.warnings:
        click.echo(result.warnings, err=True)
    if json_path is not None:
        json_path.write_text(json.dumps(attrs.asdict(result), indent=1) + "\n")
    sys.exit(1 if result.last.faults or result.missing else 0)
