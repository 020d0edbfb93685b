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
    DepthSnapshot,
    DepthUpdate,
    Event,
    Level,
    Trade,
    read_recording,
)
from streamer.feeds.feed import FeedError, FeedMessage
from streamer.feeds.orderbook import OrderBook
from streamer.protocol.codec import utc_timestamp
from streamer.protocol.messages import OrderbookUpdate, PriceUpdate
from streamer.protocol.topics import Kind, SubscriptionType, Topic

LEVELS: Final = 10
"""Levels of each side of a published order book."""

_MAX_UPDATES_BEFORE_SNAPSHOT: Final = 1000
"""A recorder asks for the snapshot as soon as updates flow, ten a second; 100 s without one mean
that the recording has none, and what waits for it must not fill the memory."""

_PERCENT_STEP: Final = Decimal("0.0001")
_NS_PER_SECOND: Final = 1e9


def recorded_feed(
    paths: Iterable[Path], *, on_read: Callable[[int], object] = lambda _bytes: None
) -> Iterator[FeedMessage]:
    """The recordings as one feed, merged by receive time, at the pace of their recorder's clock.

    Each recording is one symbol's, and is read as it is consumed; `on_read` is told how many more
    bytes of the files have been. Every digit of a price or quantity is the exchange's. Raises
    FeedError where a recording is damaged, OSError where it cannot be opened.
    """
    start_ns: int | None = None
    recordings = (_publications(path, on_read) for path in paths)
    for publication in heapq.merge(*recordings, key=attrgetter("received_ns")):
        if start_ns is None:
            start_ns = publication.received_ns
        at_seconds = (publication.received_ns - start_ns) / _NS_PER_SECOND
        yield FeedMessage(at_seconds, publication.channel, publication.payload)


@attrs.frozen
class _Publication:
    received_ns: int
    channel: str
    payload: bytes


def _publications(path: Path, on_read: Callable[[int], object]) -> Iterator[_Publication]:
    symbol_feed = _SymbolFeed()
    received_ns = line_number = 0
    for recorded in read_recording(path, on_read=on_read):
        line_number = recorded.line_number
        # Where the recorder's clock was set back, the file's order is still the order of events.
        received_ns = max(received_ns, recorded.received_ns)
        try:
            for channel, payload in symbol_feed.publish(recorded.event):
                yield _Publication(received_ns, channel, payload)
        except (ArithmeticError, ValueError) as error:
            raise FeedError(path, line_number, str(error)) from None
    if symbol_feed.awaits_snapshot:
        raise FeedError(path, line_number, "the file ends without a snapshot for its depth updates")


class _SymbolFeed:
    """Turn one symbol's events into publications: (channel, payload)."""

    def __init__(self) -> None:
        self._topic: Topic | None = None
        self._first_price: Decimal | None = None
        self._volume = Decimal(0)
        self._book: OrderBook | None = None
        self._before_snapshot: deque[DepthUpdate] = deque()
        # Sums and differences are exact. Never divide in it: it would fill the memory with digits.
        self._exact = decimal.Context(prec=decimal.MAX_PREC)

    @property
    def awaits_snapshot(self) -> bool:
        return bool(self._before_snapshot)

    def publish(self, event: Event) -> Iterator[tuple[str, bytes]]:
        match event:
            case Trade():
                topic = self._topic_of(event)
                yield topic.channel(Kind.PRICE), self._price_update(topic, event)
            case DepthUpdate() if self._book:
                yield from self._apply(self._book, event)
            case DepthUpdate():
                if len(self._before_snapshot) == _MAX_UPDATES_BEFORE_SNAPSHOT:
                    raise ValueError(f"no snapshot in {_MAX_UPDATES_BEFORE_SNAPSHOT} depth updates")
                self._before_snapshot.append(event)
            # A later snapshot tells nothing that the unbroken chain of updates does not.
            case DepthSnapshot() if self._book is None:
                self._book = OrderBook(event)
                while self._before_snapshot:
                    yield from self._apply(self._book, self._before_snapshot.popleft())

    def _topic_of(self, event: Trade | DepthUpdate) -> Topic:
        if self._topic is None:
            self._topic = Topic(SubscriptionType.STOCK, event.symbol.upper())
        elif self._topic.target != event.symbol.upper():
            # A snapshot does not say whose it is, so two symbols could not be told apart.
            raise ValueError(
                f"a recording is of one symbol: {event.symbol} after {self._topic.target}"
            )
        return self._topic

    def _price_update(self, topic: Topic, trade: Trade) -> bytes:
        if self._first_price is None:
            self._first_price = trade.price
        change = self._exact.subtract(trade.price, self._first_price)
        percent = (change * 100 / self._first_price).quantize(_PERCENT_STEP)
        self._volume = self._exact.add(self._volume, trade.quantity)
        return orjson.dumps(
            {
                "type": PriceUpdate.type,
                "stock_code": topic.target,
                "price": _json_number(trade.price),
                "change": _json_number(change),
                "change_percent": _json_number(percent + 0),  # + 0: "-0.0000" is for no reader
                "volume": _json_number(self._volume),
                "timestamp": utc_timestamp(trade.traded_at),
                "trade_id": trade.trade_id,
                "quantity": _json_number(trade.quantity),
                "buyer_is_maker": trade.buyer_is_maker,
            }
        )

    def _apply(self, book: OrderBook, update: DepthUpdate) -> Iterator[tuple[str, bytes]]:
        topic = self._topic_of(update)
        if book.apply(update):
            message = {
                "type": OrderbookUpdate.type,
                "stock_code": topic.target,
                "bids": _json_levels(book.best_bids(LEVELS)),
                "asks": _json_levels(book.best_asks(LEVELS)),
                "timestamp": utc_timestamp(update.sent_at),
                "update_id": book.update_id,
            }
            yield topic.channel(Kind.ORDERBOOK), orjson.dumps(message)


def _json_number(value: Decimal) -> orjson.Fragment:
    """All digits of `value`, trailing zeros included; a float would keep some 16 of them."""
    return orjson.Fragment(format(value, "f"))


def _json_levels(levels: Sequence[Level]) -> list[dict[str, Any]]:
    return [
        {"price": _json_number(price), "quantity": _json_number(quantity)}
        for price, quantity in levels
    ]
