"""Mappings as files: what is read, and every fault of a file with its key.

Covers streamer.feeds.mapping_values and streamer.feeds.mapping_reader.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from streamer.feeds.mapping import FeedMapping
from streamer.feeds.mapping_reader import MappingError, read_mapping
from streamer.feeds.mapping_values import Number, Template, json_text, read_json

EXAMPLES: Final = Path(__file__).parents[2] / "docs" / "examples" / "feeds"

MISSING_PARENTHESIS: Final = (
    "message[0].when.d.pattern: is no regular expression: missing ), unterminated subpattern at "
    "position 0"
)

STATUS: Final = """
[[message]]
publish = "market_status"
topic = "market:{m}"
fields = { status = { value = "on" } }
"""

PRICE: Final = """
[[message]]
publish = "price_update"
topic = "stock:{s}"
fields = { price = "p" }
"""


def read(tmp_path: Path, text: str) -> FeedMapping:
    """Read a mapping with this text."""
    path = tmp_path / "mapping.toml"
    path.write_text(text)
    return read_mapping(path)


def problems(tmp_path: Path, text: str) -> tuple[str, ...]:
    """Return all faults of a mapping with this text."""
    with pytest.raises(MappingError) as raised:
        read(tmp_path, text)
    path = tmp_path / "mapping.toml"
    assert str(raised.value) == "\n".join(f"{path}: {text}" for text in raised.value.problems)
    return raised.value.problems


@pytest.mark.parametrize("name", ["binance.toml", "upbit.toml"])
def test_the_examples_are_mappings(name: str) -> None:
    """Each names its feed."""
    mapping = read_mapping(EXAMPLES / name)
    assert mapping.messages
    assert mapping.sources[0].url.startswith("wss://")


def test_a_feed_has_what_its_server_expects(tmp_path: Path) -> None:
    """One string is as good as a list of one; several URLs are several feeds."""
    feed = '[feed]\nurl = ["ws://a", "ws://b"]\nsubscribe = "x"\nheartbeat_seconds = 1.5\n'
    one, two = read(tmp_path, feed + PRICE).sources
    assert (one.url, two.url) == ("ws://a", "ws://b")
    assert (one.subscribe, one.heartbeat, one.heartbeat_seconds) == (("x",), None, 1.5)


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    """Each has its key; a name that is nearly right gets a hint."""
    found = problems(
        tmp_path,
        """
        surplus = 1

        [feed]
        url = "http://x"
        fetch = "ws://x"
        heartbeat_seconds = 0

        [[message]]
        publish = "price_update"
        topic = "stok:{s}"
        when = { a = {}, b = [], "c." = 1, d = { pattern = "(" } }
        fields = { prices = "p", volume = 7, change = "a..b", change_percent = { times = "2" } }
        extra = { timestamp = "t", quantity = "q" }

        [[message]]
        publish = "market_status"
        topic = "stock:{s}"
        fields = { status = { path = "x", values = { "1" = "opened" } } }
        update_ids = { last = "u" }

        [[message]]
        publish = "orderbook_delta"
        topic = ["stock:{s!r}", "stock:{s:title}", "user:{s}"]
        fields = { bids = { each = "b", prices = "p" }, timestamp = { path = "t", unit = "min" } }
        update_ids = { first = "U" }

        [[message]]
        publish = "trade"
        """,
    )
    assert sorted(found) == sorted(
        [
            "surplus: is not known",
            "feed.url: is no URL with the scheme ws or wss",
            "feed.fetch: is no URL with the scheme http or https",
            "feed.heartbeat_seconds: must be above 0",
            (
                "message[0].topic: 'stok:X' is not TYPE:TARGET with a type of stock, market, "
                "sector, watchlist, user"
            ),
            "message[0].when.a: expected { pattern = … } or { exists = … }; is the path in quotes?",
            "message[0].when.b: expected a constant, a list of constants, or a table",
            "message[0].when.c.: 'c.' is no path such as data.price",
            MISSING_PARENTHESIS,
            "message[0].fields.price: is needed",
            "message[0].fields.prices: is not known; did you mean price?",
            "message[0].fields.volume: expected a string or a table, got a number",
            "message[0].fields.change: 'a..b' is no path such as data.price",
            "message[0].fields.change_percent: expected either path or value",
            "message[0].fields.change_percent.times: expected a number, got a string",
            "message[0].extra.timestamp: is reserved",
            "message[0].extra.quantity: belongs in fields",
            "message[1].topic: stock carries no market_status",
            (
                "message[1].fields.status.values: each must become one of open, closed, "
                "pre_market, after_hours"
            ),
            "message[1].update_ids: market_status has no update ids",
            "message[2].topic: in 'stock:{s!r}', only :upper and :lower may follow a path",
            "message[2].topic: in 'stock:{s:title}', only :upper and :lower may follow a path",
            "message[2].topic: user carries no orderbook_delta",
            "message[2].fields.asks: is needed",
            "message[2].fields.bids.prices: is not known; did you mean price?",
            "message[2].fields.timestamp.unit: expected one of s, ms, us, ns, got 'min'",
            "message[2].update_ids.last: is needed",
            (
                "message[3].publish: expected one of price_update, orderbook_update, "
                "orderbook_delta, market_status, got 'trade'"
            ),
            "message[3].topic: is needed",
        ]
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[message]", "not TOML: "),
        ("", "message: at least one [[message]] is needed"),
        ("message = 1", "message: expected a list, got a number"),
        (
            '[feed]\nurl = "ws://a/"\nheartbeat_seconds = nan\n' + PRICE,
            "feed.heartbeat_seconds: expected a number, got NaN",
        ),
        (
            PRICE.replace('price = "p"', "price = { value = inf }"),
            "message[0].fields.price.value: expected a number, got Infinity",
        ),
        ("message = [1]", "message: write it as [[message]]"),
        ("[feed]\nurl = []\n" + PRICE, "feed.url: expected a string, or a list of strings"),
        (PRICE.replace("stock:{s}", "sector:{x}"), "message[0].fields.stock_code: is needed"),
        (
            STATUS,
            "message[0].fields.status.value: expected one of open",
        ),
    ],
)
def test_a_fault_is_named(tmp_path: Path, text: str, problem: str) -> None:
    """The error has the key and the reason."""
    (found,) = problems(tmp_path, text)
    assert found.startswith(problem)


def test_numbers_are_read_and_written_as_their_text() -> None:
    """Every digit, exponents, and integers beyond 64 bits."""
    text = '{"a":[1.50,-0.0,1E-7,123456789012345678901234567890],"b":{"c":"1.50"},"d":true}'
    value: Any = read_json(text)
    assert value["a"][0] == Number("1.50")
    assert json_text(value).decode() == text


@pytest.mark.parametrize("text", ["", "{", "NaN", "[" * 100_000, b"\xff"])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    """However it is wrong."""
    with pytest.raises(ValueError, match=r"."):
        read_json(text)


def test_a_template_is_checked_when_it_is_read() -> None:
    """Braces that do not match are a fault of the file."""
    with pytest.raises(ValueError, match="expected '}'"):
        Template.parse("stock:{s")
    assert Template.parse("stock:{s:upper}-{{}}").sample == "stock:X-{}"
