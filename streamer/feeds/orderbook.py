"""An order book, rebuilt from a snapshot and the updates to it."""

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
    """The keys of `quantities`, ascending: sorting some thousand levels anew for each update would
    be most of the cost of a replay."""

    def apply(self, levels: Iterable[Level]) -> None:
        for price, quantity in levels:
            if quantity:
                if price not in self.quantities:
                    insort(self.prices, price)
                self.quantities[price] = quantity
            # The exchange also removes levels that lie beyond the snapshot's depth.
            elif self.quantities.pop(price, None) is not None:
                del self.prices[bisect_left(self.prices, price)]


class OrderBook:
    """One symbol's book.

    The rules are those of "How to manage a local order book correctly":
    https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams
    """

    def __init__(self, snapshot: DepthSnapshot) -> None:
        self.update_id = snapshot.last_update_id
        """Of the newest change that is in the book."""
        self._is_snapshot = True
        self._bids = _Side()
        self._asks = _Side()
        self._bids.apply(snapshot.bids)
        self._asks.apply(snapshot.asks)

    def apply(self, update: DepthUpdate) -> bool:
        """Bring the book up to `update`; False if the snapshot already holds all of it.

        Raises ValueError if updates are missing between the book and this one.
        """
        if self._is_snapshot and update.last_update_id <= self.update_id:
            return False
        following = self.update_id + 1
        first = update.first_update_id
        begins_right = first <= following if self._is_snapshot else first == following
        if not (begins_right and following <= update.last_update_id):
            raise ValueError(
                f"the order book's chain is broken: it is at update {self.update_id}, "
                f"and {first} to {update.last_update_id} does not follow"
            )
        self._bids.apply(update.bids)
        self._asks.apply(update.asks)
        self.update_id = update.last_update_id
        self._is_snapshot = False
        return True

    def best_bids(self, count: int) -> Sequence[Level]:
        """The `count` highest bids, the highest first."""
        side = self._bids
        return [(price, side.quantities[price]) for price in side.prices[: -count - 1 : -1]]

    def best_asks(self, count: int) -> Sequence[Level]:
        """The `count` lowest asks, the lowest first."""
        side = self._asks
        return [(price, side.quantities[price]) for price in side.prices[:count]]
