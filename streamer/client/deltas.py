"""Whole messages from deltas: each changes the last message of its kind of the topic."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Final

import attrs

from streamer.client.messages import (
    Data,
    OrderbookDelta,
    OrderbookUpdate,
    PriceDelta,
    PriceLevel,
    PriceUpdate,
)
from streamer.protocol.orderbook import checksum
from streamer.protocol.topics import Topic

_PRICE_FIELDS: Final = ("price", "change", "change_percent", "volume")

_Key = tuple[Topic, type[Data]]


class WrongChecksumError(Exception):
    """The book after a delta is not the one that the server has."""


class Deltas:
    """The last price and order book of each topic, to which deltas are applied."""

    def __init__(self) -> None:
        self._held: dict[_Key, PriceUpdate | OrderbookUpdate] = {}

    def whole(self, topic: Topic, message: Data) -> Data | None:
        """Return a message as a whole: itself, or the result of a delta.

        None if its base is not known: a whole message has to come first. Raises
        WrongChecksumError; then the base is not known any more.
        """
        match message:
            case PriceUpdate() | OrderbookUpdate():
                self._held[topic, type(message)] = message
                return message
            case PriceDelta():
                return self._change_price(topic, message)
            case OrderbookDelta():
                return self._change_book(topic, message)
            case _:
                return message

    def forget(self, topic: Topic) -> None:
        """Forget what is known of a topic: a gap, or the end of its subscription."""
        for model in (PriceUpdate, OrderbookUpdate):
            self._held.pop((topic, model), None)

    def clear(self) -> None:
        """Forget everything: the connection is over."""
        self._held.clear()

    def _change_price(self, topic: Topic, delta: PriceDelta) -> Data | None:
        base = self._held.get((topic, PriceUpdate))
        if base is None or base.about != delta.stock_code:
            return None
        changes = dict(delta.changes)
        fields: dict[str, Any] = {
            name: changes.pop(name) for name in _PRICE_FIELDS if name in changes
        }
        return self._hold(topic, base, delta, changes, fields)

    def _change_book(self, topic: Topic, delta: OrderbookDelta) -> Data | None:
        base = self._held.pop((topic, OrderbookUpdate), None)
        if not isinstance(base, OrderbookUpdate):
            return None
        bids = _changed(base.bids, delta.bids, descending=True)
        asks = _changed(base.asks, delta.asks, descending=False)
        if checksum(map(_numbers, bids), map(_numbers, asks)) != delta.checksum:
            raise WrongChecksumError
        # A checksum in the base is the producer's, of that book.
        known = {name: value for name, value in base.extra.items() if name != "checksum"}
        base = attrs.evolve(base, extra=known)
        return self._hold(topic, base, delta, delta.changes, {"bids": bids, "asks": asks})

    def _hold(
        self,
        topic: Topic,
        base: PriceUpdate | OrderbookUpdate,
        delta: PriceDelta | OrderbookDelta,
        extra: Any,
        fields: dict[str, Any],
    ) -> Data:
        message = attrs.evolve(
            base,
            timestamp=delta.timestamp,
            sequence=delta.sequence,
            previous=delta.previous,
            snapshot=False,
            extra={**base.extra, **extra},
            text=delta.text,
            **fields,
        )
        self._held[topic, type(base)] = message
        return message


def _changed(
    levels: Iterable[PriceLevel], changes: Iterable[PriceLevel], *, descending: bool
) -> tuple[PriceLevel, ...]:
    side = {level.price: level for level in levels}
    for level in changes:
        if level.quantity:
            side[level.price] = level
        else:
            side.pop(level.price, None)
    return tuple(side[price] for price in sorted(side, reverse=descending))


def _numbers(level: PriceLevel) -> tuple[Decimal, Decimal]:
    return level.price, level.quantity
