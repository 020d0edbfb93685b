"""Messages of feeds become publications, by mappings: those of the examples, and others.

Covers streamer.feeds.book_chains.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from streamer.feeds.mapper import Mapper
from streamer.feeds.mapping_reader import read_mapping
from streamer.feeds.recording_lines import Origin
from streamer.publisher import Destination
from tests.feeds.exchanges import UPBIT_BOOK, UPBIT_TRADE
from tests.feeds.recordings import depth, snapshot, trade

EXAMPLES: Final = Path(__file__).parents[2] / "docs" / "examples" / "feeds"
NOW_NS: Final = 1_723_161_255_342_000_000
FIRST: Final = Origin("r", 1)
SECOND: Final = Origin("r", 2)


class Mapped:
    """A mapper, and what it has reported."""

    def __init__(self, path: Path) -> None:
        self.problems: list[str] = []
        self.holes: list[str] = []
        self.mapper = Mapper(
            read_mapping(path),
            on_problem=lambda key, reason: self.problems.append(f"{key}: {reason}"),
            on_hole=lambda channel, _origin: self.holes.append(channel),
        )

    def map(self, message: str, origin: Origin = FIRST) -> list[tuple[str, str]]:
        """Map a message; every publication fits its channel, as the server will check."""
        published = self.mapper.map(message, NOW_NS, origin)
        for channel, payload in published:
            Destination.parse(channel).check(payload)
        return [(channel, payload.decode()) for channel, payload in published]

    def exact(self, message: str, origin: Origin = FIRST) -> list[Any]:
        """Map a message; return the publications with numbers as they are written."""
        return [json.loads(text, parse_float=Decimal) for _, text in self.map(message, origin)]


def mapped(tmp_path: Path, text: str) -> Mapped:
    """Make a mapper of this mapping."""
    path = tmp_path / "mapping.toml"
    path.write_text(text)
    return Mapped(path)


@pytest.fixture
def binance() -> Mapped:
    """The example for Binance."""
    return Mapped(EXAMPLES / "binance.toml")


@pytest.fixture
def upbit() -> Mapped:
    """The example for Upbit."""
    return Mapped(EXAMPLES / "upbit.toml")


def test_a_trade_of_binance_is_a_price(binance: Mapped) -> None:
    """With every digit; change counts from the first price, volume is the sum."""
    binance.map(trade(1, "61234.50000000"))
    ((channel, text),) = binance.map(trade(2, "61234.49000000"))
    assert channel == "stock:BTCUSDT:price"
    assert text == (
        '{"type":"price_update","stock_code":"BTCUSDT","price":61234.49000000,'
        '"change":-0.01000000,"change_percent":0.0000,"volume":0.04000000,"quantity":0.02000000,'
        '"timestamp":"2024-08-08T23:54:15.342Z","trade_id":2,"buyer_is_maker":true}'
    )


def test_changes_of_binance_follow_the_snapshot(binance: Mapped) -> None:
    """Those before it wait; those in it are left out; the one that overlaps it is the first."""
    assert binance.map(depth(1, 4, {"1.0": "9"})) == []
    assert binance.map(depth(5, 8, {"0.9": "7.00"})) == []
    book, change = binance.exact(snapshot(6, {"1.0": "6.0"}, {"1.1": "3.0", "1.2": "0.0"}))
    assert book["type"] == "orderbook_update"
    assert book["asks"] == [{"price": Decimal("1.1"), "quantity": Decimal("3.0")}]
    assert change["type"] == "orderbook_delta"
    assert str(change["bids"][0]["quantity"]) == "7.00"
    (gone,) = binance.exact(depth(9, 9, {"1.0": "0.00"}))
    assert gone["bids"] == [{"price": Decimal("1.0"), "quantity": Decimal("0.00")}]
    assert binance.map(depth(9, 9)) == []
    assert (binance.holes, binance.mapper.counts.withheld) == ([], 0)


def test_no_change_is_published_over_a_hole(binance: Mapped) -> None:
    """It is reported, and changes go on after another snapshot that they follow."""
    binance.map(snapshot(1))
    assert len(binance.map(depth(2, 2))) == 1
    assert binance.map(depth(4, 4)) == []
    assert binance.holes == ["stock:BTCUSDT:orderbook"]
    assert binance.map(depth(5, 5)) == []
    assert binance.map(snapshot(2)) == []  # too old
    assert len(binance.holes) == 2
    assert len(binance.map(snapshot(4))) == 2
    assert len(binance.map(depth(6, 6))) == 1
    assert binance.mapper.counts.withheld == 0


def test_another_connection_needs_another_book(binance: Mapped) -> None:
    """Even if the ids go on: what a feed without ids has left out cannot be known."""
    binance.map(snapshot(1))
    assert len(binance.map(depth(2, 2), FIRST)) == 1
    assert binance.map(depth(3, 3), SECOND) == []
    assert binance.mapper.counts.withheld == 1
    assert len(binance.map(snapshot(2), SECOND)) == 2
    assert binance.holes == []


def test_a_snapshot_that_was_not_needed_changes_nothing(binance: Mapped) -> None:
    """An older book must not follow a newer one."""
    binance.map(snapshot(1))
    binance.map(depth(2, 5))
    assert binance.map(snapshot(3)) == []
    assert len(binance.map(depth(6, 6))) == 1


def test_ids_that_begin_anew_begin_another_book(binance: Mapped) -> None:
    """A restarted exchange sends a book with a low id: it is no snapshot that was not needed."""
    binance.map(snapshot(500))
    binance.map(depth(501, 501))
    binance.map(snapshot(1, {"2.0": "1.0"}))
    whole, change = binance.exact(depth(2, 2, {"3.0": "1.0"}))
    assert [level["price"] for level in whole["bids"]] == [Decimal("2.0")]
    assert [level["price"] for level in change["bids"]] == [Decimal("3.0")]
    assert len(binance.map(depth(3, 3))) == 1
    assert binance.holes == []


def test_ids_that_begin_anew_without_a_book_are_a_hole(binance: Mapped) -> None:
    """Changes with low ids are not contained in a book with a high one."""
    binance.map(snapshot(500))
    binance.map(depth(501, 501))
    assert binance.map(depth(2, 2)) == []
    assert binance.holes == ["stock:BTCUSDT:orderbook"]
    assert binance.map(depth(3, 3)) == []
    assert len(binance.map(snapshot(1))) == 3


def test_ids_may_begin_anew_before_the_first_book(binance: Mapped) -> None:
    """The changes with the ids of before belong to no book that follows."""
    binance.map(depth(500, 500))
    binance.map(depth(2, 2))
    assert len(binance.map(snapshot(1))) == 2


def test_whole_books_alone_may_begin_anew(binance: Mapped) -> None:
    """Without changes between, none of them can be one that was asked for."""
    assert len(binance.map(snapshot(500))) == 1
    assert len(binance.map(snapshot(1))) == 1


def test_lost_publications_are_a_hole_of_all_books(binance: Mapped) -> None:
    """Redis does not have the book that the next change belongs to."""
    binance.map(snapshot(1))
    binance.mapper.lose_books()
    assert binance.map(depth(2, 2)) == []


def test_a_bad_change_without_ids_is_a_hole(tmp_path: Path) -> None:
    """Nothing else would show that it is missing: changes wait for the next whole book."""
    sides = 'topic = "stock:A"\nfields = { bids = "b", asks = "a" }'
    own = mapped(
        tmp_path,
        f"""
        [[message]]
        when = {{ t = "whole" }}
        publish = "orderbook_update"
        {sides}
        [[message]]
        when = {{ t = "change" }}
        publish = "orderbook_delta"
        {sides}
        """,
    )
    whole, change = '{"t":"whole","b":[],"a":[]}', '{"t":"change","b":[],"a":[]}'
    assert [len(own.map(message)) for message in (whole, change)] == [1, 1]
    assert own.map('{"t":"change","b":[]}') == []
    assert own.holes == ["message[1]"]
    assert own.map(change) == []
    assert len(own.map(whole)) == 2
    assert own.map('{"t":"whole","b":[]}') == []
    assert own.holes == ["message[1]", "message[0]"]
    assert own.map(change) == []  # it would be of the book that was not read


def test_a_whole_book_of_binance_is_named_by_its_stream(binance: Mapped) -> None:
    """A pattern captures the symbol, which the data does not have."""
    data = {"lastUpdateId": 1, "bids": [["1.0", "2.00"]], "asks": []}
    message = json.dumps({"stream": "ethusdt@depth20@100ms", "data": data})
    ((channel, text),) = binance.map(message)
    assert channel == "stock:ETHUSDT:orderbook"
    assert '"bids":[{"price":1.0,"quantity":2.00}],"asks":[]' in text
    assert '"timestamp":"2024-08-08T23:54:15.342Z"' in text


def test_a_trade_of_upbit_is_a_price(upbit: Mapped) -> None:
    """Change counts from the close of the day before, which the feed names."""
    ((channel, text),) = upbit.map(UPBIT_TRADE % 17)
    assert channel == "stock:KRW-BTC:price"
    assert text == (
        '{"type":"price_update","stock_code":"KRW-BTC","price":85123000.00000000,'
        '"change":123000.00000000,"change_percent":0.1447,"volume":0.00012345,'
        '"quantity":0.00012345,"timestamp":"2024-08-08T23:54:15.300Z","trade_id":17,"side":"BID"}'
    )


def test_a_book_of_upbit_is_a_book(upbit: Mapped) -> None:
    """Levels are objects of which each has both sides."""
    ((channel, text),) = upbit.map(UPBIT_BOOK)
    assert channel == "stock:KRW-BTC:orderbook"
    assert (
        '"bids":[{"price":85123000.0,"quantity":1.00},{"price":85122000.0,"quantity":2.5E-1}],'
        '"asks":[{"price":85124000.0,"quantity":1.5},{"price":85125000.0,"quantity":2.0}]'
    ) in text


def test_a_book_has_the_best_price_first(binance: Mapped) -> None:
    """However the feed orders it: by value, not by text."""
    prices = {"9.0": "1", "10.0": "1", "9.50": "1"}
    (book,) = binance.exact(snapshot(1, prices, prices))
    assert [str(level["price"]) for level in book["bids"]] == ["10.0", "9.50", "9.0"]
    assert [str(level["price"]) for level in book["asks"]] == ["9.0", "9.50", "10.0"]


def test_other_messages_are_ignored_and_counted(upbit: Mapped) -> None:
    """Answers to requests and heartbeats are no fault."""
    assert upbit.map('{"status":"UP"}') == []
    assert upbit.map("[1]") == []
    assert (upbit.mapper.counts.ignored, upbit.problems) == (2, [])


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("PONG", "message: not JSON: "),
        (trade(1, "NaN"), "message[0]: data.p is no number: 'NaN'"),
        (trade(1, "+1"), "message[0]: data.p is no number: '+1'"),
        (trade(1, "1", q=None), "message[0]: data.q is missing"),
        (trade(1, "1", q=True), "message[0]: data.q is a boolean"),
        (trade(1, "1", s="*"), "message[0]: invalid target '*'"),
        (trade(1, "1", s=None), "message[0]: data.s is missing"),
        (trade(1, "1", T="soon"), "message[0]: data.T is no number: 'soon'"),
        (trade(1, "1", T=10**30), "message[0]: a time beyond the calendar"),
        (trade(1, "1e999"), "message[0]: price is beyond the bounds of numbers"),
        (trade(1, "1", q="1" * 2000), "message[0]: quantity is beyond the bounds of numbers"),
        (depth(1, 1).replace('"b": []', '"b": [[1]]'), "message[1]: a quantity of data.b is miss"),
        (depth(1, 1).replace('"b": []', '"b": [7]'), "message[1]: a price of data.b is missing"),
        (depth(1, 1, {"1": "-2"}), "message[1]: a quantity of data.b is below 0"),
        (depth(1, 1).replace('"b": []', '"b": 7'), "message[1]: data.b is no list"),
        (depth(1, 1).replace('"u": 1', '"u": -1'), "message[1]: data.u is no id of an update"),
    ],
)
def test_a_bad_message_costs_nothing_else(binance: Mapped, message: str, problem: str) -> None:
    """It is counted and reported with the key of its mapping; the next one is published."""
    assert binance.map(message) == []
    (found,) = binance.problems
    assert found.startswith(problem)
    assert binance.mapper.counts.invalid == 1
    assert len(binance.map(trade(2, "1.0"))) == 1


def test_a_list_is_mapped_item_by_item(tmp_path: Path) -> None:
    """A bad item does not affect the others; `$.` is the whole message; topics may be several."""
    own = mapped(
        tmp_path,
        """
        [[message]]
        when = { channel = ["ticker", "mini"], flag = true, none = { exists = false } }
        each = "data"
        publish = "price_update"
        topic = ["stock:{s}", "sector:{$.sector:lower}"]
        extra = { channel = "$.channel", fixed = { value = 1.50 }, absent = "absent" }
        [message.fields]
        stock_code = "s"
        price = "p"
        change = { value = 0 }
        change_percent = { path = "rate", times = 100 }
        volume = "v"
        timestamp = "at"
        """,
    )
    good = {"s": "A", "p": 1, "rate": "0.0123", "v": 7, "at": "2024-01-01T00:00:00Z"}
    message = {"channel": "mini", "flag": True, "sector": "IT", "data": [good, {}, good]}
    texts = own.map(json.dumps(message))
    assert [channel for channel, _ in texts] == ["stock:A:price", "sector:it:price"] * 2
    assert texts[0][1] == (
        '{"type":"price_update","stock_code":"A","price":1,"change":0,"change_percent":1.2300,'
        '"volume":7,"timestamp":"2024-01-01T00:00:00Z","channel":"mini","fixed":1.50}'
    )
    assert own.problems == ["message[0]: s is missing"]
    assert own.map(json.dumps(message | {"flag": False})) == []
    assert own.map(json.dumps(message | {"none": 1})) == []
    own.problems.clear()
    assert own.map(json.dumps(message | {"data": 7})) == []
    assert own.problems == ["message[0]: data is no list"]


@pytest.mark.parametrize(
    ("price", "reference", "percent"),
    [
        ("-30", "-37.5", "20.0000"),
        ("-40", "-37.5", "-6.6667"),
        ("2", "1e-25", "1999999999999999999999999900.0000"),
        ("12345678901234567890", "0.000001", "1234567890123456788999999900.0000"),
        ("5", "0", "0"),
        ("1.00000001", "1", "0.0000"),
        ("0.99999999", "1", "0.0000"),
    ],
)
def test_a_change_in_percent_is_of_any_size(
    tmp_path: Path, price: str, reference: str, percent: str
) -> None:
    """It has the sign of the change, and never costs the price."""
    own = mapped(
        tmp_path,
        """
        [[message]]
        publish = "price_update"
        topic = "stock:A"
        fields = { price = "p", reference = "r" }
        """,
    )
    ((_, text),) = own.map(json.dumps({"p": price, "r": reference}))
    assert f'"change_percent":{percent},' in text


def test_a_status_is_looked_up(tmp_path: Path) -> None:
    """A code of the feed becomes a status; one that is not in the mapping is bad."""
    own = mapped(
        tmp_path,
        """
        [[message]]
        publish = "market_status"
        topic = "market:KOSPI"
        fields = { status = { path = "state", values = { "1" = "open", "2" = "closed" } } }
        """,
    )
    ((channel, text),) = own.map('{"state":1}')
    assert channel == "market:KOSPI:status"
    assert '"market":"KOSPI","status":"open"' in text
    assert own.map('{"state":3}') == []
    assert own.problems == ["message[0]: state is '3', for which there is no value"]


@pytest.mark.parametrize(
    ("ids", "changes", "published"),
    [
        ('last = "u"', [(2, 0), (3, 0), (5, 0)], 2),
        ('last = "u", previous = "pu"', [(5, 1), (9, 5), (12, 9), (20, 13)], 3),
        ('last = "u", previous = "pu"', [(5, 0), (9, 4)], 2),
        ('last = "u", previous = "pu"', [(5, 1), (9, 5), (2, 9), (4, 2), (3, 9)], 4),
        ("", [(2, 0), (9, 0)], 2),
    ],
    ids=["consecutive", "previous", "overlapping", "begun anew", "none"],
)
def test_ids_are_those_that_the_feed_has(
    tmp_path: Path, ids: str, changes: list[tuple[int, int]], published: int
) -> None:
    """Consecutive ids, or the id of the message before; without ids the connection decides."""
    update_ids = f"update_ids = {{ {ids} }}" if ids else ""
    last = 'update_ids = { last = "u" }' if ids else ""
    sides = 'fields = { bids = "b", asks = "a" }'
    own = mapped(
        tmp_path,
        f"""
        [[message]]
        when = {{ t = "whole" }}
        publish = "orderbook_update"
        topic = "stock:A"
        {sides}
        {last}
        [[message]]
        when = {{ t = "change" }}
        publish = "orderbook_delta"
        topic = "stock:A"
        {sides}
        {update_ids}
        """,
    )
    assert len(own.map('{"t":"whole","u":1,"b":[],"a":[]}')) == 1
    texts = [
        own.map(json.dumps({"t": "change", "u": u, "pu": pu, "b": [], "a": []}))
        for u, pu in changes
    ]
    assert sum(map(len, texts)) == published
