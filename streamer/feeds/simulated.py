"""A simulated market of real Korean stocks, for demonstrations without a data feed.

Prices are invented: a random walk on the exchange's ticks, within its daily limits, from a
plausible price of each stock. Codes, tick sizes, limits, the form of order books and the phases of
a day are real.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from random import Random
from typing import Any, Final

import attrs
import orjson
from attrs.validators import gt

from streamer.feeds.feed import FeedMessage
from streamer.feeds.krx import daily_limits, move_ticks
from streamer.protocol.codec import utc_timestamp
from streamer.protocol.messages import MarketPhase, MarketStatus, OrderbookUpdate, PriceUpdate
from streamer.protocol.topics import Kind, SubscriptionType, Topic

LEVELS: Final = 10
"""Levels of each side of an order book, as KRX publishes them."""

_MEAN_TRADE_KRW: Final = 5_000_000
_MOVES_TICKS: Final = (-1, 0, 0, 1)
"""Changes of the price by a trade, in ticks, with equal probability."""
_LEVEL_CHANGE_PROBABILITY: Final = 0.2
"""The probability that a level of the order book, other than the traded one, has changed."""
_MAX_ORDERS: Final = 60
_MAX_SHARES_PER_ORDER: Final = 120


@attrs.frozen
class Stock:
    """A listed stock."""

    code: str
    name: str
    market: str
    sector: str
    base_price: int
    """The first price in KRW, on a tick."""


STOCKS: Final = (
    Stock("005930", "Samsung Electronics", "KOSPI", "Semiconductors", 72_500),
    Stock("000660", "SK hynix", "KOSPI", "Semiconductors", 178_000),
    Stock("005380", "Hyundai Motor", "KOSPI", "Automobiles", 245_000),
    Stock("035420", "NAVER", "KOSPI", "Internet", 172_300),
    Stock("035720", "Kakao", "KOSPI", "Internet", 41_500),
    Stock("207940", "Samsung Biologics", "KOSPI", "Biotechnology", 968_000),
    Stock("032640", "LG Uplus", "KOSPI", "Telecommunications", 9_910),
    Stock("247540", "EcoPro BM", "KOSDAQ", "Batteries", 186_300),
    Stock("196170", "Alteogen", "KOSDAQ", "Biotechnology", 307_500),
    Stock("263750", "Pearl Abyss", "KOSDAQ", "Games", 42_150),
    Stock("293490", "Kakao Games", "KOSDAQ", "Games", 18_460),
    Stock("032820", "Woori Technology", "KOSDAQ", "Industrials", 1_985),
)


@attrs.frozen
class Watchlist:
    """A named set of stocks."""

    id: str
    codes: frozenset[str]


WATCHLIST: Final = Watchlist("demo", frozenset({"005930", "035720", "247540", "032820"}))


@attrs.frozen
class TradingDay:
    """The length of each phase of a simulated day, in seconds.

    A KRX day collects orders 08:30-09:00, trades until 15:30 and has an after-hours session until
    18:00; here it is compressed, to show a market that opens and closes.
    """

    pre_market_seconds: float = attrs.field(default=5.0, validator=gt(0))
    open_seconds: float = attrs.field(default=120.0, validator=gt(0))
    after_hours_seconds: float = attrs.field(default=5.0, validator=gt(0))
    closed_seconds: float = attrs.field(default=5.0, validator=gt(0))

    @property
    def phases(self) -> Sequence[tuple[MarketPhase, float]]:
        """The phases in order, from pre-market on, each with its seconds."""
        return (
            (MarketPhase.PRE_MARKET, self.pre_market_seconds),
            (MarketPhase.OPEN, self.open_seconds),
            (MarketPhase.AFTER_HOURS, self.after_hours_seconds),
            (MarketPhase.CLOSED, self.closed_seconds),
        )


@attrs.frozen
class SimulatedMarket:
    """An endless feed; every iteration over it is the same.

    It begins with the opening of its first day, so that every stock has a price at once. While the
    market is open, trades happen at random moments. Each is published as a price of its stock, of
    its sector and of the watchlist that has it, followed by the stock's order book.
    """

    seed: int
    started_at: datetime
    """The time of the first message."""
    trades_per_second: float = attrs.field(default=20.0, validator=gt(0))
    """The average rate of all stocks together while the market is open."""
    day: TradingDay = TradingDay()
    stocks: Sequence[Stock] = STOCKS
    watchlist: Watchlist = WATCHLIST

    def __iter__(self) -> Iterator[FeedMessage]:
        """Iterate over the feed from its start."""
        random = Random(self.seed)  # noqa: S311  # repeatable; no secret
        listings = [_Listing(stock, random) for stock in self.stocks]
        begins_seconds = 0.0
        phases = self.day.phases[1:]  # the first day has no pre-market
        while True:
            for listing in listings:
                listing.begin_day()
            for phase, lasts_seconds in phases:
                yield from self._statuses(begins_seconds, phase)
                ends_seconds = begins_seconds + lasts_seconds
                if phase is MarketPhase.OPEN:
                    yield from self._session(begins_seconds, ends_seconds, listings, random)
                begins_seconds = ends_seconds
            phases = self.day.phases

    def _statuses(self, at_seconds: float, phase: MarketPhase) -> Iterator[FeedMessage]:
        for market in dict.fromkeys(stock.market for stock in self.stocks):
            topic = Topic(SubscriptionType.MARKET, market)
            message = {"type": MarketStatus.type, "market": market, "status": phase}
            yield from self._publish(at_seconds, [topic.channel(Kind.STATUS)], message)

    def _session(
        self,
        begins_seconds: float,
        ends_seconds: float,
        listings: Sequence[_Listing],
        random: Random,
    ) -> Iterator[FeedMessage]:
        # The opening auction trades every stock, so every topic soon has a value.
        for listing in listings:
            yield from self._trade(begins_seconds, listing)
        at_seconds = begins_seconds + random.expovariate(self.trades_per_second)
        while at_seconds < ends_seconds:
            yield from self._trade(at_seconds, random.choice(listings))
            at_seconds += random.expovariate(self.trades_per_second)

    def _trade(self, at_seconds: float, listing: _Listing) -> Iterator[FeedMessage]:
        stock = listing.stock
        stock_topic = Topic(SubscriptionType.STOCK, stock.code)
        price_topics = [stock_topic, Topic(SubscriptionType.SECTOR, stock.sector)]
        if stock.code in self.watchlist.codes:
            price_topics.append(Topic(SubscriptionType.WATCHLIST, self.watchlist.id))
        price_channels = [topic.channel(Kind.PRICE) for topic in price_topics]
        yield from self._publish(at_seconds, price_channels, listing.trade())
        orderbook_channel = stock_topic.channel(Kind.ORDERBOOK)
        yield from self._publish(at_seconds, [orderbook_channel], listing.orderbook())

    def _publish(
        self, at_seconds: float, channels: Iterable[str], message: Mapping[str, Any]
    ) -> Iterator[FeedMessage]:
        timestamp = utc_timestamp(self.started_at + timedelta(seconds=at_seconds))
        payload = orjson.dumps({**message, "timestamp": timestamp})
        for channel in channels:
            yield FeedMessage(at_seconds, channel, payload)


_Levels = dict[int, tuple[int, int]]
"""Price -> (quantity, orders), best price first."""


@attrs.define
class _Listing:
    """The state of a stock on the simulated day."""

    stock: Stock
    random: Random
    price: int = attrs.field(init=False)
    base_price: int = attrs.field(init=False)
    """The previous close, from which changes and limits are computed."""
    lower_limit: int = attrs.field(init=False)
    upper_limit: int = attrs.field(init=False)
    volume: int = attrs.field(init=False)
    bids: _Levels = attrs.field(init=False, factory=dict)
    asks: _Levels = attrs.field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self.price = self.stock.base_price

    def begin_day(self) -> None:
        """Begin a day with the last price as its base price."""
        self.base_price = self.price
        self.lower_limit, self.upper_limit = daily_limits(self.price)
        self.volume = 0

    def trade(self) -> dict[str, Any]:
        """Trade some shares; return the price_update of the trade."""
        move = self.random.choice(_MOVES_TICKS)
        if self.price != (self.lower_limit if move < 0 else self.upper_limit):
            self.price = move_ticks(self.price, move)
        quantity = 1 + int(self.random.expovariate(self.price / _MEAN_TRADE_KRW))
        self.volume += quantity
        self._renew_orderbook()
        change = self.price - self.base_price
        return {
            "type": PriceUpdate.type,
            "stock_code": self.stock.code,
            "name": self.stock.name,
            "price": self.price,
            "change": change,
            "change_percent": round(change * 100 / self.base_price, 2),
            "volume": self.volume,
            "quantity": quantity,
        }

    def orderbook(self) -> dict[str, Any]:
        """Return the orderbook_update after the last trade."""
        bids, asks = (
            [
                {"price": price, "quantity": quantity, "orders": orders}
                for price, (quantity, orders) in levels.items()
            ]
            for levels in (self.bids, self.asks)
        )
        return {
            "type": OrderbookUpdate.type,
            "stock_code": self.stock.code,
            "bids": bids,
            "asks": asks,
        }

    def _renew_orderbook(self) -> None:
        # The last price is the best ask if a buyer met it, else the best bid. At a daily limit a
        # side has fewer levels, or none.
        buyer_met_ask = self.random.random() < 0.5
        bids = _prices(self.price, -1, self.lower_limit)[buyer_met_ask:]
        asks = _prices(self.price, 1, self.upper_limit)[not buyer_met_ask :]
        self.bids = self._renewed(self.bids, bids[:LEVELS])
        self.asks = self._renewed(self.asks, asks[:LEVELS])

    def _renewed(self, levels: _Levels, prices: Iterable[int]) -> _Levels:
        return {price: self._kept(levels, price) or self._drawn_level() for price in prices}

    def _kept(self, levels: _Levels, price: int) -> tuple[int, int] | None:
        changed = price == self.price or self.random.random() < _LEVEL_CHANGE_PROBABILITY
        return None if changed else levels.get(price)

    def _drawn_level(self) -> tuple[int, int]:
        orders = self.random.randint(1, _MAX_ORDERS)
        return orders * self.random.randint(1, _MAX_SHARES_PER_ORDER), orders


def _prices(price: int, step_ticks: int, limit: int) -> list[int]:
    """Return the prices from `price` to `limit`, at most one more than the levels of a side."""
    prices = [price]
    while len(prices) <= LEVELS and price != limit:
        price = move_ticks(price, step_ticks)
        prices.append(price)
    return prices
