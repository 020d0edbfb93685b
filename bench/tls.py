"""The cost of TLS: in the server, and in nginx before it; beside plain, and beside other servers.

All run in turn, round after round, so that a slow minute of the machine meets each. The main figure
is the server's CPU time for each update, with that of nginx where it serves; the client decrypts on
the other core. Each is divided by the same server's figure without TLS in the same round.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import attrs
import click
import trustme

from bench import install, packages
from bench.load import Load, Workload
from bench.measure import Measurement, markdown, measure, price_topics, spread_subscriptions
from bench.options import NICENESS, ROUNDS
from bench.rig import Core, Cores, RigError, accepts_connections, free_port, running, wait_for
from bench.servers import (
    PEERS,
    Certificate,
    Start,
    Started,
    filled,
    node_ws,
    python_peer,
    streamer,
)

FLAGS = ("--flush-interval-ms", "0")


def write_certificate(directory: Path, key_type: trustme.KeyType) -> Certificate:
    """Issue a certificate for this machine with a key of P-256 or RSA 2048, and write its files."""
    issued = trustme.CA().issue_cert("127.0.0.1", key_type=key_type)
    found = Certificate(directory / f"{key_type.name}.pem", directory / f"{key_type.name}-key.pem")
    found.certificate.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(found.key)
    return found


def behind_nginx(certificate: Certificate) -> Start:
    """Start streamer without TLS, and nginx with TLS in front of it."""

    @contextlib.contextmanager
    def start(directory: Path, core: Core, redis_port: int) -> Iterator[Started]:
        program = install.nginx()
        flags = (*FLAGS, "--trusted-proxies", "127.0.0.1")
        with streamer(*flags)(directory, core, redis_port) as (endpoint, process):
            port = free_port()
            configuration = filled(
                PEERS / "nginx_tls.conf",
                directory,
                DIRECTORY=directory,
                PORT=port,
                CERTIFICATE=certificate.certificate,
                KEY=certificate.key,
                UPSTREAM_PORT=endpoint.port,
            )
            command: list[str | Path] = [program, "-p", directory, "-c", configuration]
            with running(command, core=core, log=directory / "nginx.log") as nginx:
                wait_for("nginx", nginx, lambda: accepts_connections(port))
                yield (
                    attrs.evolve(endpoint, port=port, tls=True),
                    attrs.evolve(process, beside=nginx),
                )

    return start


def resuming(start: Start) -> Start:
    """Start a server whose clients resume a TLS session, as in a reconnect storm."""

    @contextlib.contextmanager
    def start_resuming(directory: Path, core: Core, redis_port: int) -> Iterator[Started]:
        with start(directory, core, redis_port) as (endpoint, process):
            yield attrs.evolve(endpoint, tls_resume=True), process

    return start_resuming


@attrs.frozen
class Variant:
    """A server with or without TLS."""

    name: str
    start: Start
    plain: str = ""
    """The name of the same server without TLS, by whose figures this one's are divided."""
    connects_only: bool = False
    busy_polls: bool = False
    """Whether it never sleeps, so that its CPU time has no meaning."""


def variants(ecdsa: Certificate, rsa: Certificate, baseline: Path | None = None) -> list[Variant]:
    """Return all servers; `baseline` is the package of another streamer to be measured, too."""
    tls = streamer(*FLAGS, *ecdsa.flags())
    found = [
        Variant("streamer", streamer(*FLAGS)),
        Variant("streamer-tls", tls, "streamer"),
        Variant("streamer-tls-resumed", resuming(tls), "streamer", connects_only=True),
        Variant("streamer-tls-rsa", streamer(*FLAGS, *rsa.flags()), "streamer", connects_only=True),
        Variant("streamer-nginx", behind_nginx(ecdsa), "streamer"),
        Variant("node-ws", node_ws()),
        Variant("node-ws-tls", node_ws(tls=ecdsa), "node-ws"),
        Variant("uwebsockets", python_peer("socketify_server.py"), busy_polls=True),
        Variant(
            "uwebsockets-tls",
            python_peer("socketify_server.py", tls=ecdsa),
            "uwebsockets",
            busy_polls=True,
        ),
    ]
    if baseline is not None:
        start = streamer(*FLAGS, *ecdsa.flags(), package=baseline)
        found.insert(2, Variant("baseline-tls", start, "streamer"))
    return found


NO_CERTIFICATE = Certificate(Path(), Path())
NAMES = [one.name for one in variants(NO_CERTIFICATE, NO_CERTIFICATE, Path())]


def _updates(clients: int, topics: int, per_client: int, rate: float, seconds: float) -> Workload:
    subscriptions = spread_subscriptions(clients, topics, per_client)
    return Workload(Load(rate, seconds), price_topics(topics), subscriptions)


def _connects(seconds: float) -> Workload:
    del seconds  # it ends when all are connected
    load = Load(0, 1, settle_seconds=1)
    return Workload(load, price_topics(100), spread_subscriptions(2000, 100, 1))


CONNECTS = "connects"
SCENARIOS: Mapping[str, Callable[[float], Workload]] = {
    "hot-topic-20": partial(_updates, 1000, 1, 1, 20),
    "hot-topic-100": partial(_updates, 1000, 1, 1, 100),
    "many-topics": partial(_updates, 200, 500, 20, 2000),
    "watchlists": partial(_updates, 2000, 2500, 30, 2000),
    CONNECTS: _connects,
}

Rounds = dict[tuple[str, str], list[Measurement | None]]
"""(scenario, server) -> the measurement of each round; None where there is none."""


def rounds(
    count: int,
    scenarios: Sequence[str],
    servers: Sequence[Variant],
    seconds: float,
    cores: Cores,
) -> Rounds:
    """Measure the scenarios `count` times; each round begins with another server."""
    found: Rounds = {}
    absent: set[str] = set()
    for number in range(count):
        for scenario in scenarios:
            turn = number % len(servers)
            for one in [*servers[turn:], *servers[:turn]]:
                if one.name in absent or (one.connects_only and scenario != CONNECTS):
                    continue
                try:
                    result = measure(one.start, SCENARIOS[scenario](seconds), cores)
                except RigError as error:
                    click.echo(f"{one.name} left out: {error}", err=True)
                    absent.add(one.name)
                    continue
                found.setdefault((scenario, one.name), [None] * count)[number] = result
                click.echo(f"{number + 1} {scenario} {one.name}: {_line(result)}", err=True)
    return found


def _line(one: Measurement) -> str:
    return (
        f"{one.server_cpu_us_per_delivery:.2f} µs/update, {one.delivered_per_second:,.0f}/s, "
        f"p99 {one.p99_ms:.1f} ms, {one.connects_per_second:,.0f} connects/s, "
        f"client {one.client_cpu_share:.2f} of its core, foreign {one.foreign_cpu_share:.2f}, "
        f"{one.lost + one.violations} faults"
    )


@attrs.frozen
class Column:
    """A figure of a table."""

    title: str
    read: Callable[[Measurement], float]
    form: str
    """The format specification of the number."""


CPU_PER_CONNECT = Column("CPU µs/connect", lambda one: one.server_cpu_us_per_connect, ",.0f")
CPU_PER_UPDATE = Column("CPU µs/update", lambda one: one.server_cpu_us_per_delivery, ",.2f")
UPDATE_COLUMNS = (
    Column("p99 ms", lambda one: one.p99_ms, ",.1f"),
    Column("delivered/s", lambda one: one.delivered_per_second, ",.0f"),
    Column("core", lambda one: one.server_cpu_share, ".2f"),
)
CONNECT_COLUMNS = (
    Column("connects/s", lambda one: one.connects_per_second, ",.0f"),
    Column("KB/client", lambda one: one.server_memory_bytes_per_client / 1024, ",.1f"),
)


def ratio(
    read: Callable[[Measurement], float],
    measured: Sequence[Measurement | None],
    plain: Sequence[Measurement | None],
) -> float | None:
    """Return the median of the rounds' ratios of a figure to that without TLS.

    None if no round has both.
    """
    ratios = [
        read(one) / read(other)
        for one, other in zip(measured, plain, strict=True)
        if one is not None and other is not None and read(other)
    ]
    return statistics.median(ratios) if ratios else None


def table(scenario: str, found: Rounds, servers: Sequence[Variant]) -> str:
    """Return the medians of one scenario as a Markdown table."""
    is_connects = scenario == CONNECTS
    cpu = CPU_PER_CONNECT if is_connects else CPU_PER_UPDATE
    columns = CONNECT_COLUMNS if is_connects else UPDATE_COLUMNS
    rows: list[Sequence[str]] = [
        ("server", cpu.title, "÷ plain", *(column.title for column in columns))
    ]
    for one in servers:
        measured = found.get((scenario, one.name), [])
        present = [result for result in measured if result is not None]
        if not present:
            continue
        plain = found.get((scenario, one.plain), [None] * len(measured))
        share = None if one.busy_polls else ratio(cpu.read, measured, plain)
        rows.append(
            (
                one.name,
                "-" if one.busy_polls else _median(cpu, present),
                "-" if share is None else f"{share:.2f}",
                *(_median(column, present) for column in columns),
            )
        )
    return markdown(rows)


def _median(column: Column, present: Sequence[Measurement]) -> str:
    return format(statistics.median(map(column.read, present)), column.form)


def faults(found: Rounds) -> list[str]:
    """Describe the rounds in which streamer lost messages or broke a rule, for people."""
    return [
        f"{scenario} {server}: {one.lost} updates lost, {one.violations} violations"
        for (scenario, server), measured in found.items()
        for one in measured
        if server.startswith("streamer") and one is not None and (one.lost or one.violations)
    ]


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@ROUNDS
@click.option(
    "--seconds", default=4.0, type=click.FloatRange(0.5, 600), help="Measured in each run."
)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    type=click.Choice(list(SCENARIOS)),
    help="Repeatable; default all.",
)
@click.option(
    "--server",
    "names",
    multiple=True,
    type=click.Choice(NAMES),
    help="Repeatable; default all. The divisor of a server with TLS has to be named, too.",
)
@click.option(
    "--baseline", help="A git revision of streamer whose TLS is measured beside the present one."
)
@NICENESS
def tls(  # noqa: PLR0917 - one for each option
    count: int,
    seconds: float,
    scenarios: tuple[str, ...],
    names: tuple[str, ...],
    baseline: str | None,
    niceness: int,
) -> None:
    """Measure TLS in the server and in nginx, beside plain and beside other servers.

    A server that cannot be installed or started is left out, with the reason.
    """
    try:
        package = None if baseline is None else packages.build_revision(baseline, "baseline")
    except RigError as error:
        click.echo(f"bench tls: error: {error}", err=True)
        sys.exit(2)
    with tempfile.TemporaryDirectory(prefix="tls-") as name:
        ecdsa = write_certificate(Path(name), trustme.KeyType.ECDSA)
        rsa = write_certificate(Path(name), trustme.KeyType.RSA)
        servers = [one for one in variants(ecdsa, rsa, package) if not names or one.name in names]
        wanted = scenarios or tuple(SCENARIOS)
        found = rounds(count, wanted, servers, seconds, Cores.available(niceness))
    for scenario in wanted:
        click.echo(f"\n{scenario}\n\n{table(scenario, found, servers)}")
    wrong = faults(found)
    for fault in wrong:
        click.echo(fault, err=True)
    sys.exit(1 if wrong else 0)
