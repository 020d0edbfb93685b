"""A short recording of real market data; README.md has its source and its licence."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

_NAMES: Final = ("btcusdt.gz", "ethusdt.gz")


def sample_recordings() -> list[Traversable]:
    """Return the recordings, one for each symbol."""
    return [files(__package__) / name for name in _NAMES]
