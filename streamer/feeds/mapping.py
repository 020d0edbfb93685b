"""Mappings: which of a feed's messages become which publications, and which field is what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import attrs

from streamer.feeds.mapping_values import Path, Template, Value
from streamer.feeds.websocket import FeedSource
from streamer.protocol.messages import MarketStatus, OrderbookDelta, OrderbookUpdate, PriceUpdate
from streamer.protocol.topics import Kind

PUBLICATION_KINDS: Final = {
    PriceUpdate.type: Kind.PRICE,
    OrderbookUpdate.type: Kind.ORDERBOOK,
    OrderbookDelta.type: Kind.ORDERBOOK,
    MarketStatus.type: Kind.STATUS,
}
"""The types of publications that a mapping can make -> the kinds of their channels."""


@attrs.frozen
class Condition:
    """A condition on a value of a message."""

    path: Path
    options: frozenset[str] | None = None
    """The texts that the value may be."""
    pattern: re.Pattern[str] | None = None
    """Matches the whole value; its named groups are captured."""
    exists: bool | None = None


@attrs.frozen
class Levels:
    """The levels of one side of an order book."""

    each: Path
    """The list of levels."""
    price: Path
    quantity: Path
    orders: Path | None = None


@attrs.frozen
class UpdateIds:
    """The ids of updates, by which a hole in a stream of changes is found."""

    last: Value
    """The id of the last update that a message contains."""
    first: Value | None = None
    """The id of the first one."""
    previous: Value | None = None
    """The id of the last update of the message before."""


@attrs.frozen(kw_only=True)
class MessageMapping:
    """The publications that follow from one kind of message."""

    key: str
    """Its place in the file, for errors: `message[0]`."""
    type: str
    """The type of the publication."""
    conditions: tuple[Condition, ...]
    each: Path | None
    """The list in a message of which every item becomes a publication."""
    topics: tuple[Template, ...]
    fields: Mapping[str, Value]
    bids: Levels | None
    asks: Levels | None
    timestamp: Value | None
    """None: the receive time."""
    extra: Mapping[str, Value]
    ids: UpdateIds | None

    @property
    def kind(self) -> Kind:
        """The kind of the publication's channel."""
        return PUBLICATION_KINDS[self.type]


@attrs.frozen
class FeedMapping:
    """A feed, and what its messages become."""

    sources: tuple[FeedSource, ...]
    """One for each URL; none if the file names no feed."""
    messages: tuple[MessageMapping, ...]
