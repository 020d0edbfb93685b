"""Run the Autobahn suite against the echo server, plain and over TLS: `python -m tests.autobahn`.

The suite (autobahntestsuite on PyPI) runs on Python 2.7 only, so that it needs an interpreter or a
virtual environment of its own. It is the fuzzing client; cases that fail make the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import trustme

PASSED: Final = frozenset({"OK", "NON-STRICT", "INFORMATIONAL"})
"""NON-STRICT: the outcome is one that RFC 6455 allows, if not the one that the suite prefers."""
NOT_OFFERED: Final = "UNIMPLEMENTED"
"""The case tests an extension that the server did not agree to."""
SECTIONS: Final = {
    "1": "Framing",
    "2": "Pings and pongs",
    "3": "Reserved bits",
    "4": "Opcodes",
    "5": "Fragmentation",
    "6": "UTF-8",
    "7": "Closing",
    "9": "Limits and performance",
    "10": "Automatic fragmentation",
    "12": "Compression",
    "13": "Compression, parameters",
}

HEADING: Final = """\
# Autobahn test suite

Outcomes of the fuzzing client of autobahntestsuite 25.10.1 against the server's own handshake and
WebSocket transport (`tests/autobahn/echo.py`). To run it again takes a Python 2.7 with the suite:

    nox -s autobahn -- --python PATH/TO/python2.7 --summary docs/reference/autobahn.md

A case of an extension that the server does not agree to is counted as not offered."""

Report = Mapping[str, Mapping[str, Any]]
"""The outcome of each case, by its id."""


@contextmanager
def echo_server(*certificate_and_key: Path) -> Iterator[str]:
    """Run the echo server inside the block; gives its URL."""
    command = [sys.executable, "-m", "tests.autobahn.echo", *map(str, certificate_and_key)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise SystemExit("the echo server did not start")
        try:
            yield url
        finally:
            process.kill()


def run_suite(python: str, agents: Mapping[str, str], cases: Sequence[str], directory: Path) -> Any:
    """Run the fuzzing client against servers by name and URL; returns its index of outcomes."""
    specification = directory / "spec.json"
    reports = directory / "reports"
    servers = [{"agent": agent, "url": url} for agent, url in agents.items()]
    specification.write_text(
        json.dumps(
            {
                "outdir": str(reports),
                "servers": servers,
                "cases": list(cases),
                "exclude-cases": [],
                "exclude-agent-cases": {},
            }
        )
    )
    program = "from autobahntestsuite.wstest import run; run()"
    command = [python, "-c", program, "-m", "fuzzingclient", "-s", str(specification)]
    log_path = directory / "wstest.log"
    with log_path.open("wb") as log:
        exit_code = subprocess.run(command, check=False, stdout=log, stderr=log).returncode
    index = reports / "index.json"
    if exit_code or not index.exists():
        raise SystemExit(f"the suite did not run: {log_path.read_text()[-4000:]}")
    return json.loads(index.read_text())


def failures(report: Report) -> list[str]:
    """The cases whose behaviour or closing handshake was wrong."""
    return [
        f"{case}: {outcome['behavior']}, closing {outcome['behaviorClose']}"
        for case, outcome in report.items()
        if outcome["behavior"] != NOT_OFFERED
        and not {outcome["behavior"], outcome["behaviorClose"]} <= PASSED
    ]


def summary(reports: Mapping[str, Report]) -> str:
    """A Markdown table of the outcomes by section of the suite."""
    lines = [
        *HEADING.splitlines(),
        "",
        "| section | " + " | ".join(reports) + " |",
        "|---|" + "---|" * len(reports),
    ]
    counts: dict[str, defaultdict[str, Counter[str]]] = {}
    for agent, report in reports.items():
        counts[agent] = defaultdict(Counter)
        failed = {failure.partition(":")[0] for failure in failures(report)}
        for case, outcome in report.items():
            behavior = outcome["behavior"].lower()
            result = (
                "failed" if case in failed else behavior.replace("unimplemented", "not offered")
            )
            for section in (case.partition(".")[0], "all"):
                counts[agent][section][result] += 1
    for section, name in [*SECTIONS.items(), ("all", "All")]:
        if not any(section in by_section for by_section in counts.values()):
            continue
        cells = [
            ", ".join(f"{count} {result}" for result, count in sorted(by_section[section].items()))
            for by_section in counts.values()
        ]
        lines.append(
            f"| {name if section == 'all' else f'{section} {name}'} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def find_python(given: str | None) -> str:
    """The Python 2.7 that has the suite. Raises SystemExit where there is none."""
    for candidate in [given] if given else ["python2.7", "python2"]:
        python = shutil.which(candidate)
        if python is None:
            continue
        found = subprocess.run(
            [python, "-c", "import autobahntestsuite"], check=False, capture_output=True
        )
        if found.returncode == 0:
            return python
    raise SystemExit(
        "no Python 2.7 with autobahntestsuite here: make a virtual environment of Python 2.7, "
        "install autobahntestsuite in it, and name its interpreter with --python"
    )


def main() -> None:
    """Run the suite, print and perhaps write the summary."""
    parser = argparse.ArgumentParser(prog="python -m tests.autobahn", description=__doc__)
    parser.add_argument("--python", help="the Python 2.7 that has autobahntestsuite")
    parser.add_argument("--summary", type=Path, help="write the summary to this file")
    parser.add_argument("--cases", nargs="+", default=["*"], help="cases or sections, as 9.* is")
    parser.add_argument("--only", choices=["plain", "tls"], help="run one of the two transports")
    options = parser.parse_args()
    python = find_python(options.python)
    reports: dict[str, Report] = {}
    with tempfile.TemporaryDirectory(prefix="autobahn-") as name:
        directory = Path(name)
        issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
        certificate, key = directory / "certificate.pem", directory / "key.pem"
        issued.private_key_pem.write_to_path(key)
        for position, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(certificate, append=bool(position))
        for agent, files in {"plain": (), "tls": (certificate, key)}.items():
            if options.only in {None, agent}:
                with echo_server(*files) as url:
                    reports |= run_suite(python, {agent: url}, options.cases, directory)
    text = summary(reports)
    failed = [
        f"{agent} {failure}" for agent, report in reports.items() for failure in failures(report)
    ]
    print(text, *failed, sep="\n")
    if options.summary is not None:
        options.summary.write_text(text)
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
