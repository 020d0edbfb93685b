"""The report of measurements: medians, ratios and Markdown tables."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import attrs

from bench.byte_scenarios import byte_scenarios
from bench.compare import (
    LATEST,
    LIMIT,
    LIMIT_ATTEMPTS,
    LIMIT_CLIENTS,
    LIMIT_P99_MS,
    LIMIT_PASSES,
    Record,
)
from bench.measure import Measurement, markdown
from bench.scenarios import Scenario
from bench.servers import SERVERS

RAW_LOOP = "raw-send"
OURS = "streamer"

INTRODUCTION = (
    "Written by `python -m bench compare`; how it measures is in `bench/README.md`. Medians of up "
    "to {rounds} interleaved rounds, with the lowest and highest p99 of the rounds beside it. "
    "Latency is from just before PUBLISH to receipt, over a sample of clients parsed in full. The "
    "server has a core of its own; Redis, publisher and load client share another. `our p99 ÷` "
    "and `our CPU ÷` are streamer's figure (interval 0) divided by that of the row: below 1, "
    "streamer is better. `CPU ÷ C loop` is the row's CPU per update divided by the C loop's. "
    "`load client` is its share of its core, `waited` how much of the time server or load "
    "client waited for their core: where either is large, the row says little. What was aimed at, "
    "what was not reached and why: [limits](limits.md)."
)
_ATTEMPTS = f"in {LIMIT_PASSES} of {LIMIT_ATTEMPTS} attempts"
LIMIT_EXPLANATION = (
    f"Updates that one core delivers in time: {LIMIT_CLIENTS:,} clients on one topic; nothing "
    f"lost, nothing merged, p99 under {LIMIT_P99_MS:.0f} ms, {_ATTEMPTS}. The kernel's memory is "
    "that of the server's end of each connection."
)
LATEST_EXPLANATION = (
    "The same where updates that wait for a client may be merged into the newest one: nothing "
    f"lost, p99 of what is delivered under {LIMIT_P99_MS:.0f} ms, {_ATTEMPTS}. `due ÷ delivered` "
    "is the conflation ratio."
)


@attrs.frozen
class Median:
    """The medians of one case and server over the rounds."""

    values: Mapping[str, float]
    rounds: int
    spread_p99_ms: tuple[float, float]
    """Lowest and highest."""

    @classmethod
    def of(cls, measurements: Sequence[Measurement]) -> Median:
        """Compute the medians of at least one measurement."""
        names = [field.name for field in attrs.fields(Measurement) if field.name != "detail"]
        values = {name: median(getattr(one, name) for one in measurements) for name in names}
        p99 = [one.p99_ms for one in measurements]
        return cls(values, len(measurements), (min(p99), max(p99)))


Medians = Mapping[tuple[str, str, str], Median]
"""(scenario, label, server) -> medians."""


def medians(records: Iterable[Record]) -> Medians:
    """Return the medians of all measurements."""
    groups: defaultdict[tuple[str, str, str], list[Measurement]] = defaultdict(list)
    for record in records:
        if record.measurement is not None:
            groups[record.scenario, record.label, record.server].append(record.measurement)
    return {key: Median.of(group) for key, group in groups.items()}


Show = Callable[[Median], str]


def _as_milliseconds(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value / 1000:.1f} s"


def _milliseconds(name: str) -> Show:
    return lambda of: _as_milliseconds(of.values[name])


def _p99(of: Median) -> str:
    middle = _as_milliseconds(of.values["p99_ms"])
    if of.rounds == 1:
        return middle
    return f"{middle} ({' to '.join(map(_as_milliseconds, of.spread_p99_ms))})"


def _count(name: str) -> Show:
    return lambda of: f"{of.values[name]:,.0f}"


def _decimal(name: str) -> Show:
    return lambda of: f"{of.values[name]:.1f}"


def _share(name: str) -> Show:
    return lambda of: f"{of.values[name]:.0%}"


_LATENCY: Sequence[tuple[str, Show]] = (
    ("p50 ms", _milliseconds("p50_ms")),
    ("p99 ms", _p99),
    ("p99.9 ms", _milliseconds("p999_ms")),
)
_DELIVERY: Sequence[tuple[str, Show]] = (
    ("delivered/s", _count("delivered_per_second")),
    ("frames/s", _count("frames_per_second")),
    *_LATENCY,
)
_HEALTH: Sequence[tuple[str, Show]] = (
    ("lost", _count("lost")),
    ("not arrived", _count("undelivered")),
    ("merged", _count("merged")),
    ("violations", _count("violations")),
    ("load client", _share("client_cpu_share")),
    (
        "waited",
        lambda of: (
            f"{max(of.values['server_waiting_share'], of.values['client_waiting_share']):.0%}"
        ),
    ),
)
_MEGABYTES_PEAK: tuple[str, Show] = (
    "peak MB",
    lambda of: f"{of.values['server_memory_peak_bytes'] / 1e6:.0f}",
)
_PAUSE: tuple[str, Show] = (
    "pause ms",
    lambda of: f"{of.values['longest_pause_ms']:.0f}" if of.values["longest_pause_ms"] else "",
)
_BYTES: Sequence[tuple[str, Show]] = (
    ("delivered/s", _count("delivered_per_second")),
    ("bytes/update", _count("bytes_per_update")),
    *_LATENCY,
    *_HEALTH,
)
_COLUMNS: Mapping[str, Sequence[tuple[str, Show]]] = {
    "frames": (*_DELIVERY, _PAUSE, *_HEALTH),
    "watchlists": (*_DELIVERY, ("oldest ms", _milliseconds("age_max_ms")), _PAUSE, *_HEALTH),
    "slow-clients": (*_DELIVERY, _MEGABYTES_PEAK, *_HEALTH),
    "idle": (
        (
            "KB/client",
            lambda of: f"{of.values['server_memory_bytes_per_client'] / 1024:.1f}",
        ),
        ("connects/s", _count("connects_per_second")),
        _PAUSE,
        ("violations", _count("violations")),
    ),
    "compressed-hot-topic": _BYTES,
    "compressed-watchlists": _BYTES,
    "delta-books": _BYTES,
    "sse": _BYTES,
    "compressed-idle": (
        ("bytes/client", _count("server_memory_bytes_per_client")),
        ("connects/s", _count("connects_per_second")),
        ("violations", _count("violations")),
    ),
    "storm": (("connects/s", _count("storm_connects_per_second")), *_LATENCY, _PAUSE, *_HEALTH),
}


_BYTE_SCENARIOS: Final = frozenset(scenario.name for scenario in byte_scenarios(1))


def _cpu(server: str, values: Mapping[str, float]) -> list[str]:
    if SERVERS[server].busy_polls:
        return ["busy-polls", ""]
    return [
        f"{values['server_cpu_us_per_delivery']:.2f}",
        f"{values['server_cpu_share']:.0%}",
    ]


def _ratio(one: Median | None, other: Median | None, name: str) -> str:
    if one is None or other is None or not other.values[name] or not one.values[name]:
        return ""
    return f"{one.values[name] / other.values[name]:.2f}"


def _table(found: Medians, scenario: str, label: str, columns: Sequence[tuple[str, Show]]) -> str:
    with_cpu = scenario not in {"idle", "compressed-idle"}
    with_bytes = with_cpu and scenario in _BYTE_SCENARIOS
    head = ["server", *(name for name, _ in columns)]
    if with_cpu:
        head += ["CPU µs/update", "core", "CPU ÷ C loop", "our p99 ÷", "our CPU ÷"]
    if with_bytes:
        head += ["bytes ÷ plain", "CPU ÷ plain"]
    rows = [head]
    of = {key[2]: value for key, value in found.items() if key[:2] == (scenario, label)}
    ours, raw = of.get(OURS), of.get(RAW_LOOP)
    cpu = "server_cpu_us_per_delivery"
    for server in SERVERS:
        if (row_of := of.get(server)) is None:
            continue
        row = [SERVERS[server].title, *(show(row_of) for _, show in columns)]
        if with_cpu:
            polls = SERVERS[server].busy_polls
            row += _cpu(server, row_of.values)
            row += ["" if polls else _ratio(row_of, raw, cpu)]
            row += [_ratio(ours, row_of, "p99_ms"), "" if polls else _ratio(ours, row_of, cpu)]
            if with_bytes:
                row += [_ratio(row_of, ours, "bytes_per_update")]
                row += ["" if polls else _ratio(row_of, ours, cpu)]
        rows.append(row)
    return markdown(rows)


def _limit_table(found: Medians, records: Sequence[Record], name: str) -> str:
    head = ["server", "highest msg/s", "updates/s", "due ÷ delivered", "p99 ms"]
    rows = [[*head, "process, KB/client", "kernel, KB/client", "of each round"]]
    for server in SERVERS:
        each = [one.x for one in records if one.scenario == name and one.server == server]
        if not each:
            continue
        row = [SERVERS[server].title, f"{median(each):,.0f}"]
        if (best := found.get((name, "", server))) is not None:
            row += [show(best) for show in _LIMIT_COLUMNS]
        else:
            row += ["0", *[""] * (len(_LIMIT_COLUMNS) - 1)]
        rows.append([*row, ", ".join(f"{rate:,.0f}" for rate in each)])
    return markdown(rows)


def _kilobytes(name: str) -> Show:
    # Measurements from before it was measured have none.
    return lambda of: f"{of.values[name] / 1024:.1f}" if of.values[name] else ""


_LIMIT_COLUMNS: Sequence[Show] = (
    _count("delivered_per_second"),
    lambda of: f"{of.values['conflation_ratio']:.2f}",
    _milliseconds("p99_ms"),
    _kilobytes("server_memory_bytes_per_client"),
    _kilobytes("kernel_memory_bytes_per_client"),
)


_LIMITS = (
    (LIMIT, "Highest sustained rate of a core", LIMIT_EXPLANATION),
    (LATEST, "Highest rate at which the newest values are in time", LATEST_EXPLANATION),
)


def write_report(
    records: Sequence[Record],
    environment: Mapping[str, str],
    scenarios: Sequence[Scenario],
    directory: Path,
    plots: Sequence[tuple[str, str]],
) -> None:
    """Write README.md with all tables into the directory; `plots` are (file name, caption)."""
    found = medians(records)
    rounds = max((value.rounds for value in found.values()), default=0)
    parts = [
        "# Benchmarks",
        INTRODUCTION.format(rounds=rounds),
        markdown([["", ""], *([name, text] for name, text in environment.items())]),
    ]
    parts += [f"![{caption}]({name})" for name, caption in plots]
    for scenario in scenarios:
        labels = list(dict.fromkeys(one.label for one in records if one.scenario == scenario.name))
        if not labels:
            continue
        parts += [f"## {scenario.title}", scenario.explanation]
        columns = _COLUMNS.get(scenario.name, (*_DELIVERY, *_HEALTH))
        for label in labels:
            parts += [f"### {label}"] if label else []
            parts.append(_table(found, scenario.name, label, columns))
    for name, title, explanation in _LIMITS:
        if any(record.scenario == name for record in records):
            parts += [f"## {title}", explanation, _limit_table(found, records, name)]
    if missing := _missing(records):
        parts += ["## Left out", *missing]
    (directory / "README.md").write_text("\n\n".join(parts) + "\n")


def _missing(records: Iterable[Record]) -> list[str]:
    errors = {
        (one.server, one.scenario, " … ".join(_first_and_last(one.error)))
        for one in records
        if one.error is not None and one.scenario not in {LIMIT, LATEST}
    }
    return [f"- {server}, {scenario}: {error}" for server, scenario, error in sorted(errors)]


def _first_and_last(text: str) -> list[str]:
    lines = text.splitlines()
    return list(dict.fromkeys((lines[0], lines[-1].strip())))


def write_results(records: Sequence[Record], environment: Mapping[str, str], path: Path) -> None:
    """Write every measurement, without the load client's raw report, as JSON."""
    rows = []
    for record in records:
        row = attrs.asdict(record)
        if row["measurement"] is not None:
            del row["measurement"]["detail"]
        rows.append(row)
    path.write_text(
        json.dumps({"environment": dict(environment), "records": rows}, indent=1) + "\n"
    )
