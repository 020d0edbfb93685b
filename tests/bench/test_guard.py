"""The decisions of the guard: which figures are worse than the baseline's."""

from __future__ import annotations

import math

import pytest
from click.testing import CliRunner

from bench import guard, packages
from bench.guard import CONNECTS, CPU, P99, SCENARIOS, Guarded, Pair, faults, judge, table
from bench.rig import RigError
from tests.bench.figures import measurement

HOT = Guarded("hot", SCENARIOS[0].workload, (CPU, P99))
CONNECTING = Guarded("connecting", SCENARIOS[0].workload, (CONNECTS,))


def pair(scenario: Guarded, baseline: dict[str, float], candidate: dict[str, float]) -> Pair:
    """Return a round of a scenario."""
    return Pair(scenario, measurement(**baseline), measurement(**candidate))


def cpu(baseline: float, candidate: float) -> Pair:
    """Return a round in which these CPU times for each update were measured."""
    return pair(
        HOT,
        {"server_cpu_us_per_delivery": baseline, "p99_ms": 1},
        {"server_cpu_us_per_delivery": candidate, "p99_ms": 1},
    )


def test_the_median_of_the_ratios_decides() -> None:
    """Two rounds of five may be far off, and a machine that is slow for both does not matter."""
    rounds = [cpu(10, 10.5), cpu(50, 52), cpu(10, 30), cpu(10, 20), cpu(100, 101)]
    verdict, other = judge(rounds, largest_ratio=1.1)
    assert (verdict.scenario, verdict.figure, verdict.is_worse) == ("hot", CPU.title, False)
    assert verdict.ratio == pytest.approx(1.05)
    assert (verdict.baseline, verdict.candidate) == (10, 30)
    assert (other.figure, other.ratio, other.is_worse) == (P99.title, 1, False)


@pytest.mark.parametrize(("candidate", "is_worse"), [(11.0, False), (11.1, True), (1.0, False)])
def test_a_ratio_above_the_largest_one_is_worse(candidate: float, is_worse: bool) -> None:
    """The largest ratio itself is allowed."""
    verdict, _ = judge([cpu(10, candidate)] * 3, largest_ratio=1.1)
    assert verdict.is_worse is is_worse


@pytest.mark.parametrize(("candidate", "is_worse"), [(92.0, False), (89.0, True), (200.0, False)])
def test_a_rate_is_worse_when_it_is_smaller(candidate: float, is_worse: bool) -> None:
    """A rate of 1/1.1 of the baseline's is the least that is allowed."""
    one = pair(CONNECTING, {"connects_per_second": 100}, {"connects_per_second": candidate})
    (verdict,) = judge([one], largest_ratio=1.1)
    assert verdict.is_worse is is_worse
    assert verdict.ratio == pytest.approx(100 / candidate)


def test_a_figure_that_is_missing_is_not_overlooked() -> None:
    """A candidate that connects nobody, or a p99 out of nothing, is worse without bound."""
    nobody = pair(CONNECTING, {"connects_per_second": 100}, {"connects_per_second": 0})
    (verdict,) = judge([nobody], largest_ratio=1.1)
    assert verdict.is_worse
    assert verdict.ratio == math.inf
    late = pair(HOT, {}, {"p99_ms": 3})
    processor, p99 = judge([late], largest_ratio=1.1)
    assert (processor.ratio, processor.is_worse) == (1, False)
    assert (p99.ratio, p99.is_worse) == (math.inf, True)


def test_each_scenario_is_judged_by_itself() -> None:
    """The gain of one does not make up for the loss of another."""
    rounds = [cpu(10, 5), pair(CONNECTING, {"connects_per_second": 9}, {"connects_per_second": 6})]
    verdicts = judge(rounds, largest_ratio=1.1)
    assert [verdict.is_worse for verdict in verdicts] == [False, False, True]
    lines = table(verdicts).splitlines()
    assert [line.endswith("| worse |") for line in lines[2:]] == [False, False, True]


def test_a_candidate_that_loses_updates_is_at_fault() -> None:
    """However fast it is; the baseline's losses are its own."""
    fast = {"server_cpu_us_per_delivery": 1.0}
    rounds = [
        pair(HOT, {"lost": 3}, fast),
        pair(HOT, {}, {**fast, "lost": 2}),
        pair(HOT, {}, {**fast, "violations": 1}),
    ]
    assert faults(rounds) == [
        "hot: 2 updates lost, 0 violations",
        "hot: 0 updates lost, 1 violations",
    ]


@pytest.mark.parametrize(
    ("candidate", "exit_code"),
    [
        ({"server_cpu_us_per_delivery": 10.0, "p99_ms": 2.0}, 0),
        ({"server_cpu_us_per_delivery": 12.0, "p99_ms": 2.0}, 1),
        ({"server_cpu_us_per_delivery": 10.0, "p99_ms": 2.0, "lost": 1}, 1),
    ],
)
def test_the_exit_code_says_whether_it_is_slower(
    candidate: dict[str, float], exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 if nothing is worse, 1 if a figure is, or if updates were lost."""
    one = pair(HOT, {"server_cpu_us_per_delivery": 10.0, "p99_ms": 2.0}, candidate)
    monkeypatch.setattr(packages, "build_revision", lambda *_: packages.ROOT)
    monkeypatch.setattr(packages, "build_working_tree", lambda _: packages.ROOT)
    monkeypatch.setattr(guard, "rounds", lambda *_: iter([one]))
    result = CliRunner().invoke(guard.guard, ["--baseline", "v1"])
    assert result.exit_code == exit_code, result.output
    assert "CPU µs/update" in result.output


def test_a_baseline_that_cannot_be_built_is_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2: nothing was compared."""

    def fail(*_: object) -> None:
        raise RigError("there is no such revision")

    monkeypatch.setattr(packages, "build_revision", fail)
    result = CliRunner().invoke(guard.guard, ["--baseline", "no-such-revision"])
    assert result.exit_code == 2
    assert "there is no such revision" in result.output
