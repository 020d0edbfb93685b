"""An order book, built from a snapshot and the updates after it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Generic, TypeVar

import attrs

from streamer.feeds.binance import DepthSnapshot, DepthUpdate, Level

V = TypeVar("V")


@attrs.define
class BookSide(Generic[V]):
    """One side of an order book: what is known of each price."""

    levels: dict[Decimal, V] = attrs.field(factory=dict)
    _prices: list[Decimal] = attrs.field(factory=list)
    """The keys of `levels`, ascending: sorting some thousand levels for each update would be most
    of the cost of a replay."""

    def put(self, price: Decimal, level: V) -> None:
        """Set what is known of a price."""
        if price not in self.levels:
            insort(self._prices, price)
        self.levels[price] = level

    def remove(self, price: Decimal) -> None:
        """Remove a price. The exchange also removes some beyond the depth of its snapshot."""
        if self.levels.pop(price, None) is not None:
            del self._prices[bisect_left(self._prices, price)]

    def highest(self, count: int) -> Sequence[Decimal]:
        """Return the `count` highest prices, the highest first."""
        return self._prices[: -count - 1 : -1]

    def lowest(self, count: int) -> Sequence[Decimal]:
        """Return the `count` lowest prices, the lowest first."""
        return self._prices[:count]

    def count_from(self, price: Decimal) -> int:
        """Return how many prices are `price` or above it."""
        return len(self._prices) - bisect_left(self._prices, price)

    def count_to(self, price: Decimal) -> int:
        """Return how many prices are `price` or below it."""
        return bisect_right(self._prices, price)


def _apply(side: BookSide[Decimal], levels: Iterable[Level]) -> None:
    for price, quantity in levels:
        if quantity:
            side.put(price, quantity)
        else:
            side.remove(price)


class BrokenChainError(ValueError):
    """Updates are missing between an order book and an update."""


class OrderBook:
    """The order book of one symbol.

    The rules are those of "How to manage a local order book correctly":
    https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams
    """

    def __init__(self, snapshot: DepthSnapshot) -> None:
        self.update_id = snapshot.last_update_id
        """The id of the last change that the book contains."""
        self._bids = BookSide[Decimal]()
        self._asks = BookSide[Decimal]()
        _apply(self._bids, snapshot.bids)
        _apply(self._asks, snapshot.asks)

    def apply(self, update: DepthUpdate) -> bool:
        """Apply `update`; return False if the book already contains all of it.

        An update that the book contains in part is applied: it has quantities, not differences.
        Raises BrokenChainError if updates are missing before this one.
        """
        if update.last_update_id <= self.update_id:
            return False
        if update.first_update_id > self.update_id + 1:
            raise BrokenChainError(
                f"the order book is at update {self.update_id}, "
                f"and {update.first_update_id} to {update.last_update_id} does not follow"
            )
        _apply(self._bids, update.bids)
        _apply(self._asks, update.asks)
        self.update_id = update.last_update_id
        return True

    def best_bids(self, count: int) -> Sequence[Level]:
        """Return the `count` highest bids, the highest first."""
        side = self._bids
        return [(price, side.levels[price]) for price in side.highest(count)]

    def best_asks(self, count: int) -> Sequence[Level]:
        """Return the `count` lowest asks, the lowest first."""
        side = self._asks
        return [(price, side.levels[price]) for price in side.lowest(count)]
