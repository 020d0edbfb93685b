"""Options that several benchmarks have."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

ROUNDS: Final = click.option(
    "--rounds", "count", default=5, type=click.IntRange(1, 100), help="Interleaved rounds."
)

JSON_PATH: Final = click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write all figures to this file.",
)

NICENESS: Final = click.option(
    "--niceness",
    default=-10,
    type=click.IntRange(-20, 19),
    help="Of all parts of the rig; below 0 needs root, and keeps other programs out of the way.",
)
