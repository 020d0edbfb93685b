"""Alerts of users, made from the prices of the simulated market."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice, pairwise

import orjson

from streamer.feeds.feed import FeedMessage
from streamer.feeds.price_alerts import INTERVAL_SECONDS, AlertUser, with_price_alerts
from streamer.feeds.simulated import SimulatedMarket
from streamer.protocol.publications import decode_publication
from streamer.protocol.topics import parse_channel

MARKET = SimulatedMarket(seed=1, started_at=datetime(2024, 8, 9, tzinfo=UTC))
ANN = AlertUser("ann", ("005930", "000660"))
BOB = AlertUser("bob", ("005930",))


def prices(*of_the_stock: int, apart_seconds: float = INTERVAL_SECONDS) -> list[FeedMessage]:
    """A feed of prices of one stock, in which a tick is 100 KRW."""
    return [
        FeedMessage(
            number * apart_seconds,
            "stock:005930:price",
            orjson.dumps(
                {"stock_code": "005930", "name": "S", "price": price, "timestamp": f"t{number}"}
            ),
        )
        for number, price in enumerate(of_the_stock)
    ]


def alerts(feed: Sequence[FeedMessage], *users: AlertUser) -> list[tuple[str, str, int]]:
    """The channel, the type and the price of each alert."""
    made = [m for m in with_price_alerts(feed, users) if m.channel.startswith("alerts:")]
    texts = [(m.channel, orjson.loads(m.payload)) for m in made]
    return [(channel, text["alert_type"], text["data"]["price"]) for channel, text in texts]


def test_a_price_that_passes_a_level_alerts_those_who_watch_it() -> None:
    """The next levels are around the price of the alert."""
    feed = prices(72_500, 72_600, 72_700, 72_600, 72_500, 72_400, 72_300)
    expected = [("above", 72_700), ("below", 72_500), ("below", 72_300)]
    assert alerts(feed, ANN) == [("alerts:ann", *alert) for alert in expected]
    assert len(alerts(feed, ANN, BOB)) == 2 * len(expected)
    assert alerts(feed, AlertUser("eve", ("000660",))) == []


def test_a_user_has_an_alert_every_few_seconds_at_most() -> None:
    """A level that was passed in between is reported later, if the price is still beyond it."""
    feed = prices(72_500, 72_700, 72_900, 73_100, apart_seconds=INTERVAL_SECONDS / 2)
    assert alerts(feed, BOB) == [
        ("alerts:bob", "above", 72_700),
        ("alerts:bob", "above", 73_100),
    ]


def test_alerts_are_valid_and_frequent_and_change_nothing_else() -> None:
    """In two minutes of the market, each user has several; the rest of the feed is as before."""
    market = list(islice(MARKET, 5_000))
    feed = list(with_price_alerts(market, [ANN, BOB]))
    made = [message for message in feed if message.channel.startswith("alerts:")]
    assert [message for message in feed if message not in made] == market
    for message in made:
        _, kind = parse_channel(message.channel)
        assert decode_publication(kind, None, message.payload).text == message.payload
    for user in (ANN, BOB):
        own = [message for message in made if message.channel == f"alerts:{user.id}"]
        ids = [orjson.loads(message.payload)["alert_id"] for message in own]
        assert ids == list(range(1, len(own) + 1))
        assert len(own) >= 10
        assert all(b.at_seconds - a.at_seconds >= INTERVAL_SECONDS for a, b in pairwise(own))
