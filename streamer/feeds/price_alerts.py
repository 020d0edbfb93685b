"""Price alerts of users, made from the prices of a feed, for demonstrations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import attrs
import orjson

from streamer.feeds.feed import FeedMessage
from streamer.feeds.krx import move_ticks
from streamer.protocol.messages import Alert
from streamer.protocol.topics import Kind, SubscriptionType, Topic

INTERVAL_SECONDS: Final = 3.0
"""The least time between two alerts of a user: in a busy market, every trade may pass a level."""

_DISTANCE_TICKS: Final = 2
"""From a price to the levels above and below it: few trades apart, so that alerts are frequent."""


@attrs.frozen
class AlertUser:
    """A user with price alerts."""

    id: str
    codes: Sequence[str]
    """The stocks whose prices the user is alerted to."""


def with_price_alerts(
    feed: Iterable[FeedMessage], users: Iterable[AlertUser]
) -> Iterator[FeedMessage]:
    """Yield the messages of a feed, each price that passes a level of a user with an alert behind.

    The levels of a stock are around its first price, and around the price of each alert after it.
    """
    alerts: dict[str, list[_PriceAlerts]] = {}
    for user in users:
        own = _PriceAlerts(user.id)
        for code in user.codes:
            channel = Topic(SubscriptionType.STOCK, code).channel(Kind.PRICE)
            alerts.setdefault(channel, []).append(own)
    for message in feed:
        yield message
        if (watching := alerts.get(message.channel)) is not None:
            price = orjson.loads(message.payload)
            for own in watching:
                yield from own.take(message.at_seconds, price)


@attrs.define
class _PriceAlerts:
    """The price alerts of one user."""

    user_id: str
    _number: int = 0
    _next_at_seconds: float = 0.0
    _levels: dict[str, tuple[int, int]] = attrs.field(factory=dict)
    """The levels below and above, by the code of the stock."""

    def take(self, at_seconds: float, price: dict[str, Any]) -> Iterator[FeedMessage]:
        """Take a price_update; yield an alert if it has passed a level and one is due."""
        code, now = price["stock_code"], price["price"]
        below, above = self._levels.setdefault(code, _around(now))
        if below < now < above or at_seconds < self._next_at_seconds:
            return
        self._levels[code] = _around(now)
        self._next_at_seconds = at_seconds + INTERVAL_SECONDS
        self._number += 1
        if now <= below:
            alert_type, level, verb = "below", below, "fallen"
        else:
            alert_type, level, verb = "above", above, "risen"
        alert = {
            "type": Alert.type,
            "alert_id": self._number,
            "stock_code": code,
            "alert_type": alert_type,
            "message": f"{price['name']} has {verb} to {now:,} KRW",
            "data": {"price": now, "level": level},
            "timestamp": price["timestamp"],
        }
        channel = Topic(SubscriptionType.USER, self.user_id).channel(Kind.ALERT)
        yield FeedMessage(at_seconds, channel, orjson.dumps(alert))


def _around(price: int) -> tuple[int, int]:
    return move_ticks(price, -_DISTANCE_TICKS), move_ticks(price, _DISTANCE_TICKS)
