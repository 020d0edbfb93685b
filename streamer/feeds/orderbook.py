"""An order book, built from a snapshot and the updates after it."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from decimal import Decimal

import attrs

from streamer.feeds.binance import DepthSnapshot, DepthUpdate, Level


@attrs.define
class _Side:
    quantities: dict[Decimal, Decimal] = attrs.field(factory=dict)
    prices: list[Decimal] = attrs.field(factory=list)
    """The keys of `quantities`, ascending: sorting some thousand levels for each update would be
    most of the cost of a replay."""

    def apply(self, levels: Iterable[Level]) -> None:
        for price, quantity in levels:
            if quantity:
                if price not in self.quantities:
                    insort(self.prices, price)
                self.quantities[price] = quantity
            # The exchange also removes levels beyond the depth of the snapshot.
            elif self.quantities.pop(price, None) is not None:
                del self.prices[bisect_left(self.prices, price)]


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
        self._bids = _Side()
        self._asks = _Side()
        self._bids.apply(snapshot.bids)
        self._asks.apply(snapshot.asks)

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
        self._bids.apply(update.bids)
        self._asks.apply(update.asks)
        self.update_id = update.last_update_id
        return True

    def best_bids(self, count: int) -> Sequence[Level]:
        """Return the `count` highest bids, the highest first."""
        side = self._bids
        return [(price, side.quantities[price]) for price in side.prices[: -count - 1 : -1]]

    def best_asks(self, count: int) -> Sequence[Level]:
        """Return the `count` lowest asks, the lowest first."""
        side = self._asks
        return [(price, side.quantities[price]) for price in side.prices[:count]]
