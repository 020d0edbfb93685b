"""Reads recordings of Binance spot streams: one line is one event.

A line is `<local receive time, ns since the epoch> <JSON as the exchange sent it>`, the format in
which hftbacktest collects them. The JSON is a combined stream's event (`@trade`, `@bookTicker`,
`@depth…`) or the depth snapshot that a REST request brought in between.
https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import orjson

from streamer.feeds.feed import FeedError

_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_GZIP_MAGIC: Final = b"\x1f\x8b"

_JSON_NUMBER: Final = re.compile(r"(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
"""The numbers that may go from the exchange's strings into JSON as they are. Decimal alone would
take "NaN", "1_0", " 1" and "1e999999", too."""

T = TypeVar("T")

Level = tuple[Decimal, Decimal]
"""Price and quantity of one level of an order book."""


# Prices and quantities are Decimals because a Decimal keeps every digit of its text, trailing zeros
# included: format(Decimal("61234.50000000"), "f") is that text again.


@attrs.frozen
class Trade:
    """A trade as it happened."""

    symbol: str
    trade_id: int
    price: Decimal
    quantity: Decimal
    traded_at: datetime
    buyer_is_maker: bool


@attrs.frozen
class BookTicker:
    """Best bid and ask, sent at each change of either."""

    symbol: str
    update_id: int
    best_bid: Level
    best_ask: Level


@attrs.frozen
class DepthUpdate:
    """The levels of the book that changed; quantity 0 removes a level."""

    symbol: str
    first_update_id: int
    last_update_id: int
    sent_at: datetime
    bids: Sequence[Level]
    asks: Sequence[Level]


@attrs.frozen
class DepthSnapshot:
    """The whole book at one moment. It does not say of which symbol."""

    last_update_id: int
    bids: Sequence[Level]
    asks: Sequence[Level]


Event = Trade | BookTicker | DepthUpdate | DepthSnapshot


@attrs.frozen
class RecordedEvent:
    """An event, with its place in the file."""

    line_number: int
    received_ns: int
    """By the recorder's clock, ns since the epoch."""
    event: Event


def read_recording(
    path: Path, *, on_read: Callable[[int], object] = lambda _bytes: None
) -> Iterator[RecordedEvent]:
    """Every event of the recording at `path`, gzipped or plain, a line at a time.

    Streams of other kinds are passed over. `on_read` is told how many more bytes of the file have
    been read, now and then; of a pipe it is told nothing. Raises FeedError where the file is
    damaged, and OSError where it cannot be opened.
    """
    line_number = read_bytes = 0
    with path.open("rb") as file:
        seekable = file.seekable()
        compressed = file.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC)
        try:
            lines = gzip.GzipFile(fileobj=file) if compressed else file
            for line_number, line in enumerate(lines, 1):
                received_ns, event = _parse_line(line)
                if seekable and (position := file.tell()) != read_bytes:
                    on_read(position - read_bytes)
                    read_bytes = position
                if event is not None:
                    yield RecordedEvent(line_number, received_ns, event)
        except KeyError as error:
            raise FeedError(path, line_number, f"damaged line: {error} is missing") from None
        except (ArithmeticError, TypeError, ValueError) as error:
            raise FeedError(path, line_number, f"damaged line: {error}") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise FeedError(path, line_number + 1, f"damaged gzip data: {error}") from None


def read_book_tickers(path: Path) -> Iterator[BookTicker]:
    """The recording's book tickers: an independent witness of the book's best bid and ask.

    Raises as `read_recording`.
    """
    for recorded in read_recording(path):
        if isinstance(recorded.event, BookTicker):
            yield recorded.event


def _parse_line(line: bytes) -> tuple[int, Event | None]:
    received, separator, text = line.partition(b" ")
    if not separator:
        raise ValueError("no space between receive time and JSON")
    message = orjson.loads(text)
    if "stream" not in message:
        return int(received), _depth_snapshot(message)
    # "btcusdt@depth@100ms": symbol, kind, and for depth the pace.
    _symbol, _, kind_and_pace = _typed(str, message["stream"]).partition("@")
    parse = _PARSERS.get(kind_and_pace.partition("@")[0])
    return int(received), parse and parse(message["data"])


def _trade(data: Mapping[str, Any]) -> Trade:
    price = _number(data["p"])
    if not price:
        raise ValueError("a trade at price 0")
    return Trade(
        symbol=_typed(str, data["s"]),
        trade_id=_typed(int, data["t"]),
        price=price,
        quantity=_number(data["q"]),
        traded_at=_moment(data["T"]),
        buyer_is_maker=_typed(bool, data["m"]),
    )


def _book_ticker(data: Mapping[str, Any]) -> BookTicker:
    return BookTicker(
        symbol=_typed(str, data["s"]),
        update_id=_typed(int, data["u"]),
        best_bid=(_number(data["b"]), _number(data["B"])),
        best_ask=(_number(data["a"]), _number(data["A"])),
    )


def _depth_update(data: Mapping[str, Any]) -> DepthUpdate:
    return DepthUpdate(
        symbol=_typed(str, data["s"]),
        first_update_id=_typed(int, data["U"]),
        last_update_id=_typed(int, data["u"]),
        sent_at=_moment(data["E"]),
        bids=_levels(data["b"]),
        asks=_levels(data["a"]),
    )


def _depth_snapshot(message: Mapping[str, Any]) -> DepthSnapshot:
    return DepthSnapshot(
        last_update_id=_typed(int, message["lastUpdateId"]),
        bids=_levels(message["bids"]),
        asks=_levels(message["asks"]),
    )


_PARSERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Event]]] = {
    "trade": _trade,
    "bookTicker": _book_ticker,
    "depth": _depth_update,
}


def _typed(expected: type[T], value: object) -> T:
    # type() rather than isinstance(): True is no id.
    if type(value) is not expected:
        raise ValueError(f"{value!r} where {expected.__name__} belongs")
    return value


def _number(text: str) -> Decimal:
    if _JSON_NUMBER.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not a decimal number")
    return Decimal(text)


def _levels(pairs: Sequence[tuple[str, str]]) -> Sequence[Level]:
    return [(_number(price), _number(quantity)) for price, quantity in pairs]


def _moment(unix_ms: int) -> datetime:
    return _UNIX_EPOCH + timedelta(milliseconds=_typed(int, unix_ms))
