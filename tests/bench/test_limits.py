"""The highest rate that a core sustains: what passes, and the table of it."""

from __future__ import annotations

from typing import Any

import pytest

from bench.compare import LATEST, LIMIT, Record, sustained
from bench.measure import Measurement
from bench.report import write_report
from tests.bench.figures import measurement


def delivered(**figures: Any) -> Measurement:
    """Return a measurement with these figures, in which everything was in time."""
    return measurement(**{"p99_ms": 99.9, **figures})


@pytest.mark.parametrize(
    ("figures", "without_merging", "with_merging"),
    [
        ({}, True, True),
        ({"merged": 1}, False, True),
        ({"lost": 1}, False, False),
        ({"undelivered": 1}, False, False),
        ({"violations": 1}, False, False),
        ({"p99_ms": 100.0}, False, False),
        ({"p99_ms": 0.0}, False, False),
    ],
)
def test_what_a_core_sustains(
    figures: dict[str, float], *, without_merging: bool, with_merging: bool
) -> None:
    """A p99 of 0 is that of a run in which nothing arrived."""
    assert sustained(delivered(**figures), LIMIT) is without_merging
    assert sustained(delivered(**figures), LATEST) is with_merging


def test_the_table_has_the_medians_of_both(tmp_path: Any) -> None:
    """A server that passes no round has a rate of 0, and nothing else."""
    figures = {"delivered_per_second": 2e6, "kernel_memory_bytes_per_client": 4096}
    merging = delivered(conflation_ratio=4.0, **figures)
    records = [
        Record(0, LIMIT, "", 2000.0, "streamer", delivered(conflation_ratio=1.0, **figures)),
        Record(0, LIMIT, "", 0.0, "fastapi", None, "no fastapi here"),
        *(
            Record(number, LATEST, "", rate, "streamer", merging)
            for number, rate in enumerate((8000.0, 9000.0, 7000.0))
        ),
    ]
    write_report(records, {}, [], tmp_path, [])
    rows = [line for line in (tmp_path / "README.md").read_text().splitlines() if "KB" not in line]
    assert [line for line in rows if line.startswith(("| streamer", "| FastAPI"))] == [
        "| streamer | 2,000 | 2,000,000 | 1.00 | 99.9 |  | 4.0 | 2,000 |",
        "| FastAPI + uvicorn (uvloop) | 0 | 0 |  |  |  |  | 0 |",
        "| streamer | 8,000 | 2,000,000 | 4.00 | 99.9 |  | 4.0 | 8,000, 9,000, 7,000 |",
    ]
