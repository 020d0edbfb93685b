"""Pages of a sorted list."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.admin.models import ApiError
from streamer.control.pages import Page, Place, cursor_of

LIKE: Place = (0, "")
ROWS = st.lists(st.tuples(st.integers(0, 5) | st.floats(0, 5), st.text(max_size=3)), unique=True)


def whole(row: Place) -> Place:
    """Rows are their places."""
    return row


@given(rows=ROWS, limit=st.integers(1, 4), descending=st.booleans())
def test_all_pages_together_are_the_list(
    rows: Iterable[Place], limit: int, descending: bool
) -> None:
    """Each row is on one page, and the pages follow each other in order."""
    rows = list(rows)
    seen: list[Place] = []
    cursor: str | None = None
    while True:
        page = Page.of(limit, cursor, like=LIKE, descending=descending)
        found = page.cut(rows, whole)
        seen += found
        if len(found) < limit:
            break
        cursor = cursor_of(found[-1])
    assert seen == sorted(rows, reverse=descending)


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "!!!!", "\u00e9", cursor_of(()), cursor_of(("a", "b")), cursor_of((1,)), "bnVsbA"],
)
def test_a_cursor_of_another_list_is_refused(cursor: str) -> None:
    """It names the field; no cursor makes a comparison fail."""
    with pytest.raises(ApiError) as caught:
        Page.of(1, cursor, like=LIKE, descending=False)
    assert caught.value.status == 422
    assert list(caught.value.fields or {}) == ["cursor"]
