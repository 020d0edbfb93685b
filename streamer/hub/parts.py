"""Walks over all clients in parts, between which the event loop may serve clients."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, TypeAlias, TypeVar

T = TypeVar("T")

Parts: TypeAlias = Generator[None, None, T]
"""A walk that stops after each part, and returns its result after the last one."""

CLIENTS_PER_PART: Final = 500
"""A part that counts something of each client takes a millisecond or two."""


def completed(parts: Parts[T]) -> T:
    """Take all parts at once, and return the result."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            result: T = end.value
            return result
