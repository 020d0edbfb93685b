"""Keep the order books of a feed, so that they can be published whole again and again.

A feed of changes has one whole book for each connection. A server that begins to read a topic later
needs another one to apply the changes to.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import attrs

from streamer.feeds.mapping_values import json_text
from streamer.feeds.orderbook import BookSide
from streamer.protocol.messages import OrderbookUpdate

WHOLE_EVERY_NS: Final = 10 * 10**9
"""The longest time between two whole books, if changes come: a server that nobody noticed may wait
for one. More often, a deep book of a busy topic would fill the history in Redis."""

MIN_LEVELS: Final = 100
MAX_LEVELS: Final = 1000
"""Levels of each side of a book that is published again: as many as the feed's own one had, within
these bounds. The upper one is what a server keeps of a book of changes by default."""

_MAX_KEPT_LEVELS: Final = 10_000
"""Levels of each side that are kept; a feed also changes prices far from the best ones."""

_MIN_BYTES: Final = 1 << 14
"""The least bound for the size of a book: the feed's own one may be of a market that just opens."""

Members = dict[str, Any]
"""The members of a publication, with numbers as `Number`."""


@attrs.define
class KeptBook:
    """The book of one channel, after the publications so far."""

    _members: Members
    """All but the levels."""
    _count: int
    """Levels of each side that are published."""
    _max_bytes: int
    """The size of the feed's own book: servers may take no larger one."""
    _whole_ns: int
    """When it was last published whole."""
    _bids: BookSide[Members] = attrs.field(factory=BookSide)
    _asks: BookSide[Members] = attrs.field(factory=BookSide)
    _last_bid: Decimal | None = None
    """The worst bid of the book that was published, if it had not all; None: it had."""
    _last_ask: Decimal | None = None
    is_wanted: bool = False
    """Whether somebody waits for a whole book."""
    is_refused: bool = False
    """Whether the last whole book was refused: no change may be published until another one is."""
    _retried_ns: int | None = None
    """When a book was last published in place of one that was refused."""
    _is_feeds_own: bool = True
    """Whether no whole book has been published since that of the feed."""
    _feeds_own_was_refused: bool = False

    @classmethod
    def of(cls, whole: Members, payload: bytes, now_ns: int) -> KeptBook:
        """Keep a whole book of the feed, which is published as `payload`."""
        members = {name: value for name, value in whole.items() if name not in {"bids", "asks"}}
        levels = max(len(whole["bids"]), len(whole["asks"]))
        count = min(MAX_LEVELS, max(MIN_LEVELS, levels))
        book = cls(members, count, max(len(payload), _MIN_BYTES), now_ns)
        book._apply(whole)
        return book

    def refuse(self) -> None:
        """Take note that the last whole book was refused.

        The book after the next change is published whole. If that is refused, too, another one
        follows WHOLE_EVERY_NS later, and so on.
        """
        self.is_refused = True
        self._feeds_own_was_refused |= self._is_feeds_own

    @property
    def is_spoilt(self) -> bool:
        """Whether changes have made it unlike the feed's own book, which was not refused."""
        return not (self._is_feeds_own or self._feeds_own_was_refused)

    def change(self, change: Members, payload: bytes, now_ns: int) -> bytes | None:
        """Apply a change; return what to publish: it, or the whole book after it.

        The whole book also takes the place of a change that crosses the book, as feeds that send
        bids and asks apart do for a moment, since a server would not take the change, and of one
        that leaves servers with too few levels of a side. None: a book was refused, and it is too
        early for another one.
        """
        self._apply(change)
        self._members |= {
            name: value for name, value in change.items() if name not in {"type", "bids", "asks"}
        }
        is_due = not 0 <= now_ns - self._whole_ns < WHOLE_EVERY_NS
        if self.is_refused:
            retried_ns, is_due = self._retried_ns, True
            if retried_ns is not None and 0 <= now_ns - retried_ns < WHOLE_EVERY_NS:
                return None
            self.is_refused, self._retried_ns = False, now_ns
        if is_due or self.is_wanted or self._is_crossed or self._is_thin:
            self._whole_ns, self.is_wanted, self._is_feeds_own = now_ns, False, False
            return self._whole()
        return self._within(change, payload)

    @property
    def _is_crossed(self) -> bool:
        bid, ask = self._bids.highest(1), self._asks.lowest(1)
        return bool(bid and ask and bid[0] > ask[0])

    @property
    def _is_thin(self) -> bool:
        """Whether fewer than half of the levels of a side are left within the published bound.

        The price has moved. Servers do not have the levels beyond the bound, which are known here.
        """
        least = max(1, self._count // 2)
        return (self._last_bid is not None and self._bids.count_from(self._last_bid) < least) or (
            self._last_ask is not None and self._asks.count_to(self._last_ask) < least
        )

    def _apply(self, members: Members) -> None:
        for side, name in ((self._bids, "bids"), (self._asks, "asks")):
            for level in members[name]:
                price = Decimal(level["price"])
                if Decimal(level["quantity"]):
                    side.put(price, level)
                else:
                    side.remove(price)
        while len(self._bids.levels) > _MAX_KEPT_LEVELS:
            self._bids.remove(self._bids.lowest(1)[0])
        while len(self._asks.levels) > _MAX_KEPT_LEVELS:
            self._asks.remove(self._asks.highest(1)[0])

    def _whole(self) -> bytes:
        while True:
            bids, asks = self._bids.highest(self._count), self._asks.lowest(self._count)
            self._last_bid = bids[-1] if len(bids) < len(self._bids.levels) else None
            self._last_ask = asks[-1] if len(asks) < len(self._asks.levels) else None
            members = self._members | {
                "type": OrderbookUpdate.type,
                "bids": [self._bids.levels[price] for price in bids],
                "asks": [self._asks.levels[price] for price in asks],
            }
            payload = json_text(members)
            if len(payload) <= self._max_bytes or self._count == 1:
                return payload
            self._count = self._count * 3 // 4

    def _within(self, change: Members, payload: bytes) -> bytes:
        """Return a change without levels beyond those that were published.

        A server that added them would have a book without the levels between.
        """
        if self._last_bid is None and self._last_ask is None:
            return payload
        bids = [
            level
            for level in change["bids"]
            if self._last_bid is None or Decimal(level["price"]) >= self._last_bid
        ]
        asks = [
            level
            for level in change["asks"]
            if self._last_ask is None or Decimal(level["price"]) <= self._last_ask
        ]
        if len(bids) + len(asks) == len(change["bids"]) + len(change["asks"]):
            return payload
        return json_text(change | {"bids": bids, "asks": asks})
