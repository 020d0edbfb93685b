"""Deltas: the changes from one data message to a later one of its topic and kind.

A delta has the members that changed, as the producer wrote them, and those that say what the
message is about. An order book's has the levels that changed, and a checksum of the book after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from itertools import islice
from operator import gt, lt
from typing import Any, Final

import attrs
import orjson

from streamer.protocol.json_text import items_of, read_members, read_value
from streamer.protocol.messages import OrderbookDelta, PriceDelta
from streamer.protocol.orderbook import (
    Level,
    Side,
    best,
    changed_levels,
    read_levels,
    side_checksum,
    side_of,
)

_BIDS, _ASKS, _CHECKSUM = "bids", "asks", "checksum"
_USUAL_NAMES: Final = ('"price"', '"quantity"', '"orders"')
_SUBJECT: Final = "stock_code"
_IN_EVERY_DELTA: Final = (_SUBJECT, "timestamp", "subscription_type", "target")
"""Members that a delta repeats: those that say what it is about, and when."""
_OF_THE_STREAM: Final = frozenset({"type", "sequence", "previous", "snapshot", *_IN_EVERY_DELTA})
"""Members that are not compared."""


@attrs.frozen
class Content:
    """The members of a whole message, as texts."""

    identity: Mapping[str, str]
    """The members that every delta repeats: name -> text of the value."""
    members: Mapping[str, str]
    """All others that are compared: name -> text of the value."""
    bids: Side | None = None
    """The sides of an order book; None of a price."""
    asks: Side | None = None

    def at_depth(self, depth: int | None) -> Content:
        """Return the same with the best `depth` levels a side."""
        bids, asks = self.bids, self.asks
        if depth is None or bids is None or asks is None:
            return self
        if max(len(bids), len(asks)) <= depth:
            return self
        return attrs.evolve(self, bids=best(bids, depth), asks=best(asks, depth))


def read_content(text: bytes, *, is_book: bool) -> Content | None:
    """Return the content of a price or an order book; None if no delta can lead to or from it.

    That is an order book whose levels are not in order, best first, each with a quantity above 0.
    """
    identity: dict[str, str] = {}
    members: dict[str, str] = {}
    values: dict[str, Any] = {}
    for name, value, member in read_members(text.decode()):
        if name in _IN_EVERY_DELTA:
            identity[name] = member
        elif name not in _OF_THE_STREAM:
            members[name] = member
            values[name] = value
    if not is_book:
        return Content(identity, members)
    members.pop(_CHECKSUM, None)  # the producer's, of this book; a delta has the server's
    bids = side_of(read_levels(values[_BIDS], members.pop(_BIDS)), descending=True)
    asks = side_of(read_levels(values[_ASKS], members.pop(_ASKS)), descending=False)
    return None if bids is None or asks is None else Content(identity, members, bids, asks)


def read_changes(
    text: bytes,
) -> tuple[Content, list[tuple[Decimal, Level]], list[tuple[Decimal, Level]], int | None]:
    """Return what an `orderbook_delta` has: its other members, bids, asks and checksum."""
    identity: dict[str, str] = {}
    members: dict[str, str] = {}
    values: dict[str, Any] = {}
    for name, value, member in read_members(text.decode()):
        values[name] = value
        if name in _IN_EVERY_DELTA:
            identity[name] = member
        elif name not in _OF_THE_STREAM:
            members[name] = member
    bids = list(read_levels(values[_BIDS], members.pop(_BIDS)))
    asks = list(read_levels(values[_ASKS], members.pop(_ASKS)))
    checksum = members.pop(_CHECKSUM, "null")
    return Content(identity, members), bids, asks, None if checksum == "null" else int(checksum)


def cut_book(text: bytes, depth: int) -> bytes:
    """Return the JSON of an order book with the best `depth` levels a side, otherwise the same."""
    members: dict[str, str] = {}
    is_cut = False
    for name, value, member in read_members(text.decode(), _end_of_usual_side):
        if name in (_BIDS, _ASKS):
            side = _cut_side(value, member, depth, descending=name == _BIDS)
            is_cut |= side is not member
            members[name] = side
        else:
            members[name] = member
    if not is_cut:
        return text
    texts = (f"{_quoted(name)}:{member}" for name, member in members.items())
    return f"{{{','.join(texts)}}}".encode()


def _end_of_usual_side(name: str, text: str, start: int) -> int | None:
    """Return where a side ends whose only strings are the usual names of a level's members.

    Then no bracket is in a string, and it need not be parsed to find its end, which would take
    most of the time for a book of hundreds of levels. None for another side and for other members.
    """
    if name not in (_BIDS, _ASKS):
        return None
    end = text.index("]", start) + 1
    if text.count("[", start, end) > 1:
        return None
    quotes = 2 * sum(text.count(usual, start, end) for usual in _USUAL_NAMES)
    return end if text.count('"', start, end) == quotes else None


def _cut_side(
    levels: list[dict[str, Any]] | None, text: str, depth: int, *, descending: bool
) -> str:
    """Return the text of the best levels of a side; `text` itself if it has no more of them.

    `levels` are None of a usual side (`_end_of_usual_side`).
    """
    if levels is None:
        if text.count("{") <= depth:
            return text
        if _is_flat_and_best_first(text, descending=descending):
            *_, rest = text.split("}", depth)
            return f"{text[: len(text) - len(rest)]}]"
        levels = read_value(text)
    if len(levels) <= depth:
        return text
    return f"[{','.join(islice(_best_first(levels, text, descending=descending), depth))}]"


def _is_flat_and_best_first(text: str, *, descending: bool) -> bool:
    """Whether a side has no braces but those of its levels, and is in order for certain.

    Numbers that are in order as doubles are in order; equal doubles may be of different numbers.
    """
    try:
        prices = [float(level["price"]) for level in orjson.loads(text)]
    except orjson.JSONDecodeError:  # a number beyond a double's range
        return False
    is_flat = len(prices) == text.count("{")
    return is_flat and all(map(gt if descending else lt, prices, prices[1:]))


def _best_first(levels: list[dict[str, Any]], text: str, *, descending: bool) -> Iterable[str]:
    """Return the texts of the levels of a side, in whatever order the producer wrote them."""
    prices = [Decimal(level["price"]) for level in levels]
    best_first = sorted(range(len(prices)), key=prices.__getitem__, reverse=descending)
    if best_first == list(range(len(prices))):
        return items_of(text)
    texts = list(items_of(text))
    return (texts[index] for index in best_first)


def delta_text(base: Content, content: Content, sequence: int) -> bytes | None:
    """Return the JSON of the delta from `base` to `content`; None if there is none.

    That is so if they are about different stocks, or if a member of `base` is gone.
    """
    if base.identity.get(_SUBJECT) != content.identity.get(_SUBJECT):
        return None
    if not base.members.keys() <= content.members.keys():
        return None
    if not base.identity.keys() <= content.identity.keys():
        return None
    kind = PriceDelta.type if base.bids is None else OrderbookDelta.type
    # The sequence is among the members that every delta has, not behind those that changed:
    # compressed deltas then take some 1 % fewer bytes.
    parts = [
        f'"type":"{kind}"',
        *(f'"{name}":{text}' for name, text in content.identity.items()),
        f'"sequence":{sequence}',
    ]
    known = base.members
    parts += [
        f"{_quoted(name)}:{text}"
        for name, text in content.members.items()
        if known.get(name) != text
    ]
    if base.bids is not None and base.asks is not None:
        assert content.bids is not None and content.asks is not None  # noqa: PT018 - of one kind
        bids = ",".join(changed_levels(base.bids, content.bids))
        asks = ",".join(changed_levels(base.asks, content.asks))
        parts += [
            f'"bids":[{bids}],"asks":[{asks}]',
            f'"checksum":{side_checksum(content.bids, content.asks)}',
        ]
    return f"{{{','.join(parts)}}}".encode()


def _quoted(name: str) -> str:
    return json.dumps(name)
