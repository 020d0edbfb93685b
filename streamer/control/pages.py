"""Pages of a list whose rows are on several processes: sorted, and cut where a cursor says.

A cursor is the place of the last row: its value in the column sorted by, and its names. Rows that
change between two pages may be seen twice or not at all.
"""

from __future__ import annotations

import base64
import binascii
import heapq
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import attrs
import orjson

from streamer.admin.models import ApiError

T = TypeVar("T")

Place = tuple[str | float, ...]
"""A row's value and names, by which rows are sorted."""

_NO_PLACE: Final[Place] = ()


@attrs.frozen
class Page:
    """The part of a sorted list that is asked for."""

    limit: int
    after: Place = _NO_PLACE
    descending: bool = False

    @classmethod
    def of(cls, limit: int, cursor: str | None, *, like: Place, descending: bool) -> Page:
        """Read a cursor, whose place has types `like` this one. Raises ApiError (422)."""
        if cursor is None:
            return cls(limit, descending=descending)
        place = _place_of(cursor)
        if [*map(_sort_of, place)] != [*map(_sort_of, like)]:
            problem = "is not one of this list: take `next` of an answer to the same request"
            raise ApiError(422, f"cursor: {problem}", fields={"cursor": problem})
        return cls(limit, place, descending)

    def has(self, place: Place) -> bool:
        """Whether a row at this place comes after the cursor."""
        if not self.after:
            return True
        return place < self.after if self.descending else place > self.after

    def cut(self, rows: Iterable[T], place_of: Callable[[T], Place]) -> list[T]:
        """Return the rows of the page, in order."""
        follow = (row for row in rows if self.has(place_of(row)))
        take = heapq.nlargest if self.descending else heapq.nsmallest
        return take(self.limit, follow, key=place_of)


def cursor_of(place: Place) -> str:
    """Write a place as a cursor."""
    return base64.urlsafe_b64encode(orjson.dumps(list(place))).decode().rstrip("=")


def _place_of(cursor: str) -> Place:
    """Return what a cursor says, which may be anything; empty if it says nothing."""
    padded = cursor + "=" * (-len(cursor) % 4)
    try:
        return tuple(orjson.loads(base64.b64decode(padded.encode(), altchars=b"-_", validate=True)))
    except (binascii.Error, TypeError, ValueError):
        return _NO_PLACE


def _sort_of(value: Any) -> type:
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)
