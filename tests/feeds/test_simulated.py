"""The simulated market keeps the rules of the real one."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC, datetime
from itertools import islice, pairwise, takewhile
from typing import Any

import attrs
import orjson
import pytest

from streamer.feeds.feed import FeedMessage
from streamer.feeds.krx import daily_limits, tick_size
from streamer.feeds.simulated import STOCKS, WATCHLIST, SimulatedMarket, Stock, TradingDay
from streamer.protocol.publications import decode_publication
from streamer.protocol.topics import Kind, SubscriptionType, parse_channel

STARTED_AT = datetime(2024, 8, 9, tzinfo=UTC)
DAY = TradingDay(pre_market_seconds=2, open_seconds=30, after_hours_seconds=3, closed_seconds=5)


MARKET = SimulatedMarket(seed=1, started_at=STARTED_AT, day=DAY)


def until(at_seconds: float, market: SimulatedMarket = MARKET) -> list[FeedMessage]:
    """Return the feed up to a time."""
    return list(takewhile(lambda message: message.at_seconds < at_seconds, market))


def bodies(feed: list[FeedMessage], kind: Kind, channel: str = "stock:") -> list[dict[str, Any]]:
    """Return the messages of a kind, on channels with a prefix."""
    return [
        orjson.loads(message.payload)
        for message in feed
        if message.channel.startswith(channel) and message.channel.endswith(f":{kind}")
    ]


def test_the_feed_is_the_same_for_the_same_seed_only() -> None:
    """The same seed gives the same feed."""
    feed = list(islice(MARKET, 2_000))
    assert list(islice(attrs.evolve(MARKET), 2_000)) == feed
    assert list(islice(attrs.evolve(MARKET, seed=2), 2_000)) != feed


def test_what_is_published_fits_its_channel() -> None:
    """The server forwards every publication as it is."""
    for message in islice(MARKET, 2_000):
        topic, kind = parse_channel(message.channel)
        key = topic.target if topic.subscription_type in {"stock", "market"} else None
        assert decode_publication(kind, key, message.payload).text == message.payload


def test_a_day_has_its_phases_and_the_next_day_follows() -> None:
    """Both markets open and close at the same moments; the first day begins with the opening."""
    statuses: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    for message in until(78):
        if message.channel.endswith(":status"):
            body = orjson.loads(message.payload)
            statuses[body["market"]].append((message.at_seconds, body["status"]))
    one_day = [(-2, "pre_market"), (0, "open"), (30, "after_hours"), (33, "closed")]
    two_days = [*one_day[1:], *((40 + begins, status) for begins, status in one_day)]
    assert statuses == {"KOSPI": two_days, "KOSDAQ": two_days}


def test_there_are_trades_only_while_the_market_is_open() -> None:
    """Prices and order books appear between opening and closing, and at no other time."""
    times = [m.at_seconds % 40 for m in until(400) if not m.channel.endswith(":status")]
    assert min(times) == 0
    assert max(times) < 30


def test_the_opening_trades_every_stock() -> None:
    """Every topic has a value from the first moment on."""
    opening = [message.channel for message in until(0.000001)]
    assert {channel for channel in opening if channel.startswith("stock:")} == {
        f"stock:{stock.code}:{kind}" for stock in STOCKS for kind in ("price", "orderbook")
    }
    types = {parse_channel(channel)[0].subscription_type for channel in opening}
    assert types == set(SubscriptionType) - {SubscriptionType.USER}


def test_time_never_runs_backwards_and_timestamps_follow_it() -> None:
    """The timestamp is the start plus the offset, to the millisecond."""
    feed = until(100)
    assert all(a.at_seconds <= b.at_seconds for a, b in pairwise(feed))
    for message in feed:
        timestamp = datetime.fromisoformat(orjson.loads(message.payload)["timestamp"])
        assert (
            -0.000_001 < message.at_seconds - (timestamp - STARTED_AT).total_seconds() < 0.001_001
        )


@pytest.mark.parametrize("trades_per_second", [2.0, 20.0])
def test_the_mean_rate_is_as_asked_for(trades_per_second: float) -> None:
    """Trades after the opening come at the configured rate, within chance (6 sigma)."""
    day = TradingDay(open_seconds=600)
    feed = until(600, attrs.evolve(MARKET, trades_per_second=trades_per_second, day=day))
    trades = len(bodies(feed, Kind.PRICE)) - len(STOCKS)
    expected = 600 * trades_per_second
    assert abs(trades - expected) < 6 * expected**0.5


def test_a_trade_reaches_its_stock_sector_and_watchlist() -> None:
    """Each price update is published on every topic that has the stock, and on no other."""
    channels: defaultdict[bytes, list[str]] = defaultdict(list)
    for message in until(30):
        if message.channel.endswith(":price"):
            channels[message.payload].append(message.channel)
    by_code = {stock.code: stock for stock in STOCKS}
    for payload, reached in channels.items():
        stock = by_code[orjson.loads(payload)["stock_code"]]
        watchlists = [f"watchlist:{WATCHLIST.id}:price"] * (stock.code in WATCHLIST.codes)
        expected = [f"stock:{stock.code}:price", f"sector:{stock.sector}:price", *watchlists]
        # Two trades of one stock in one millisecond may be the same to the byte.
        assert reached == expected * (len(reached) // len(expected))


def test_prices_are_on_ticks_within_the_days_limits() -> None:
    """Each base price is the close of the day before."""
    base_prices = {stock.code: stock.base_price for stock in STOCKS}
    close = dict(base_prices)
    volumes: Counter[str] = Counter()
    moved = 0
    for message in until(400, attrs.evolve(MARKET, trades_per_second=50)):
        body = orjson.loads(message.payload)
        if body["type"] == "market_status" and body["status"] == "pre_market":
            base_prices = dict(close)
            volumes.clear()
        elif message.channel.startswith("stock:") and body["type"] == "price_update":
            code, price = body["stock_code"], body["price"]
            lower, upper = daily_limits(base_prices[code])
            assert lower <= price <= upper
            assert price % tick_size(price) == 0
            assert body["change"] == price - base_prices[code]
            assert body["change_percent"] == pytest.approx(
                100 * body["change"] / base_prices[code], abs=0.005001
            )
            volumes[code] += body["quantity"]
            assert body["volume"] == volumes[code]
            assert body["quantity"] >= 1
            moved += price != close[code]
            close[code] = price
    assert moved > 2_500


def assert_is_order_book(body: dict[str, Any], last_price: int, limits: tuple[int, int]) -> None:
    """Levels one tick apart, within the limits, with the last price at the top of a side."""
    bids = [level["price"] for level in body["bids"]]
    asks = [level["price"] for level in body["asks"]]
    ladder = [*reversed(bids), *asks]
    for below, above in pairwise(ladder):
        assert above - below == tick_size(below)
    assert all(price % tick_size(price) == 0 for price in ladder)
    assert limits[0] <= ladder[0] <= ladder[-1] <= limits[1]
    assert last_price in {*bids[:1], *asks[:1]}
    for level in body["bids"] + body["asks"]:
        assert 1 <= level["orders"] <= level["quantity"]


def test_order_books_lie_around_the_last_price() -> None:
    """Ten levels a side, tick by tick, and the last price is the best bid or the best ask."""
    last_prices: dict[str, int] = {}
    for message in until(60):
        body = orjson.loads(message.payload)
        if body["type"] == "price_update":
            last_prices[body["stock_code"]] = body["price"]
        elif body["type"] == "orderbook_update":
            assert len(body["bids"]) == len(body["asks"]) == 10
            assert_is_order_book(body, last_prices[body["stock_code"]], (1, 10**9))


def test_most_levels_of_an_order_book_stay_from_one_trade_to_the_next() -> None:
    """Most levels stay the same from one book to the next."""
    feed = until(60)
    books = bodies(feed, Kind.ORDERBOOK, f"stock:{STOCKS[0].code}:")
    kept = [
        sum(level in before["bids"] for level in after["bids"]) for before, after in pairwise(books)
    ]
    assert 5 < sum(kept) / len(kept) < 10


def test_at_a_daily_limit_the_order_book_ends() -> None:
    """No price and no level is beyond the limits, and the feed continues at them."""
    penny = Stock("000001", "Penny", "KOSPI", "Pennies", 10)  # Limits: 7 and 13
    feed = until(20, attrs.evolve(MARKET, stocks=[penny]))
    prices = [body["price"] for body in bodies(feed, Kind.PRICE)]
    books = bodies(feed, Kind.ORDERBOOK)
    assert {min(prices), max(prices)} == {7, 13}
    for price, book in zip(prices, books, strict=True):
        assert_is_order_book(book, price, (7, 13))
    assert any(not book["asks"] for book in books)
    assert any(not book["bids"] for book in books)


def test_the_market_is_a_dozen_listed_stocks() -> None:
    """Twelve codes of six digits in two markets, with base prices on ticks."""
    codes = {stock.code for stock in STOCKS}
    assert len(codes) == len(STOCKS) == 12
    assert all(len(code) == 6 and code.isdecimal() for code in codes)
    assert {stock.market for stock in STOCKS} == {"KOSPI", "KOSDAQ"}
    assert all(stock.base_price % tick_size(stock.base_price) == 0 for stock in STOCKS)
    assert codes >= WATCHLIST.codes


@pytest.mark.parametrize("trades_per_second", [0.0, -1.0])
def test_a_market_without_trades_is_refused(trades_per_second: float) -> None:
    """A rate of 0 or less is an error."""
    with pytest.raises(ValueError, match="trades_per_second"):
        attrs.evolve(MARKET, trades_per_second=trades_per_second)
