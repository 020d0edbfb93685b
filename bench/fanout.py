"""Fan-out of `streamer serve`: delivered updates, latency, and the server's CPU time and memory.

python -m bench.fanout --clients 100 --clients 1000 --rate 100
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import click

from bench import servers
from bench.load import Load, Workload
from bench.measure import Measurement, markdown_table, measure, price_topics, spread_subscriptions
from bench.options import JSON_PATH, NICENESS
from bench.rig import Cores, RigError, end_on_sigterm


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
@NICENESS
@JSON_PATH
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
    niceness: int,
    json_path: Path | None,
) -> None:
    """Measure the fan-out of `streamer serve` on this machine.

    Starts a real Redis, the server on a core of its own, and on another core a load client in C
    that publishes at the given rate, receives, and checks loss and order. Prints a Markdown table.
    """
    end_on_sigterm()
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
            workload = Workload(
                load,
                price_topics(topics),
                spread_subscriptions(count, topics, min(topics, topics_per_client)),
            )
            done.append(measure(start, workload, Cores.available(niceness)))
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
