"""Walks over all clients in parts, between which the event loop may serve clients."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Final, Generic, TypeAlias, TypeVar

T = TypeVar("T")

Parts: TypeAlias = Generator[None, None, T]
"""A walk that stops after each part, and returns its result after the last one."""

CLIENTS_PER_PART: Final = 500
"""A part that counts something of each client takes a millisecond or two."""


class Walk(Generic[T]):
    """Iterates over the parts of a walk, and keeps its result."""

    result: T
    """Set after the last part."""

    def __init__(self, parts: Parts[T]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[None]:
        self.result = yield from self._parts


def completed(parts: Parts[T]) -> T:
    """Take all parts at once, and return the result."""
    walk = Walk(parts)
    for _ in walk:
        pass
    return walk.result
