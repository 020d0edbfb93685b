"""Scenarios x servers x rounds, interleaved; each measurement is saved as it is made."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from bench import install
from bench.load import Load, Workload
from bench.measure import Measurement, measure, price_topics, spread_subscriptions
from bench.rig import Cores, RigError
from bench.scenarios import Scenario
from bench.servers import SERVERS, Server

# A server that delivers less than this share gets no higher load in that round.
OVERLOADED_SHARE = 0.9
# A measurement with more disturbance is repeated.
DISTURBED_SHARE = 0.08
DISTURBED_TRIES = 2

LIMIT = "limit"
LATEST = "limit-latest"
LIMIT_P99_MS = 100.0
LIMIT_CLIENTS = 1000
LIMIT_FIRST_RATE = 25.0
LIMIT_LAST_RATE = 20_000.0
LIMIT_HALVINGS = 3  # to within 9 %
LIMIT_ATTEMPTS = 3
LIMIT_PASSES = 2
LIMIT_SECONDS = 3.0


@attrs.frozen
class Record:
    """One measurement of the comparison, or why there is none."""

    round: int
    scenario: str
    label: str
    x: float
    server: str
    measurement: Measurement | None = None
    error: str | None = None

    def to_json(self) -> str:
        """Return the record as one line."""
        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Read the record from its line."""
        fields = json.loads(line)
        if fields["measurement"] is not None:
            fields["measurement"] = Measurement(**fields["measurement"])
        return cls(**fields)


def environment() -> dict[str, str]:
    """Return the machine, kernel and versions on which the figures depend."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    found = {
        "processor": f"{len(model)} x {model[0]}" if model else platform.processor(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    for name, versions in (("python peers", install.python_versions), ("node", _node_version)):
        try:
            found[name] = versions()
        except RigError as error:
            found[name] = str(error)
    return found


def _node_version() -> str:
    try:
        done = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise RigError("There is no node on this machine.") from error
    return done.stdout.strip()


def _attempt(
    server: Server, workload: Callable[[], Workload], cores: Cores
) -> tuple[Measurement | None, str | None]:
    """Return the least disturbed of a few attempts; repeat only if other programs disturb it."""
    best: Measurement | None = None
    load = workload()
    try:
        for _ in range(DISTURBED_TRIES):
            result = measure(server.start, load, cores)
            if best is None or _disturbance(result) < _disturbance(best):
                best = result
            if _disturbance(best) < DISTURBED_SHARE:
                break
    except RigError as error:
        return None, str(error)
    return best, None


def _disturbance(measurement: Measurement) -> float:
    """Return how much other programs interfered: they ran while a part of the rig waited."""
    waited = max(measurement.server_waiting_share, measurement.client_waiting_share)
    return min(measurement.foreign_cpu_share, waited)


def _chosen(scenario: Scenario, servers: Sequence[str], turn: int) -> list[Server]:
    """Return the servers of a scenario, beginning with another one in each round."""
    wanted = scenario.servers or [one.name for one in SERVERS.values() if not one.only_if_named]
    names = [name for name in servers if name in wanted]
    turn %= max(1, len(names))
    return [SERVERS[name] for name in names[turn:] + names[:turn]]


def rounds(
    count: int, found: Sequence[Scenario], servers: Sequence[str], cores: Cores
) -> Iterator[Record]:
    """Measure everything `count` times, round after round."""
    for number in range(count):
        for scenario in found:
            overloaded: set[str] = set()
            for case in scenario.cases:
                for server in _chosen(scenario, servers, number):
                    if server.name in overloaded:
                        continue
                    result, error = _attempt(server, case.workload, cores)
                    yield Record(
                        number, scenario.name, case.label, case.x, server.name, result, error
                    )
                    if result is None or _is_overloaded(result):
                        overloaded.add(server.name)


def _is_overloaded(measurement: Measurement) -> bool:
    detail = measurement.detail
    if not detail.get("published"):
        return False
    due_per_second: float = (
        detail["expected"] / detail["published"] * detail["published_per_second"]
    )
    return measurement.delivered_per_second < OVERLOADED_SHARE * due_per_second


def limits(name: str, count: int, servers: Sequence[str], cores: Cores) -> Iterator[Record]:
    """Find the highest rate that 1,000 clients on one topic sustain, `count` times.

    `name` is LIMIT, where nothing may be merged, or LATEST, for servers that merge what waits for a
    client: there what is delivered has to be in time.
    """
    chosen = [
        server
        for server in servers
        if not SERVERS[server].only_if_named and (name == LIMIT or SERVERS[server].merges)
    ]
    for number in range(count):
        turn = number % max(1, len(chosen))
        for server in [*chosen[turn:], *chosen[:turn]]:
            best, error = _highest_rate(SERVERS[server], name, cores)
            rate = best.rate_per_second if best is not None else 0.0
            yield Record(number, name, "", rate, server, best, error)


def sustained(measurement: Measurement, name: str) -> bool:
    """Whether nothing was lost or late, and for LIMIT nothing merged either."""
    return (
        measurement.lost + measurement.undelivered + measurement.violations == 0
        and (name == LATEST or measurement.merged == 0)
        and 0 < measurement.p99_ms < LIMIT_P99_MS
    )


def _highest_rate(server: Server, name: str, cores: Cores) -> tuple[Measurement | None, str | None]:
    """Double the rate until it fails, with one attempt each; then bisect, with several attempts."""
    best: Measurement | None = None
    low, high = 0.0, LIMIT_FIRST_RATE
    while high < LIMIT_LAST_RATE:
        passed, error = _sustains(server, name, high, cores, 1)
        if passed is not None:
            best, low, high = passed, high, 2 * high
        elif best is None:
            return None, error
        else:
            break
    for _ in range(LIMIT_HALVINGS):
        middle = math.sqrt(low * high)
        passed, _ = _sustains(server, name, middle, cores, LIMIT_PASSES)
        if passed is None:
            high = middle
        else:
            best, low = passed, middle
    return best, None


def _sustains(
    server: Server, name: str, rate: float, cores: Cores, passes: int
) -> tuple[Measurement | None, str | None]:
    """Return the last passing measurement if enough attempts pass."""
    # A message that is a second late has failed already, so it is not waited for.
    load = Load(rate, LIMIT_SECONDS, drain_seconds=1)
    workload = Workload(load, price_topics(1), spread_subscriptions(LIMIT_CLIENTS, 1, 1))
    for attempt in range(LIMIT_ATTEMPTS):
        try:
            result = measure(server.start, workload, cores)
        except RigError as failure:
            return None, str(failure)
        if sustained(result, name):
            passes -= 1
            if passes == 0:
                return result, None
        if passes > LIMIT_ATTEMPTS - 1 - attempt:
            break
    return None, None
