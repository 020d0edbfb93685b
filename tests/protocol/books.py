"""Random order books as JSON, with numbers written in every way that JSON allows."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st


def _written(number: Decimal, form: int) -> str:
    """Write a number in one of several ways."""
    plain = format(number, "f")
    if form == 1:
        return f"{plain}00" if "." in plain else f"{plain}.0"
    if form == 2:
        sign, digits, exponent = number.as_tuple()
        assert isinstance(exponent, int)
        return f"{'-' * sign}{int(''.join(map(str, digits)))}e{exponent}"
    return plain


NUMBERS = st.builds(
    lambda units, places, form: _written(Decimal(units).scaleb(-places), form),
    st.integers(-3000, 3000),
    st.integers(0, 3),
    st.integers(0, 2),
)


@st.composite
def side_texts(draw: Any, least: int = -20, most: int = 60) -> list[tuple[str, str]]:
    """Levels (price, quantity) by ascending price, each with a quantity above 0."""
    ticks = draw(st.lists(st.integers(least, most), max_size=14, unique=True))
    levels = []
    for tick in sorted(ticks):
        quantity = Decimal(draw(st.integers(1, 5))).scaleb(draw(st.integers(-2, 1)))
        levels.append(
            (
                _written(Decimal(tick) / 4, draw(st.integers(0, 1))),
                _written(quantity, draw(st.integers(0, 2))),
            )
        )
    return levels


def levels_text(levels: Iterable[tuple[str, str]]) -> str:
    """Return levels as JSON."""
    texts = (f'{{"price":{price},"quantity":{quantity}}}' for price, quantity in levels)
    return f"[{','.join(texts)}]"
