"""Measure what clients, publications and workers cost, fit a model, and check it by other points.

    python -m bench scaling

One worker, two workers, and two instances of two workers on a Redis Cluster of three masters with
sharded pub/sub. Processor time is measured, so other programs disturb it little.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import click

from bench.crowd import FIRST_SOURCE, Crowd, Mix, added, running_crowd, subscriptions
from bench.measure import markdown
from bench.rig import CLOCK_TICKS_PER_SECOND, Core, RigError, free_port, running_redis
from bench.scale_rig import Plan, running_publisher, serving
from bench.scaling_model import Demand, Model, Point, Sizing, errors, fit, size
from tests.helpers.redis_topology import ClusterService

TOPICS = 100
RATE = 500.0
CONNECT_SECONDS = 120.0
POLL_SECONDS = 0.2
FEED_RATE = 1000.0
FEED_FRAMES_PER_CLIENT = 0.55
"""The feed of `bench scale`: 1,000 publications/s on 2,500 topics, of which a client has 1.56 on
average; some updates share a frame."""


@attrs.frozen
class Case:
    """A load that is measured."""

    name: str
    clients: int
    workers: int
    instances: int = 1
    is_cluster: bool = False
    rate_per_second: float = RATE


FEW = Case("1 worker, 200 clients", 200, 1)
MANY = Case("1 worker, 2,000 clients", 2000, 1)
CLUSTER = Case("2 instances x 2 workers, Cluster of 3", 2000, 2, instances=2, is_cluster=True)
"""The costs of Redis are fitted to this one, replication included: so they are no less."""
CHECKS = (
    Case("2 workers, 2,000 clients", 2000, 2),
    Case("1 worker, 1,000 clients, 1,000 publications/s", 1000, 1, rate_per_second=1000),
)


@contextlib.contextmanager
def _redis(case: Case, directory: Path, core: Core) -> Iterator[tuple[str, Callable[[], float]]]:
    """Run a Redis or a Cluster; yield its URL and a function for the processor time used."""
    if not case.is_cluster:
        with running_redis(directory, core) as (port, process):
            yield f"redis://127.0.0.1:{port}", process.cpu_seconds
        return
    with ClusterService(calm=True) as cluster:
        pids = [master.pid for master in cluster.masters]
        yield cluster.url, lambda: sum(map(_cpu_seconds, pids))


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS_PER_SECOND


def _wait_live(crowds: Sequence[Crowd], clients: int) -> None:
    deadline = time.monotonic() + CONNECT_SECONDS
    while sum(crowd.status()["live"] for crowd in crowds) < clients:
        if time.monotonic() > deadline:
            raise RigError("The clients did not get connected.")
        time.sleep(POLL_SECONDS)


def measure(case: Case, seconds: float, niceness: int) -> Point:
    """Measure one load.

    Raises:
        RigError: a part of the rig is not available or failed, or a client lost something.
    """
    core = Core(0, niceness, pinned=False)
    mix = [Mix(1, 1.0)]
    plan = Plan(
        case.clients,
        case.workers,
        TOPICS,
        case.rate_per_second,
        mix,
        seconds,
        30.0,
        100,
        10.0,
        300.0,
        niceness,
    )
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scaling-")))
        url, redis_seconds = stack.enter_context(_redis(case, directory, core))
        publisher = stack.enter_context(running_publisher(plan, url, core))
        servers, crowds = [], []
        wanted = subscriptions(case.clients, TOPICS, mix)
        for number in range(case.instances):
            port, own = free_port(), directory / f"instance-{number}"
            own.mkdir()
            servers.append(stack.enter_context(serving(plan, url, port, own / "server.log", core)))
            crowds.append(
                stack.enter_context(
                    running_crowd(
                        own,
                        port,
                        TOPICS,
                        wanted[number :: case.instances],
                        in_flight=100,
                        core=core,
                        first_source=FIRST_SOURCE + 65536 * number,
                    )
                )
            )
        _wait_live(crowds, case.clients)
        publisher.start()
        time.sleep(2)

        def use() -> tuple[float, float, float, float]:
            answers = [answer for crowd in crowds for answer in crowd.ask("status")]
            frames = added(answers)["frames"]
            cpu = sum(server.process.cpu_seconds() for server in servers)
            return time.monotonic(), cpu, redis_seconds(), frames

        before = use()
        time.sleep(seconds)
        after = use()
        wall, cpu, redis_cpu, frames = (b - a for a, b in zip(before, after, strict=True))
        faults = added([answer for crowd in crowds for answer in crowd.ask("status")]).faults
        if faults:
            raise RigError(f"{case.name}: {faults}")
    workers = case.workers * case.instances
    # By chance, a worker with few clients has none for some topics, and does not read those.
    copies = workers * (1 - math.exp(-case.clients / workers / TOPICS))
    return Point(
        case.name,
        workers,
        case.rate_per_second,
        frames / wall,
        cpu / wall,
        redis_cpu / wall,
        copies,
    )


def median_point(points: Sequence[Point]) -> Point:
    """Return the medians of several measurements of one load."""
    return attrs.evolve(
        points[0],
        frames=statistics.median(one.frames for one in points),
        worker_cores=statistics.median(one.worker_cores for one in points),
        redis_cores=statistics.median(one.redis_cores for one in points),
    )


def _cost_rows(model: Model) -> list[tuple[str, ...]]:
    micro = 1e6
    return [
        ("cost", "µs"),
        ("a publication, in each worker", f"{micro * model.worker_publication:.0f}"),
        ("a frame to a client", f"{micro * model.frame:.1f}"),
        ("a publication, in Redis", f"{micro * model.publication:.0f}"),
        ("its copy to a worker, in Redis", f"{micro * model.copy:.1f}"),
    ]


def _point_rows(model: Model, points: Sequence[Point]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (
            "load",
            "frames/s",
            "workers' cores",
            "model ÷ measured",
            "Redis' cores",
            "model ÷ measured",
        )
    ]
    found = zip(points, errors(model, points), strict=True)
    for point, (name, workers, redis) in found:
        rows.append(
            (
                name,
                f"{point.frames:,.0f}",
                f"{point.worker_cores:.3f}",
                f"{workers:.2f}",
                f"{point.redis_cores:.3f}",
                f"{redis:.2f}",
            )
        )
    return rows


def _sizing_row(clients: int, sizing: Sizing) -> tuple[str, ...]:
    return (
        f"{clients:,}",
        f"{sizing.workers:,}",
        f"{sizing.machines:,} ({sizing.bound_by})",
        f"{sizing.memory_bytes / 1e9:.1f} GB",
        f"{sizing.nic_bits / 1e9:.2f} Gbit/s",
        f"{sizing.redis_masters:,}",
        f"{sizing.redis_egress_bits / 1e9:.2f} Gbit/s",
    )


def sizing_rows(model: Model, process_bytes: float, kernel_bytes: float) -> list[tuple[str, ...]]:
    """Return the table of what 100,000, a million and ten million clients need."""
    rows: list[tuple[str, ...]] = [
        (
            "clients",
            "workers",
            "machines (bound by)",
            "memory of each",
            "to clients, each",
            "Redis masters",
            "out of Redis",
        )
    ]
    for clients in (100_000, 1_000_000, 10_000_000):
        demand = Demand(clients, FEED_RATE, FEED_FRAMES_PER_CLIENT, process_bytes, kernel_bytes)
        rows.append(_sizing_row(clients, size(model, demand)))
    return rows


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=3, type=click.IntRange(1, 20), help="Interleaved; medians count.")
@click.option("--seconds", default=10.0, type=click.FloatRange(1, 600), help="Of each load.")
@click.option("--process-kb", default=9.5, help="A client's memory in the server, from `scale`.")
@click.option("--kernel-kb", default=4.0, help="A client's memory in the kernel, from `scale`.")
@click.option("--niceness", default=0, type=click.IntRange(-20, 19), help="Of all parts.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path))
def scaling(  # noqa: PLR0917 - one for each option
    rounds: int,
    seconds: float,
    process_kb: float,
    kernel_kb: float,
    niceness: int,
    json_path: Path | None,
) -> None:
    """Fit a model of cost to measured loads, check it, and size 100,000 to 10,000,000 clients."""
    cases = (FEW, MANY, CLUSTER, *CHECKS)
    measured: dict[str, list[Point]] = {case.name: [] for case in cases}
    try:
        for number in range(rounds):
            for case in cases:
                point = measure(case, seconds, niceness)
                measured[case.name].append(point)
                click.echo(f"{number + 1} {point}", err=True)
    except RigError as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(1)
    points = [median_point(found) for found in measured.values()]
    model = fit(*points[:3])
    for rows in (
        _cost_rows(model),
        _point_rows(model, points),
        sizing_rows(model, 1024 * process_kb, 1024 * kernel_kb),
    ):
        click.echo(markdown(rows) + "\n")
    if json_path is not None:
        found = {"model": attrs.asdict(model), "points": [attrs.asdict(one) for one in points]}
        json_path.write_text(json.dumps(found, indent=1) + "\n")
