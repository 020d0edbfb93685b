"""Plots of the medians. matplotlib is a dependency of the benchmark session only."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.compare import LATEST, LIMIT, LIMIT_P99_MS, Record
from bench.report import OURS, Medians, medians
from bench.rig import RigError
from bench.servers import SERVERS, Server

WIDTH_INCHES, HEIGHT_INCHES = 10.0, 4.8
MEGABYTE = 1e6
# One for each server, in their order: streamer's two in strong reds.
COLORS = (
    "#d62728",
    "#8c1d18",
    "black",
    "#1f77b4",
    "#2ca02c",
    "#17becf",
    "#bcbd22",
    "#9467bd",
    "#e377c2",
    "#ff7f0e",
    "#7f7f7f",
)


def _plotted() -> list[Server]:
    """Return the servers of the scenarios that have plots."""
    return [server for server in SERVERS.values() if not server.only_if_named]


def write_plots(records: Sequence[Record], directory: Path) -> list[tuple[str, str]]:
    """Draw the plots for which there are records; return (file name, caption) of each.

    Raises:
        RigError: matplotlib is not installed.
    """
    try:
        # Imported here so that measuring needs no matplotlib, and checking types neither.
        importlib.import_module("matplotlib").use("svg")
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise RigError("Plots need matplotlib: install it, or run the nox session.") from error
    # Without these every run of the same figures would differ in ids and dates.
    pyplot.rcParams.update({"svg.hashsalt": "streamer", "svg.fonttype": "none", "font.size": 9})
    found = medians(records)
    places = {(one.scenario, one.label): one.x for one in records}
    drawn = []
    for name, caption, scenario, draw in _PLOTS:
        if not any(key[0] == scenario for key in found):
            continue
        figure, axes = pyplot.subplots(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
        draw(axes, found, places)
        axes.set_title(caption)
        axes.grid(visible=True, which="both", alpha=0.25)
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
        figure.savefig(directory / name, metadata={"Date": None})
        pyplot.close(figure)
        drawn.append((name, caption))
    return drawn


def _series(
    found: Medians, places: Mapping[tuple[str, str], float], scenario: str, server: str, name: str
) -> tuple[list[float], list[float]]:
    points = sorted(
        (places[key[:2]], value.values[name])
        for key, value in found.items()
        if key[0] == scenario and key[2] == server
    )
    return [x for x, _ in points], [y for _, y in points]


Draw = Callable[[Any, Medians, Mapping[tuple[str, str], float]], None]


def _lines(scenario: str, name: str, *, scale: float = 1.0, xscale: str = "log") -> Draw:
    def draw(axes: Any, found: Medians, places: Mapping[tuple[str, str], float]) -> None:
        for server, color in zip(_plotted(), COLORS, strict=True):
            xs, ys = _series(found, places, scenario, server.name, name)
            if xs:
                axes.plot(
                    xs,
                    [y / scale for y in ys],
                    color=color,
                    marker="o",
                    markersize=3,
                    linewidth=2.6 if server.name.startswith(OURS) else 1.1,
                    label=server.title,
                )
        ticks = sorted({x for (one, _), x in places.items() if one == scenario})
        axes.set_xscale(xscale)
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axes.set_xticks([], minor=True)

    return draw


def _latency(axes: Any, found: Medians, places: Mapping[tuple[str, str], float]) -> None:
    _lines("hot-topic", "p99_ms")(axes, found, places)
    axes.set_xlabel("publications/s")
    axes.set_yscale("log")
    axes.set_ylabel("p99 from PUBLISH to receipt, ms")


def _delivered(axes: Any, found: Medians, places: Mapping[tuple[str, str], float]) -> None:
    _lines("hot-topic", "delivered_per_second")(axes, found, places)
    offered = sorted(x for (scenario, _), x in places.items() if scenario == "hot-topic")
    due = [1000 * x for x in offered]
    axes.plot(offered, due, color="black", linestyle=":", label="offered")
    axes.set_xlabel("publications/s")
    axes.set_yscale("log")
    axes.set_ylabel("updates delivered/s")


def _cpu(axes: Any, found: Medians, places: Mapping[tuple[str, str], float]) -> None:
    _lines("hot-topic", "server_cpu_us_per_delivery")(axes, found, places)
    axes.set_xlabel("publications/s")
    axes.set_yscale("log")
    axes.set_ylabel("server CPU per update, µs")


def _memory(axes: Any, found: Medians, places: Mapping[tuple[str, str], float]) -> None:
    draw = _lines("idle", "server_memory_peak_bytes", scale=MEGABYTE, xscale="linear")
    draw(axes, found, places)
    axes.set_xlabel("idle clients")
    axes.set_ylabel("memory, MB")


def _per_core(axes: Any, found: Medians, _places: Mapping[tuple[str, str], float]) -> None:
    servers = [one for one in _plotted() if (LIMIT, "", one.name) in found]
    servers.sort(key=lambda one: found[LIMIT, "", one.name].values["delivered_per_second"])
    places = range(len(servers))
    half = 0.4
    for name, color, shift, label in (
        (LIMIT, COLORS[0], half / 2, "nothing merged"),
        (LATEST, COLORS[3], -half / 2, "newest values, may be merged"),
    ):
        medians_of = [found.get((name, "", one.name)) for one in servers]
        values = [one.values["delivered_per_second"] if one else 0.0 for one in medians_of]
        if any(values):
            axes.barh([place + shift for place in places], values, half, color=color, label=label)
    axes.set_yticks(list(places), [one.title for one in servers])
    axes.set_xlabel("updates delivered/s by one core")


_PLOTS: Sequence[tuple[str, str, str, Draw]] = (
    (
        "per_core.svg",
        f"Updates a second that one core delivers with p99 under {LIMIT_P99_MS:.0f} ms",
        LIMIT,
        _per_core,
    ),
    ("latency.svg", "p99 against load: 1,000 clients, one topic", "hot-topic", _latency),
    ("delivered.svg", "Delivered against offered: 1,000 clients", "hot-topic", _delivered),
    ("cpu.svg", "CPU per update: 1,000 clients, one topic", "hot-topic", _cpu),
    ("memory.svg", "Memory against idle clients", "idle", _memory),
)
