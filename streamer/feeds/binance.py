"""Reads recordings of Binance spot streams: one line is one event.

The JSON of a line (see `streamer.feeds.recording_lines`) is an event of a combined stream
(`@trade`, `@bookTicker`, `@depth…`) or of a raw one, or the depth snapshot that a REST request
returned in between. Times may also be in microseconds or milliseconds: the exchange sends either,
at its client's choice.
https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import orjson

from streamer.feeds.feed import FeedError
from streamer.feeds.recording_lines import read_lines, unix_ns

_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_JSON_NUMBER: Final = re.compile(r"(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
"""The numbers in the exchange's strings that are also JSON. Decimal alone would also accept "NaN",
"1_0", " 1" and "1e999999"."""

T = TypeVar("T")

Level = tuple[Decimal, Decimal]
"""Price and quantity of one level of an order book."""


# Prices and quantities are Decimals because a Decimal keeps every digit of its text, trailing zeros
# included: format(Decimal("61234.50000000"), "f") is that text again.


@attrs.frozen
class Trade:
    """A trade."""

    symbol: str
    trade_id: int
    price: Decimal
    quantity: Decimal
    traded_at: datetime
    buyer_is_maker: bool


@attrs.frozen
class BookTicker:
    """The best bid and ask after a change of either."""

    symbol: str
    update_id: int
    best_bid: Level
    best_ask: Level


@attrs.frozen
class DepthUpdate:
    """The levels of the order book that changed; quantity 0 removes a level."""

    symbol: str
    first_update_id: int
    last_update_id: int
    sent_at: datetime
    bids: Sequence[Level]
    asks: Sequence[Level]


@attrs.frozen
class DepthSnapshot:
    """The whole order book at one moment, without its symbol."""

    last_update_id: int
    bids: Sequence[Level]
    asks: Sequence[Level]


Event = Trade | BookTicker | DepthUpdate | DepthSnapshot


@attrs.frozen
class RecordedEvent:
    """An event, its place in the file and its receive time."""

    line_number: int
    received_ns: int
    """Nanoseconds since the epoch, by the recorder's clock."""
    event: Event


def read_recording(
    path: Path, *, on_read: Callable[[int], object] = lambda _bytes: None
) -> Iterator[RecordedEvent]:
    """Yield every event of the recording at `path`, gzipped or plain, as it is read.

    Blank lines, answers to requests and events of other streams are skipped. `on_read` is called
    now and then with the number of bytes read since; not for a pipe. Raises FeedError if the file
    is damaged, and OSError if it cannot be opened.
    """
    for line in read_lines(path, on_read=on_read):
        try:
            event = _parse_event(line.text)
        except KeyError as error:
            problem = f"damaged line: {error} is missing"
            raise FeedError(path, line.number, problem) from None
        except (ArithmeticError, TypeError, ValueError) as error:
            raise FeedError(path, line.number, f"damaged line: {error}") from None
        if event is not None:
            yield RecordedEvent(line.number, line.received_ns, event)


def read_book_tickers(path: Path) -> Iterator[BookTicker]:
    """Yield the recording's book tickers, to check an order book's best bid and ask against.

    Raises the same errors as `read_recording`.
    """
    for recorded in read_recording(path):
        if isinstance(recorded.event, BookTicker):
            yield recorded.event


def _parse_event(text: bytes) -> Event | None:
    message = orjson.loads(text)
    if "stream" in message:
        # "btcusdt@depth@100ms": symbol, kind, and for depth the interval.
        _symbol, _, kind_and_interval = _typed(str, message["stream"]).partition("@")
        parse = _PARSERS.get(kind_and_interval.partition("@")[0])
        return parse and parse(message["data"])
    if "result" in message or "error" in message:  # the answer to a request of the recorder
        return None
    if "e" in message:
        parse = _EVENT_PARSERS.get(_typed(str, message["e"]))
        return parse and parse(message)
    return _depth_snapshot(message)


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
"""By the name of the stream."""

_EVENT_PARSERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Event]]] = {
    "trade": _trade,
    "depthUpdate": _depth_update,
}
"""By the type of an event that comes without the name of its stream."""


def _typed(expected: type[T], value: object) -> T:
    # type() rather than isinstance(): True is not a valid id.
    if type(value) is not expected:
        raise ValueError(f"{value!r} where {expected.__name__} belongs")
    return value


def _number(text: str) -> Decimal:
    if _JSON_NUMBER.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not a decimal number")
    return Decimal(text)


def _levels(pairs: Sequence[tuple[str, str]]) -> Sequence[Level]:
    return [(_number(price), _number(quantity)) for price, quantity in pairs]


def _moment(unix_time: int) -> datetime:
    return _UNIX_EPOCH + timedelta(microseconds=unix_ns(_typed(int, unix_time)) // 1000)
