"""Recorded market data as a feed: trades become price updates, depth becomes order books."""

from __future__ import annotations

import decimal
import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

import attrs
import orjson

from streamer.feeds.binance import (
    BookTicker,
    DepthSnapshot,
    DepthUpdate,
    Event,
    Level,
    Trade,
    read_recording,
)
from streamer.feeds.feed import FeedError, FeedMessage
from streamer.feeds.orderbook import BrokenChainError, OrderBook
from streamer.protocol.codec import utc_timestamp
from streamer.protocol.messages import OrderbookUpdate, PriceUpdate
from streamer.protocol.topics import Kind, SubscriptionType, Topic

LEVELS: Final = 10
"""Levels of each side of a published order book."""

_UPDATES_KEPT: Final = 1000
"""Depth updates that are kept until a snapshot. A recorder requests one as soon as updates arrive,
ten per second, so it takes far less than 100 s."""

_PERCENT_STEP: Final = Decimal("0.0001")
_NS_PER_SECOND: Final = 1e9


def recorded_feed(
    paths: Iterable[Path],
    *,
    on_read: Callable[[int], object] = lambda _bytes: None,
    on_problem: Callable[[str], object] = lambda _problem: None,
) -> Iterator[FeedMessage]:
    """Merge recordings into one feed by receive time, at the pace of their recorder's clock.

    Each recording is of one symbol, and is read as the feed is consumed. Several of one symbol,
    such as one for each day, are one stream of events. Prices and quantities keep every digit of
    the exchange. `on_read` is called as by `read_recording`; `on_problem`, at the end, with a text
    for each symbol that lacks order books because updates or a snapshot are missing. Raises
    FeedError if a recording is damaged, OSError if it cannot be opened.
    """
    start_ns: int | None = None
    feeds: dict[str, _SymbolFeed] = {}
    recordings = (_read_events(path, on_read) for path in paths)
    for recorded in heapq.merge(*recordings, key=attrgetter("received_ns")):
        feed = feeds.get(recorded.symbol)
        if feed is None:
            feed = feeds[recorded.symbol] = _SymbolFeed(recorded.symbol)
        try:
            for channel, payload in feed.publish(recorded.event):
                start_ns = recorded.received_ns if start_ns is None else start_ns
                at_seconds = (recorded.received_ns - start_ns) / _NS_PER_SECOND
                yield FeedMessage(at_seconds, channel, payload)
        except (ArithmeticError, ValueError) as error:
            raise FeedError(recorded.path, recorded.line_number, str(error)) from None
    for feed in feeds.values():
        if feed.updates_left_out:
            on_problem(feed.problem)


@attrs.frozen
class _SymbolEvent:
    """An event of a known symbol, and its place in a file."""

    path: Path
    line_number: int
    received_ns: int
    symbol: str
    event: Event


def _read_events(path: Path, on_read: Callable[[int], object]) -> Iterator[_SymbolEvent]:
    symbol: str | None = None
    before_symbol: list[tuple[int, Event]] = []
    received_ns = 0
    for recorded in read_recording(path, on_read=on_read):
        # If the recorder's clock was set back, the file's order is still the order of events.
        received_ns = max(received_ns, recorded.received_ns)
        event, line_number = recorded.event, recorded.line_number
        if not isinstance(event, DepthSnapshot):
            named = event.symbol.upper()
            if symbol is None:
                symbol = _check_symbol(path, line_number, named)
            elif symbol != named:
                # A snapshot has no symbol, so it could belong to either of two symbols.
                problem = f"a recording is of one symbol: {event.symbol} after {symbol}"
                raise FeedError(path, line_number, problem)
        if symbol is None:
            before_symbol.append((line_number, event))
            continue
        for line, snapshot in before_symbol:
            yield _SymbolEvent(path, line, received_ns, symbol, snapshot)
        before_symbol.clear()
        yield _SymbolEvent(path, line_number, received_ns, symbol, event)


def _check_symbol(path: Path, line_number: int, symbol: str) -> str:
    try:
        return Topic(SubscriptionType.STOCK, symbol).target
    except ValueError as error:
        raise FeedError(path, line_number, str(error)) from None


class _SymbolFeed:
    """Turns the events of one symbol into publications: pairs of channel and payload."""

    def __init__(self, symbol: str) -> None:
        self._topic = Topic(SubscriptionType.STOCK, symbol)
        self._first_price: Decimal | None = None
        self._volume = Decimal(0)
        self._book: OrderBook | None = None
        """None before the first snapshot, and from a hole in the updates to the next snapshot."""
        self._newest_snapshot: DepthSnapshot | None = None
        self._waiting: deque[DepthUpdate] = deque(maxlen=_UPDATES_KEPT)
        """The last updates received without a book."""
        self.updates_left_out = 0
        """Depth updates so far of which no order book could be made."""
        # Sums and differences are exact. Never divide in it: the digits would fill the memory.
        self._exact = decimal.Context(prec=decimal.MAX_PREC)

    @property
    def problem(self) -> str:
        """A text for people about the omitted updates."""
        return (
            f"{self._topic.target}: no order book from {self.updates_left_out} depth updates: "
            "updates or a snapshot before them are missing"
        )

    def publish(self, event: Event) -> Iterator[tuple[str, bytes]]:
        """Yield the publications that follow from an event.

        If depth updates are missing, trades continue; order books resume at the next snapshot.
        """
        match event:
            case Trade():
                yield self._topic.channel(Kind.PRICE), self._price_update(event)
            case DepthUpdate():
                yield from self._apply(event)
            case DepthSnapshot():
                self._newest_snapshot = event
                if self._book is None:
                    yield from self._rebuild()
            case BookTicker():
                pass

    def _apply(self, update: DepthUpdate) -> Iterator[tuple[str, bytes]]:
        if self._book is None:
            self._wait(update)
            return
        try:
            changed = self._book.apply(update)
        except BrokenChainError:
            # A recorder that lost its connection may have requested the snapshot first.
            self._book = None
            self._wait(update)
            yield from self._rebuild()
        else:
            if changed:
                yield (
                    self._topic.channel(Kind.ORDERBOOK),
                    self._orderbook_update(self._book, update),
                )

    def _wait(self, update: DepthUpdate) -> None:
        self._waiting.append(update)
        self.updates_left_out += 1

    def _rebuild(self) -> Iterator[tuple[str, bytes]]:
        """Build a book from the newest snapshot, if the waiting updates follow it."""
        snapshot = self._newest_snapshot
        if snapshot is None:
            return
        newer = [
            update for update in self._waiting if update.last_update_id > snapshot.last_update_id
        ]
        if newer and newer[0].first_update_id > snapshot.last_update_id + 1:
            return
        self._book = OrderBook(snapshot)
        waiting = list(self._waiting)
        self._waiting.clear()
        for update in waiting:
            self.updates_left_out -= 1
            yield from self._apply(update)

    def _price_update(self, trade: Trade) -> bytes:
        if self._first_price is None:
            self._first_price = trade.price
        change = self._exact.subtract(trade.price, self._first_price)
        percent = (change * 100 / self._first_price).quantize(_PERCENT_STEP)
        self._volume = self._exact.add(self._volume, trade.quantity)
        return orjson.dumps(
            {
                "type": PriceUpdate.type,
                "stock_code": self._topic.target,
                "price": _json_number(trade.price),
                "change": _json_number(change),
                "change_percent": _json_number(percent + 0),  # + 0 makes 0.0000 of -0.0000
                "volume": _json_number(self._volume),
                "timestamp": utc_timestamp(trade.traded_at),
                "trade_id": trade.trade_id,
                "quantity": _json_number(trade.quantity),
                "buyer_is_maker": trade.buyer_is_maker,
            }
        )

    def _orderbook_update(self, book: OrderBook, update: DepthUpdate) -> bytes:
        return orjson.dumps(
            {
                "type": OrderbookUpdate.type,
                "stock_code": self._topic.target,
                "bids": _json_levels(book.best_bids(LEVELS)),
                "asks": _json_levels(book.best_asks(LEVELS)),
                "timestamp": utc_timestamp(update.sent_at),
                "update_id": book.update_id,
            }
        )


def _json_number(value: Decimal) -> orjson.Fragment:
    """Return all digits of `value`, trailing zeros included; a float would keep some 16."""
    return orjson.Fragment(format(value, "f"))


def _json_levels(levels: Sequence[Level]) -> list[dict[str, Any]]:
    return [
        {"price": _json_number(price), "quantity": _json_number(quantity)}
        for price, quantity in levels
    ]
