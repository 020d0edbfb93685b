"""Publications that change as a market's do, for scenarios in which their bytes matter.

A price that never changes would be compressed to almost nothing, and a delta of it be empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from bench.load import Load, Scheduled, Topic, Workload
from streamer.feeds.feed import FeedMessage
from streamer.feeds.simulated import SimulatedMarket, Stock, TradingDay
from streamer.protocol.topics import Kind

SEED = 1
FIRST_PRICE_KRW = 1_000
PRICE_STEP_KRW = 500
# The market must not close while the load runs.
OPEN_SECONDS = 1e9


def market_workload(kind: Kind, load: Load, subscriptions: list[list[int]]) -> Workload:
    """Return a workload of one kind of a simulated market, at the steady rate of the load.

    There are as many stocks as the subscriptions name; each message is of a random one of them.
    """
    count = 1 + max(max(wanted) for wanted in subscriptions)
    channels = [f"stock:T{number:05}:{kind}" for number in range(count)]
    places = {channel: number for number, channel in enumerate(channels)}
    messages = _messages(places, count)
    published = int(load.rate_per_second * (load.warmup_seconds + load.seconds))
    schedule = [
        Scheduled(
            int(number * 1e9 / load.rate_per_second),
            places[message.channel],
            message.payload.decode().removesuffix("}"),  # the marker field takes its place
        )
        for number, message in zip(range(published), messages, strict=False)
    ]
    return Workload(load, [Topic(channel, "{") for channel in channels], subscriptions, schedule)


def _messages(places: dict[str, int], count: int) -> Iterator[FeedMessage]:
    stocks = [
        Stock(f"T{n:05}", f"Stock {n}", "KOSPI", "All", FIRST_PRICE_KRW + PRICE_STEP_KRW * n)
        for n in range(count)
    ]
    day = TradingDay(open_seconds=OPEN_SECONDS)
    started_at = datetime(2024, 8, 9, tzinfo=UTC)
    market = SimulatedMarket(SEED, started_at, day=day, stocks=stocks)
    return (message for message in market if message.channel in places)
