"""The files of docs/examples/deploy: units, rules, the board and the container.

Queries are tested against the metrics of a running server, and parsed by Prometheus' own tool.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from streamer.cli import main
from streamer.config import Settings
from streamer.edge.admission import Cause
from tests.helpers.clients import connected
from tests.helpers.http import http_client
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import DEADLINE_SECONDS, eventually

PROJECT: Final = Path(__file__).parents[1]
DEPLOY: Final = PROJECT / "docs/examples/deploy"
BOARD: Final = json.loads((DEPLOY / "grafana-board.json").read_text())
RULES: Final = (DEPLOY / "prometheus-rules.yml").read_text()

SCRAPED: Final = {"job", "instance"}
"""Labels that Prometheus adds."""

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="there is no promtool (Debian's prometheus)"
)
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze"
)


def run(*command: str | Path) -> str:
    """Run a program that must succeed; return its output."""
    ran = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


# Units


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units with a program that this machine has."""
    for name in "streamer.service", "streamer.socket":
        text = (DEPLOY / name).read_text().replace("/opt/streamer/bin/streamer", sys.executable)
        (tmp_path / name).write_text(text)
    return [tmp_path / "streamer.service", tmp_path / "streamer.socket"]


@needs_systemd
def test_systemd_accepts_the_units(units: list[Path]) -> None:
    """Without a word about a line that it ignores."""
    verify = ("systemd-analyze", "verify", "--man=no", "--recursive-errors=no")
    assert "streamer" not in run(*verify, *units)


@needs_systemd
def test_the_service_is_hardened(units: list[Path]) -> None:
    """Versions of systemd count a little differently; above 2 a line of the unit is lost."""
    output = run("systemd-analyze", "security", "--offline=yes", units[0])
    (exposure,) = re.findall(r"Overall exposure level for streamer.service: ([\d.]+)", output)
    assert float(exposure) <= 2
    page = (PROJECT / "docs/how-to/deploy.md").read_text()
    assert "→ Overall exposure level for streamer.service: 1.4 OK" in page


def test_the_unit_runs_a_command_that_exists(capsys: pytest.CaptureFixture[str]) -> None:
    """Its options, too; and it waits longer than a server may take to stop."""
    unit = (DEPLOY / "streamer.service").read_text()
    (command,) = re.findall(r"^ExecStart=\S+ (\w+) (--[\w-]+)", unit, re.MULTILINE)
    assert main([command[0], "--help"]) == 0
    assert command[1] in capsys.readouterr().out
    (timeout_seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(timeout_seconds) > Settings().drain_timeout_seconds + 10


# Queries


@attrs.frozen
class Query:
    """An expression, and labels that are used outside of it."""

    place: str
    expression: str
    legend: str = ""


def board_queries() -> Iterator[Query]:
    """Return the queries of the board, with the variables that Grafana puts in."""
    expressions = [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in BOARD["panels"]
        for target in panel["targets"]
    ]
    expressions += [(one["name"], one["expr"], "") for one in BOARD["annotations"]["list"]]
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            selector, _, label = variable["query"].removeprefix("label_values(").rpartition(", ")
            expressions.append((variable["name"], selector, f"{{{{{label.rstrip(')')}}}}}"))
    for title, expression, legend in expressions:
        for name, value in {"$__rate_interval": "1m", "$job": "x", "$instance": ".*"}.items():
            expression = expression.replace(name, value)  # noqa: PLW2901
        yield Query(title, expression, legend)


def rule_queries() -> Iterator[Query]:
    """Return the expressions of the rules."""
    for block in re.split(r"^      - ", RULES, flags=re.MULTILINE)[1:]:
        name = block.split("\n")[0]
        folded = re.search(r"expr: \|\n((?: {10,}.*\n)+)", block)
        line = re.search(r"expr: (.*)", block)
        assert line is not None
        legend = " ".join(f"{{{{{label}}}}}" for label in re.findall(r"\$labels\.(\w+)", block))
        yield Query(name, folded[1] if folded else line[1], legend)


QUERIES: Final = [*board_queries(), *rule_queries()]


def names_of(expression: str) -> set[str]:
    """Return the metrics that an expression reads."""
    return set(re.findall(r"\b(?:streamer|process)[_:][\w:]+", expression)) - {"streamer:"}


def labels_of(query: Query) -> set[str]:
    """Return the labels that a query uses: in selectors, in `by`, and in its legend."""
    labels: set[str] = set(re.findall(r"{{(\w+)}}", query.legend))
    for selector in re.findall(r"{([^{}]*)}", query.expression):
        labels |= set(re.findall(r"(\w+)\s*[=!]", selector))
    for group in re.findall(r"by \(([^)]*)\)", query.expression):
        labels |= set(re.findall(r"\w+", group))
    return labels


@pytest.fixture(scope="module")
def recorded() -> Mapping[str, set[str]]:
    """The metrics that the rules record, with their labels."""
    return {
        name: set(re.findall(r"\w+", by)) - {"le"}
        for name, by in re.findall(r"- record: (\S+)\n\s+expr: .*?by \(([^)]*)\)", RULES)
    }


async def test_each_query_finds_its_metrics_and_labels(
    redis_url: str, recorded: Mapping[str, set[str]]
) -> None:
    """Those of a server that has had a client, with Redis."""
    async with running_server(redis=redis_url) as server:
        async with connected(server) as client:
            position = (await client.subscribe("stock:A"))["positions"]["A"]
            await client.unsubscribe("stock:A")
            await client.subscribe("stock:A", since={"A": position})
        await eventually(lambda: not server.active_connections)
        await eventually(lambda: server.readiness().ready)
        async with http_client(base_url=server.http_url) as browser:
            text = (await browser.get("/metrics")).text
    found: dict[str, set[str]] = dict(recorded)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    missing = [
        (query.place, name)
        for query in QUERIES
        for name in names_of(query.expression)
        if name not in found and name not in WITHOUT_SERIES
    ]
    assert not missing
    wrong = [
        (query.place, label)
        for query in QUERIES
        for label in labels_of(query)
        if label
        not in SCRAPED.union(
            *(
                found.get(name, {WITHOUT_SERIES.get(name, "")})
                for name in names_of(query.expression)
            )
        )
    ]
    assert not wrong


WITHOUT_SERIES: Final = {"streamer_messages_dropped_total": "reason"}
"""Counters that have no series until the first event, with their label."""


async def test_a_dropped_message_has_its_reason() -> None:
    """The one metric that the test above does not see."""
    async with running_server() as server:
        async with connected(server) as client:
            await client.subscribe("stock:A", max_rate=0.001)
            publish(server, "stock:A:price", price("A", 1))
            await client.data()
            publish(server, "stock:A:price", price("A", 2))
            await eventually(lambda: server.statistics().messages_queued)
        await eventually(lambda: not server.active_connections)
        async with http_client(base_url=server.http_url) as browser:
            text = (await browser.get("/metrics")).text
    assert "streamer_messages_dropped_total{reason=" in text


def test_the_rules_name_causes_that_exist() -> None:
    """Values of labels are no names that a server would miss."""
    for selector in re.findall(r'cause=~"([^"]*)"', RULES):
        for cause in selector.split("|"):
            assert Cause(cause)


@needs_promtool
def test_prometheus_parses_the_rules() -> None:
    """And says how many there are."""
    count = RULES.count("- alert:") + RULES.count("- record:")
    assert f"{count} rules found" in run(
        "promtool", "check", "rules", DEPLOY / "prometheus-rules.yml"
    )


@needs_promtool
def test_prometheus_parses_the_queries_of_the_board(tmp_path: Path) -> None:
    """As rules, since its tool checks those."""
    rules: list[dict[str, Any]] = [
        {"record": f"board:query{number}", "expr": query.expression}
        for number, query in enumerate(board_queries())
    ]
    # YAML is a superset of JSON.
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    assert f"{len(rules)} rules found" in run("promtool", "check", "rules", path)


def test_the_panels_of_the_board_do_not_overlap() -> None:
    """Each has a place of its own in the 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (column, row)
            for column in range(place["x"], place["x"] + place["w"])
            for row in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(column for column, _ in cells) < 24
        taken |= cells


# The container


def container_lines(instruction: str) -> list[str]:
    """Return the arguments of an instruction of the Containerfile, wherever it is."""
    text = (DEPLOY / "Containerfile").read_text()
    return re.findall(rf"^{instruction} (.*)$", text, re.MULTILINE)


def test_the_container_sets_variables_that_exist() -> None:
    """Each is a setting, with a value that it takes."""
    (line,) = container_lines("ENV")
    variables = dict(pair.split("=", 1) for pair in shlex.split(line))
    values = {name.removeprefix("STREAMER_").lower(): value for name, value in variables.items()}
    assert all(name.startswith("STREAMER_") for name in variables)
    Settings(**values)  # type: ignore[arg-type]  # texts, as the variables are


async def test_the_health_check_of_the_container_asks_the_server() -> None:
    """It succeeds while the server answers, and fails when it does not."""
    (line,) = container_lines("HEALTHCHECK")
    _, _, command = line.partition(" CMD ")
    _python, *arguments = json.loads(command)
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    codes = []
    async with running_server() as server:
        port = server.http_url.rpartition(":")[2]
        for asked in port, "1":
            program = [sys.executable, *(a.replace("8766", asked) for a in arguments)]
            ran = await trio.run_process(program, check=False, capture_stderr=True, env=environment)
            codes.append(ran.returncode == 0)
    assert codes == [True, False]
