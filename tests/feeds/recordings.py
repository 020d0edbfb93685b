"""The excerpts of recorded market data, and how tests write recordings of their own."""

from __future__ import annotations

import bisect
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import attrs

from streamer.feeds.binance import read_book_tickers

_SAMPLE = Path(__file__).parents[2] / "streamer" / "feeds" / "sample"

BTCUSDT = _SAMPLE / "btcusdt.gz"
ETHUSDT = _SAMPLE / "ethusdt.gz"


@attrs.frozen
class Contents:
    """The contents of a recording, counted independently of the code under test."""

    trades: int
    depth_updates: int
    obsolete_depth_updates: int
    """Depth updates that the snapshot already contains; no order book is made of them."""
    same_id_books: int
    """Order books with a book ticker of the same update id. The others have an earlier one."""

    @property
    def books(self) -> int:
        """Order books that must be published."""
        return self.depth_updates - self.obsolete_depth_updates


CONTENTS: Final = {
    BTCUSDT: Contents(trades=676, depth_updates=384, obsolete_depth_updates=2, same_id_books=70),
    ETHUSDT: Contents(trades=614, depth_updates=360, obsolete_depth_updates=2, same_id_books=60),
}


def text_of(path: Path) -> str:
    """Return the whole text of a recording."""
    return gzip.decompress(path.read_bytes()).decode()


def assert_books_agree_with_tickers(path: Path, books: Iterable[dict[str, Any]]) -> None:
    """Check all order books of a recording as `agreeing_books` does; none may be missing."""
    contents = CONTENTS[path]
    assert agreeing_books(path, books) == (contents.books, contents.same_id_books)


def agreeing_books(path: Path, books: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """Check the best bid and ask of order books of a recording against its book tickers.

    Returns how many there are, and how many of them have a ticker of the same id. The exchange
    sends a ticker at each change of the best levels, so the newest ticker up to a book's update id
    holds for the book even where the ids differ. The books' numbers must be parsed as Decimal: they
    are compared digit by digit.
    """
    tickers = list(read_book_tickers(path))
    ticker_ids = [ticker.update_id for ticker in tickers]
    assert ticker_ids == sorted(ticker_ids)
    count = same_id = 0
    for book in books:
        count += 1
        index = bisect.bisect_right(ticker_ids, book["update_id"]) - 1
        assert index >= 0
        ticker = tickers[index]
        for (price, quantity), level in (
            (ticker.best_bid, book["bids"][0]),
            (ticker.best_ask, book["asks"][0]),
        ):
            assert str(level["price"]) == str(price)
            assert str(level["quantity"]) == str(quantity)
        same_id += ticker.update_id == book["update_id"]
    return count, same_id


def trade(trade_id: int, price: str, *, symbol: str = "BTCUSDT", **changed: Any) -> str:
    """Return the JSON of a trade as the exchange sends it."""
    data = {
        "e": "trade",
        "E": 1723161255343,
        "s": symbol,
        "t": trade_id,
        "p": price,
        "q": "0.02000000",
        "T": 1723161255342,
        "m": True,
    }
    return json.dumps({"stream": f"{symbol.lower()}@trade", "data": data | changed})


def depth(
    first: int,
    last: int,
    bids: dict[str, str] | None = None,
    asks: dict[str, str] | None = None,
    *,
    symbol: str = "BTCUSDT",
) -> str:
    """Return the JSON of a depth update; the levels are price -> quantity."""
    data = {
        "e": "depthUpdate",
        "E": 1723161255208,
        "s": symbol,
        "U": first,
        "u": last,
        "b": list((bids or {}).items()),
        "a": list((asks or {}).items()),
    }
    return json.dumps({"stream": f"{symbol.lower()}@depth@100ms", "data": data})


def snapshot(
    last: int, bids: dict[str, str] | None = None, asks: dict[str, str] | None = None
) -> str:
    """Return the JSON of a depth snapshot."""
    return json.dumps(
        {
            "lastUpdateId": last,
            "bids": list((bids or {}).items()),
            "asks": list((asks or {}).items()),
        }
    )


def write_recording(
    path: Path, *events: str, interval_ns: int = 1_000_000_000, start_seconds: int = 0
) -> Path:
    """Write a plain recording of these events, one each `interval_ns`; return its path."""
    start_ns = (1_723_161_254 + start_seconds) * 1_000_000_000
    lines = (f"{start_ns + interval_ns * index} {event}\n" for index, event in enumerate(events))
    path.write_text("".join(lines))
    return path
