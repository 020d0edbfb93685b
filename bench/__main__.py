"""`python -m bench`: measure streamer alone, or side by side with other servers."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import click
import trio

from bench.byte_count import command as count_bytes
from bench.byte_scenarios import byte_scenarios
from bench.check import SCRIPTS, WIRES
from bench.check import check as check_load_client
from bench.compare import LATEST, LIMIT, Record, environment, limits, rounds
from bench.fanout import main as fanout
from bench.guard import guard
from bench.options import NICENESS, ROUNDS
from bench.plots import write_plots
from bench.report import write_report, write_results
from bench.rig import CACHE, Cores, RigError, end_on_sigterm
from bench.scale import scale
from bench.scaling import scaling
from bench.scenarios import RECORDINGS, Scenario, scenarios
from bench.servers import SERVERS
from bench.tls import tls

RECORDS = CACHE / "records.jsonl"
BYTES = "bytes"
"""All scenarios in which bytes are compared."""


def _all_scenarios(seconds: float, recordings: Path | None) -> list[Scenario]:
    return [*scenarios(seconds, recordings), *byte_scenarios(seconds)]


SCENARIO_NAMES = [*(scenario.name for scenario in _all_scenarios(1, Path())), LIMIT, LATEST]


@click.group(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
def main() -> None:
    """Benchmarks of streamer on this machine: Linux, loopback, two cores."""
    end_on_sigterm()


main.add_command(fanout, "fanout")
main.add_command(guard)
main.add_command(count_bytes)
main.add_command(tls)
main.add_command(scale)
main.add_command(scaling)


@main.command()
@ROUNDS
@click.option(
    "--seconds", default=5.0, type=click.FloatRange(0.5, 600), help="Measured in each run."
)
@click.option(
    "--scenario",
    "chosen",
    multiple=True,
    type=click.Choice([*SCENARIO_NAMES, BYTES]),
    help=f"Repeatable; default all. {BYTES}: compression, deltas and server-sent events.",
)
@click.option(
    "--server",
    "servers",
    multiple=True,
    type=click.Choice(list(SERVERS)),
    help="Repeatable; default all.",
)
@click.option(
    "--recordings",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of the recorded feeds; without it that scenario is left out.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("docs/benchmarks"),
    help="Where README.md, results.json and the plots go.",
)
@NICENESS
@click.option("--keep", is_flag=True, help="Add to the measurements of earlier runs.")
def compare(  # noqa: PLR0917 - one for each option
    count: int,
    seconds: float,
    chosen: tuple[str, ...],
    servers: tuple[str, ...],
    recordings: Path | None,
    output: Path,
    niceness: int,
    *,
    keep: bool,
) -> None:
    """Measure streamer and its peers side by side, and write the report.

    Peers are installed into a cache when first needed; one that cannot be installed is left out.
    Each measurement is saved as it is made, so an interrupted run can still be reported.
    """
    if recordings is not None and not any(recordings.glob(RECORDINGS)):
        raise click.BadParameter(f"no {RECORDINGS} in {recordings}", param_hint="--recordings")
    names = servers or tuple(SERVERS)
    wanted = chosen or tuple(SCENARIO_NAMES)
    if BYTES in wanted:
        wanted += tuple(scenario.name for scenario in byte_scenarios(seconds))
    found = [one for one in _all_scenarios(seconds, recordings) if one.name in wanted]
    cores = Cores.available(niceness)
    CACHE.mkdir(parents=True, exist_ok=True)
    with RECORDS.open("a" if keep else "w") as file:
        _keep(rounds(count, found, names, cores), file)
        for name in (LIMIT, LATEST):
            if name in wanted:
                _keep(limits(name, count, names, cores), file)
    _report(output)


def _keep(records: Iterable[Record], file: TextIO) -> None:
    for record in records:
        file.write(record.to_json() + "\n")
        file.flush()
        click.echo(_line(record), err=True)


def _line(record: Record) -> str:
    place = f"{record.round + 1} {record.scenario} {record.label} {record.server}"
    if record.measurement is None:
        return f"{place}: {(record.error or 'not sustained').splitlines()[0]}"
    one = record.measurement
    return (
        f"{place}: {one.rate_per_second:,.0f} msg/s, {one.delivered_per_second:,.0f} delivered/s, "
        f"p50 {one.p50_ms:.1f} ms, p99 {one.p99_ms:.1f} ms, "
        f"{one.server_cpu_us_per_delivery:.2f} µs, {one.bytes_per_update:.0f} bytes/update, "
        f"{one.connects_per_second:,.0f} connects/s"
    )


@main.command()
def check() -> None:
    """Test the load client with a scripted server that loses, repeats and reorders messages."""
    wrong = trio.run(check_load_client)
    for line in wrong:
        click.echo(line, err=True)
    click.echo(f"{len(SCRIPTS) * (1 + len(WIRES)) - len(wrong)} passed, {len(wrong)} failed")
    sys.exit(1 if wrong else 0)


@main.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("docs/benchmarks"),
    help="Where README.md, results.json and the plots go.",
)
def report(output: Path) -> None:
    """Write the report again from the saved measurements."""
    _report(output)


def _report(output: Path) -> None:
    records = [Record.from_json(line) for line in RECORDS.read_text().splitlines()]
    output.mkdir(parents=True, exist_ok=True)
    try:
        plots = write_plots(records, output)
    except RigError as error:
        click.echo(f"bench: {error}", err=True)
        plots = []
    machine = environment()
    write_results(records, machine, output / "results.json")
    write_report(records, machine, _all_scenarios(1, Path()), output, plots)
    click.echo(f"Wrote {output / 'README.md'}")


if __name__ == "__main__":
    main()
