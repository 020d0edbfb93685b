"""Guard the hot path: fail if this working tree is slower than the last release.

Both run the core scenarios in turn, round after round, so that a slow minute of the machine meets
both. What counts is the ratio of the two within a round, and of those the median.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import attrs
import click

from bench import packages
from bench.load import Load, Workload
from bench.measure import Measurement, markdown, measure, price_topics, spread_subscriptions
from bench.options import NICENESS, ROUNDS
from bench.rig import Cores, RigError
from bench.scenarios import order_books
from bench.servers import streamer

LARGEST_RATIO = 1.10
"""Above the noise of five rounds on an otherwise idle machine; smaller losses need more rounds."""

FLAGS = ("--flush-interval-ms", "0")


@attrs.frozen
class Figure:
    """A figure of a measurement that is compared."""

    title: str
    read: Callable[[Measurement], float]
    is_better_when_larger: bool = False

    def ratio(self, baseline: Measurement, candidate: Measurement) -> float:
        """Return by which factor the candidate is worse; below 1, it is better.

        A figure that only the candidate has is infinitely worse, or better, than none.
        """
        before, after = self.read(baseline), self.read(candidate)
        if self.is_better_when_larger:
            before, after = after, before
        if not before:
            return math.inf if after else 1.0
        return after / before


CPU = Figure("CPU µs/update", lambda one: one.server_cpu_us_per_delivery)
P99 = Figure("p99 ms", lambda one: one.p99_ms)
DELIVERED = Figure("delivered/s", lambda one: one.delivered_per_second, is_better_when_larger=True)
CONNECT_CPU = Figure("CPU µs/connect", lambda one: one.server_cpu_us_per_connect)
CONNECTS = Figure("connects/s", lambda one: one.connects_per_second, is_better_when_larger=True)
MEMORY = Figure("memory/client", lambda one: one.server_memory_bytes_per_client)


@attrs.frozen
class Guarded:
    """A core scenario, and the figures that must not get worse."""

    name: str
    workload: Callable[[float], Workload]
    """The load, for a number of seconds."""
    figures: Sequence[Figure]


def _updates(clients: int, topics: int, per_client: int, rate: float, seconds: float) -> Workload:
    subscriptions = spread_subscriptions(clients, topics, per_client)
    return Workload(Load(rate, seconds), price_topics(topics), subscriptions)


def _connects(clients: int, topics: int, per_client: int, seconds: float) -> Workload:
    del seconds  # it ends when all are connected
    load = Load(0, 1, settle_seconds=1, sample=50)
    subscriptions = spread_subscriptions(clients, topics, per_client)
    return Workload(load, price_topics(topics), subscriptions)


SCENARIOS = (
    Guarded("hot-topic", partial(_updates, 1000, 1, 1, 200), (CPU, P99)),
    Guarded("many-topics", partial(_updates, 200, 500, 20, 2000), (CPU, P99)),
    Guarded("order-books", order_books, (CPU, P99)),
    Guarded("watchlists", partial(_updates, 2000, 500, 30, 2000), (CPU, DELIVERED)),
    Guarded("connects", partial(_connects, 2000, 100, 1), (CONNECT_CPU, CONNECTS, MEMORY)),
    Guarded("connects-30-topics", partial(_connects, 1000, 500, 30), (CONNECT_CPU, CONNECTS)),
)


@attrs.frozen
class Pair:
    """The measurements of one scenario in one round."""

    scenario: Guarded
    baseline: Measurement
    candidate: Measurement


@attrs.frozen
class Verdict:
    """A figure of a scenario over all rounds."""

    scenario: str
    figure: str
    baseline: float
    candidate: float
    """Medians of the rounds."""
    ratio: float
    """The median of the rounds' ratios: above 1, the candidate is worse."""
    is_worse: bool


def judge(pairs: Sequence[Pair], *, largest_ratio: float) -> list[Verdict]:
    """Judge all figures of all scenarios; each needs at least one pair."""
    verdicts = []
    for scenario in dict.fromkeys(pair.scenario for pair in pairs):
        rounds = [pair for pair in pairs if pair.scenario is scenario]
        for figure in scenario.figures:
            ratio = statistics.median(figure.ratio(one.baseline, one.candidate) for one in rounds)
            verdicts.append(
                Verdict(
                    scenario.name,
                    figure.title,
                    statistics.median(figure.read(one.baseline) for one in rounds),
                    statistics.median(figure.read(one.candidate) for one in rounds),
                    ratio,
                    is_worse=ratio > largest_ratio,
                )
            )
    return verdicts


def faults(pairs: Sequence[Pair]) -> list[str]:
    """Describe the rounds in which the candidate lost messages or broke a rule, for people."""
    return [
        f"{pair.scenario.name}: {one.lost} updates lost, {one.violations} violations"
        for pair in pairs
        if (one := pair.candidate).lost or one.violations
    ]


def rounds(
    count: int, chosen: Sequence[Guarded], paths: Sequence[Path], seconds: float, cores: Cores
) -> Iterator[Pair]:
    """Measure the scenarios `count` times with the packages of two paths, baseline first.

    Each begins every other round. Raises RigError.
    """
    for number in range(count):
        for scenario in chosen:
            workload = scenario.workload(seconds)
            order = paths if number % 2 == 0 else [*reversed(paths)]
            found = {
                path: measure(streamer(*FLAGS, package=path), workload, cores) for path in order
            }
            baseline, candidate = paths
            yield Pair(scenario, found[baseline], found[candidate])


def table(verdicts: Sequence[Verdict]) -> str:
    """Return the verdicts as a Markdown table."""
    head = ("scenario", "figure", "baseline", "now", "ratio", "")
    body = [
        (
            one.scenario,
            one.figure,
            f"{one.baseline:,.2f}",
            f"{one.candidate:,.2f}",
            f"{one.ratio:.3f}",
            "worse" if one.is_worse else "",
        )
        for one in verdicts
    ]
    return markdown([head, *body])


def _baseline(given: str | None) -> Path:
    if given is not None and given.endswith(".whl"):
        return packages.unpack_wheel(Path(given).absolute(), "baseline")
    revision = given or packages.last_release() or "HEAD"
    click.echo(f"baseline: {revision}", err=True)
    return packages.build_revision(revision, "baseline")


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option(
    "--baseline",
    help="A wheel (*.whl) or a git revision. Default: the last release, or the last commit if "
    "there has been none.",
)
@ROUNDS
@click.option(
    "--seconds", default=5.0, type=click.FloatRange(0.5, 600), help="Measured in each run."
)
@click.option(
    "--largest-ratio",
    default=LARGEST_RATIO,
    type=click.FloatRange(min=1),
    help="The factor by which a median may be worse.",
)
@click.option(
    "--scenario",
    "names",
    multiple=True,
    type=click.Choice([scenario.name for scenario in SCENARIOS]),
    help="Repeatable; default all.",
)
@NICENESS
def guard(  # noqa: PLR0917 - one for each option
    baseline: str | None,
    count: int,
    seconds: float,
    largest_ratio: float,
    names: tuple[str, ...],
    niceness: int,
) -> None:
    """Fail if this working tree is slower than a baseline.

    Both are built as wheels, and run on this Python with the same dependencies.
    """
    chosen = [scenario for scenario in SCENARIOS if not names or scenario.name in names]
    pairs: list[Pair] = []
    try:
        paths = _baseline(baseline), packages.build_working_tree("candidate")
        for pair in rounds(count, chosen, paths, seconds, Cores.available(niceness)):
            pairs.append(pair)
            ratios = ", ".join(
                f"{figure.title} {figure.ratio(pair.baseline, pair.candidate):.3f}"
                for figure in pair.scenario.figures
            )
            click.echo(f"{pair.scenario.name}: {ratios}", err=True)
    except RigError as error:
        click.echo(f"bench guard: error: {error}", err=True)
        sys.exit(2)
    verdicts = judge(pairs, largest_ratio=largest_ratio)
    click.echo(table(verdicts))
    wrong = faults(pairs)
    for fault in wrong:
        click.echo(fault, err=True)
    worse = sum(verdict.is_worse for verdict in verdicts)
    click.echo(f"{worse} of {len(verdicts)} figures are worse than {largest_ratio:g} times as good")
    sys.exit(1 if worse or wrong else 0)
