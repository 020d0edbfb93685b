"""A delta has what changed between two messages, with the digits of the producer."""

from __future__ import annotations

import json
from decimal import Decimal
from operator import itemgetter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.protocol.deltas import cut_book, delta_text, read_content
from streamer.protocol.orderbook import checksum
from tests.protocol.books import NUMBERS, levels_text, side_texts

NOON = '"timestamp":"2026-01-02T12:00:00Z"'


def price(members: str) -> bytes:
    """A price_update of stock A."""
    return f'{{"type":"price_update","stock_code":"A",{NOON},{members},"sequence":3}}'.encode()


def book(bids: list[tuple[str, str]], asks: list[tuple[str, str]], more: str = "") -> bytes:
    """An orderbook_update of stock A."""
    sides = f'"bids":{levels_text(bids)},"asks":{levels_text(asks)}'
    return f'{{"type":"orderbook_update","stock_code":"A",{sides},{NOON}{more}}}'.encode()


def delta(base: bytes, new: bytes, depth: int | None = None) -> str | None:
    """The text of the delta between two messages."""
    is_book = b"orderbook_update" in base
    former, content = (read_content(text, is_book=is_book) for text in (base, new))
    if former is None or content is None:
        return None
    text = delta_text(former.at_depth(depth), content.at_depth(depth), 5)
    return None if text is None else text.decode()


def test_a_price_delta_has_the_members_that_changed() -> None:
    """Each has the producer's own text, one that became null is null, and new ones are there."""
    base = price('"price":1.50,"change":0.10,"volume":1e3,"venue":{"a": [1.0]},"note":"x"')
    new = price('"price":1.60,"change":0.10,"volume":1e3,"venue":{"a": [2.0]},"note":null,"b":0')
    assert delta(base, new) == (
        f'{{"type":"price_delta","stock_code":"A",{NOON},"sequence":5,"price":1.60,'
        '"venue":{"a": [2.0]},"note":null,"b":0}'
    )


def test_a_member_that_is_gone_needs_the_whole_message() -> None:
    """A delta cannot remove a member."""
    assert delta(price('"price":1,"a":null'), price('"price":2')) is None
    assert delta(book([], [], ',"a":1'), book([], [])) is None


def test_another_stock_needs_the_whole_message() -> None:
    """In a sector a price is about any stock; only one of the same stock is a base."""
    other = price('"price":1').replace(b'"A"', b'"B"')
    assert delta(other, price('"price":1')) is None


def test_the_members_that_name_the_topic_are_repeated() -> None:
    """A price of a sector does not name the sector otherwise."""
    naming = '"subscription_type":"sector","target":"s"'
    text = delta(price(f'"price":1,{naming}'), price(f'"price":2,{naming}'))
    assert text == (
        f'{{"type":"price_delta","stock_code":"A",{NOON},{naming},"sequence":5,"price":2}}'
    )


def test_a_member_that_names_another_topic_may_be_gone_as_well() -> None:
    """On the topic of a stock, `target` may be the producer's own, such as a price that it aims at.

    A delta repeats such members, but cannot remove them either.
    """
    assert delta(price('"price":1,"target":80000'), price('"price":2')) is None
    assert delta(price('"price":1'), price('"price":2,"target":80000')) is not None


@pytest.mark.parametrize("name", [r"\ud800", r"\u0000\"", "é", r"\ud83d\ude00"])
def test_a_level_may_have_members_of_any_name(name: str) -> None:
    """A lone surrogate in a name is JSON, and passed on as an escape."""
    book_of = '{{"type":"orderbook_update","stock_code":"A",{},"bids":[{}],"asks":[],"n":1}}'
    level = f'{{"price":1,"quantity":2,"{name}":[1.50]}}'
    base, new = (book_of.format(NOON, levels).encode() for levels in ("", level))
    text = delta(base, new)
    assert text is not None
    assert json.loads(text)["bids"] == [json.loads(level)]
    assert "[1.50]" in text


def test_the_checksum_in_a_whole_book_is_the_producers_own() -> None:
    """A delta has the server's, once; and none is needed in the next whole book."""
    base, new, last = (
        book([(bid, "1")], [], more) for bid, more in (("1", ',"checksum":7'), ("2", ""), ("3", ""))
    )
    for former, later, bid in ((base, new, "2"), (new, last, "3"), (last, base, "1")):
        text = delta(former, later)
        assert text is not None
        assert text.count("checksum") == 1
        assert json.loads(text)["checksum"] == checksum([(bid, "1")], [])


def test_an_orderbook_delta_has_changed_levels_and_a_checksum() -> None:
    """A level that is gone has the quantity 0; a number written differently is no change."""
    base = book([("10.5", "1"), ("10", "2"), ("9", "3")], [("11", "4")], ',"update_id":7')
    new = book([("10.50", "1.0"), ("10", "2.5")], [("10.75", "1"), ("11", "4")], ',"update_id":8')
    total = checksum([("10.50", "1.0"), ("10", "2.5")], [("10.75", "1"), ("11", "4")])
    assert delta(base, new) == (
        f'{{"type":"orderbook_delta","stock_code":"A",{NOON},"sequence":5,"update_id":8,'
        '"bids":[{"price":10,"quantity":2.5},{"price":9,"quantity":0}],'
        f'"asks":[{{"price":10.75,"quantity":1}}],"checksum":{total}}}'
    )


def test_the_best_levels_only() -> None:
    """At a depth a level is gone when it falls below it, and the checksum has no other levels."""
    base = book([("10", "1"), ("9", "1"), ("8", "1")], [])
    new = book([("11", "1"), ("10", "1"), ("9", "1"), ("8", "1")], [])
    text = delta(base, new, depth=2)
    assert text is not None
    decoded = json.loads(text)
    assert decoded["bids"] == [{"price": 11, "quantity": 1}, {"price": 9, "quantity": 0}]
    assert decoded["checksum"] == checksum([("11", "1"), ("10", "1")], [])


@pytest.mark.parametrize("levels", [[("1", "1"), ("2", "1")], [("1", "0")], [("1", "1")] * 2])
def test_a_book_out_of_order_has_no_delta(levels: list[tuple[str, str]]) -> None:
    """Levels that are not in order, or without a quantity, could not be rebuilt from changes."""
    assert read_content(book(levels, []), is_book=True) is None


def test_a_cut_book_is_otherwise_the_same() -> None:
    """The first levels of each side are left, with every digit and member."""
    text = (
        b'{"a\\"":1.50,"asks":[{"price":1,"quantity":2.0,"x":"}],["},{"price":2,"quantity":1}],'
        b'"bids":[{"price":0.50,"quantity":1}],"sequence":4}'
    )
    assert cut_book(text, 1) == text.replace(b',{"price":2,"quantity":1}', b"")
    assert cut_book(text, 2) is text


def test_a_book_is_cut_to_its_best_levels_in_whatever_order_they_are() -> None:
    """Prices are compared as decimals, and each level is as it was written."""
    sides = '"bids":[{}],"asks":[{}]'
    levels = {price: f'{{"price":{price},"quantity":1}}' for price in ("9", "1e1", "11.0")}
    rising = ",".join(levels.values())
    book = f'{{"type":"orderbook_update","stock_code":"A",{sides.format(rising, rising)}}}'
    falling = ",".join(reversed(levels.values()))
    for text in (book, book.replace(rising, falling)):
        bids = f"{levels['11.0']},{levels['1e1']}"
        asks = f"{levels['9']},{levels['1e1']}"
        cut = cut_book(text.encode(), 2)
        assert cut.endswith(f"{sides.format(bids, asks)}}}".encode())


MORE = ("", ',"orders":3', ',"orders":null', ', "x":"}],["', ',"x":{"price":1}', ',"orders":[1,{}]')


@given(
    st.lists(st.tuples(NUMBERS, st.sampled_from(MORE)), max_size=8),
    st.integers(1, 9),
    st.sampled_from([",", " ,\n "]),
    st.booleans(),
)
def test_any_book_is_cut_to_its_best_levels(
    levels: list[tuple[str, str]], depth: int, comma: str, in_order: bool
) -> None:
    """With numbers however they are written, and whatever else a level has."""
    prices = sorted(Decimal(price) for price, _ in levels)
    if in_order:
        levels = [(str(price), more) for price, (_, more) in zip(prices, levels, strict=True)]
    texts = [f'{{"price":{price},"quantity":1{more}}}' for price, more in levels]
    text = f'{{"type":"orderbook_update","bids":[],"asks":[{comma.join(texts)}],"a":[1]}}'
    asks = sorted(json.loads(text)["asks"], key=itemgetter("price"))
    cut = json.loads(cut_book(text.encode(), depth))
    if len(levels) <= depth:
        assert cut == json.loads(text)
    else:
        assert cut == json.loads(text) | {"asks": asks[:depth]}


def test_prices_that_differ_beyond_a_double_are_in_order_all_the_same() -> None:
    """Two numbers may be the same double, or an integer between two of them."""
    far, near = "9007199254740993.2", "9007199254740993.1"
    text = book([], [(far, "1"), (near, "1")])
    assert cut_book(text, 1) == book([], [(near, "1")])
    huge = book([], [("1" + "0" * 400, "1"), ("1", "1")])
    assert cut_book(huge, 1) == book([], [("1", "1")])


def test_a_usual_book_is_cut_without_a_look_at_each_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may ask for a hundred books of hundreds of levels in one request."""
    monkeypatch.delattr("streamer.protocol.deltas.Decimal")
    monkeypatch.delattr("streamer.protocol.deltas.read_value")
    asks = [(f"{number}.50", "1e2") for number in range(500)]
    assert cut_book(book(asks[::-1], asks), 499) == book(asks[:0:-1], asks[:-1])


@given(side_texts(most=10), side_texts(least=10), side_texts(most=10), side_texts(least=10))
def test_the_checksum_is_that_of_the_new_book(
    bids: list[tuple[str, str]],
    asks: list[tuple[str, str]],
    new_bids: list[tuple[str, str]],
    new_asks: list[tuple[str, str]],
) -> None:
    """Between any two books there is a delta, whose checksum is that of the second."""
    text = delta(book(bids[::-1], asks), book(new_bids[::-1], new_asks))
    assert text is not None
    decoded: dict[str, Any] = json.loads(text)
    assert decoded["checksum"] == checksum(new_bids[::-1], new_asks)
