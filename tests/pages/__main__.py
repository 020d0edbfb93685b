"""The pages under load, in Chromium: `python -m tests.pages`.

    python -m tests.pages frames --seconds 30     the market page at 2,000 updates a second
    python -m tests.pages heap --minutes 30       the same, and what remains in memory
    python -m tests.pages operator                the operator's page with 10,000 connections

Each prints its figures. Exit code 1 where the page held up the browser, or kept memory, or the
account of its stream has a violation.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.pages.market import measure_frames, measure_heap
from tests.pages.operator import measure_operator


def main() -> None:
    """Run one of the measurements and say how it went."""
    parser = argparse.ArgumentParser(prog="python -m tests.pages")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, summary in (
        ("frames", "long tasks and frames of the market page"),
        ("heap", "growth of the memory of the market page"),
    ):
        command = commands.add_parser(name, help=summary)
        command.add_argument("--rate", type=int, default=2000, help="updates per second")
        command.add_argument("--seconds", type=float, default=30.0)
        command.add_argument("--minutes", type=float, help="instead of --seconds")
    operator = commands.add_parser("operator", help="the operator's page with many connections")
    operator.add_argument("--connections", type=int, default=10_000)
    options = parser.parse_args()
    if options.command == "operator":
        problems = measure_operator(options.connections)
    else:
        directory = Path(tempfile.mkdtemp(prefix="pages-"))
        seconds = options.seconds if options.minutes is None else options.minutes * 60
        measure = measure_frames if options.command == "frames" else measure_heap
        problems = measure(directory, options.rate, seconds)
    print(*problems, f"{len(problems)} problems", sep="\n")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
