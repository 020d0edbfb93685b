"""Measurements with made-up figures."""

from __future__ import annotations

from typing import Any

import attrs

from bench.measure import Measurement


def measurement(**figures: Any) -> Measurement:
    """Return a measurement with these figures; all others are 0."""
    fields = dict.fromkeys((field.name for field in attrs.fields(Measurement)), 0)
    return Measurement(**{**fields, "detail": {}, **figures})
