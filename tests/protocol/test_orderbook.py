"""Levels are compared as decimals, and the checksum is that of the protocol reference."""

from __future__ import annotations

import zlib
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs.vectors import VECTORS, Vector
from streamer.protocol.json_text import read_members
from streamer.protocol.orderbook import (
    Side,
    apply_changes,
    changed_levels,
    checksum,
    plain_decimal,
    read_levels,
    side_of,
)
from tests.protocol.books import NUMBERS, levels_text, side_texts


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_the_checksum_of_each_reference_book(vector: Vector) -> None:
    """It is the CRC-32 of the text that the reference gives."""
    assert checksum(vector.bids, vector.asks) == vector.checksum
    assert zlib.crc32(vector.text.encode()) == vector.checksum


def test_the_reference_vectors_do_not_change() -> None:
    """Clients in other languages are tested with these numbers."""
    assert {vector.name: vector.checksum for vector in VECTORS} == {
        "ten levels": 128_661_899,
        "twelve levels: the best ten count": 128_661_899,
        "fewer, and of different number": 1_346_769_207,
        "one side": 932_632_908,
        "empty": 0,
        "exponents": 4_029_461_997,
        "zeros at the end": 3_699_695_163,
        "below zero, and zero": 2_874_265_196,
        "huge": 885_565_562,
    }


@pytest.mark.parametrize(
    ("number", "plain"),
    [
        ("0", "0"),
        ("-0", "0"),
        ("-0.00", "0"),
        ("0e5", "0"),
        ("0E-7", "0"),
        ("100", "100"),
        ("1.50", "1.5"),
        ("1.00", "1"),
        ("-1.20", "-1.2"),
        ("1.5e1", "15"),
        ("1e-3", "0.001"),
        ("1E+2", "100"),
        ("-2.50E-1", "-0.25"),
        ("1e400", f"1{'0' * 400}"),
    ],
)
def test_a_number_has_one_plain_form(number: str, plain: str) -> None:
    """It has no exponent, no sign + and no superfluous zeros, whether a text or a Decimal."""
    assert plain_decimal(number) == plain_decimal(Decimal(number)) == plain


@given(NUMBERS, NUMBERS)
def test_equal_numbers_have_the_same_plain_form(one: str, other: str) -> None:
    """Two texts have the same plain form exactly if they are the same number."""
    assert (plain_decimal(one) == plain_decimal(other)) == (Decimal(one) == Decimal(other))


def _side(*levels: tuple[str, str], descending: bool = False) -> Side | None:
    known = [{"price": price, "quantity": quantity} for price, quantity in levels]
    return side_of(read_levels(known, levels_text(levels)), descending=descending)


@pytest.mark.parametrize(
    "levels",
    [
        [("2", "1"), ("1", "1")],
        [("1", "1"), ("1.0", "2")],
        [("1", "0")],
        [("1", "-1")],
    ],
)
def test_a_side_out_of_order_is_none(levels: list[tuple[str, str]]) -> None:
    """Levels that are not in order, that are twice there, or without a quantity have no changes."""
    assert _side(*levels) is None


@given(side_texts(), side_texts(), st.booleans())
def test_changes_lead_from_one_side_to_another(
    base: list[tuple[str, str]], new: list[tuple[str, str]], descending: bool
) -> None:
    """Applied to the first side, they give the second: same numbers, in the same order."""
    if descending:
        base.reverse()
        new.reverse()
    before, after = _side(*base, descending=descending), _side(*new, descending=descending)
    assert before is not None
    assert after is not None
    changes = changed_levels(before, after)
    text = f"[{','.join(changes)}]"
    read = list(read_levels(_decoded(text), text))
    result = apply_changes(before, read, descending=descending)
    numbers = [(price, Decimal(level[1])) for price, level in after.items()]
    assert [(price, Decimal(level[1])) for price, level in result.items()] == numbers
    assert not [price for price, level in read if before.get(price, ("", "", ""))[1] == level[1]]


def test_a_change_of_another_member_is_a_change() -> None:
    """A level with another number of orders, or another field of the producer, has changed."""
    texts = [
        '[{"price":1,"quantity":2,"orders":3}]',
        '[{"price":1.0,"quantity":2.0,"orders":3}]',
        '[{"price":1,"quantity":2,"orders":4}]',
        '[{"price":1,"quantity":2,"venue":{"a":[1.50]}}]',
        '[{"quantity":2,"price":1}]',
    ]
    sides = [side_of(read_levels(_decoded(text), text), descending=False) for text in texts]
    changes = [changed_levels(sides[0] or {}, side or {}) for side in sides]
    assert changes[:2] == [[], []]
    assert [change for changed in changes[2:] for change in changed] == [
        '{"price":1,"quantity":2,"orders":4}',
        '{"price":1,"quantity":2,"venue":{"a":[1.50]}}',
        '{"price":1,"quantity":2}',
    ]


def _decoded(levels: str) -> list[dict[str, str]]:
    ((_, value, _),) = read_members(f'{{"levels":{levels}}}')
    result: list[dict[str, str]] = value
    return result
