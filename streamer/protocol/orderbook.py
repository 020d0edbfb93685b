"""Order books by exact numbers: levels, changes between books, and the checksum.

A level keeps the text of its numbers, as the producer wrote it; prices and quantities are compared
as decimals. No number becomes a float.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import islice
from operator import gt, itemgetter, lt
from typing import Any, Final

from streamer.protocol.json_text import items_of, read_members

CHECKSUM_LEVELS: Final = 10
"""Levels of each side that a checksum covers."""

Level = tuple[str, str, str]
"""The texts of price and quantity, and of further members with a comma before each."""

Side = Mapping[Decimal, Level]
"""One side of a book: its levels by price, best first."""

_FIRST: Final = itemgetter(0)

_USUAL_MEMBERS: Final = ({"price", "quantity"}, {"price", "quantity", "orders"})


def plain_decimal(number: str | Decimal) -> str:
    """Write a JSON number without exponent, + or superfluous zeros: `1.50e1` -> `15`."""
    if isinstance(number, Decimal) or "e" in number or "E" in number:
        number = format(Decimal(number), "f")
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    unsigned = number.removeprefix("-")
    return number if unsigned.strip("0") else "0"


def checksum(
    bids: Iterable[tuple[str | Decimal, str | Decimal]],
    asks: Iterable[tuple[str | Decimal, str | Decimal]],
) -> int:
    """Return the CRC-32 of a book: of its best ten levels (price, quantity) a side, best first."""
    levels = [*islice(asks, CHECKSUM_LEVELS), *islice(bids, CHECKSUM_LEVELS)]
    texts = (f"{plain_decimal(price)}:{plain_decimal(quantity)}" for price, quantity in levels)
    return zlib.crc32(",".join(texts).encode())


def side_checksum(bids: Side, asks: Side) -> int:
    """Return the checksum of a book."""
    return checksum(
        ((price, quantity) for price, quantity, _ in bids.values()),
        ((price, quantity) for price, quantity, _ in asks.values()),
    )


def read_levels(levels: list[dict[str, Any]], text: str) -> Iterator[tuple[Decimal, Level]]:
    """Yield the price of each level, and the level.

    `levels` is a list as `read_members` yields it, and `text` its text.
    """
    more = ""
    texts: list[str] | None = None
    for index, level in enumerate(levels):
        if len(level) > len(_USUAL_MEMBERS[0]):
            if level.keys() in _USUAL_MEMBERS:
                orders = level["orders"]
                more = f',"orders":{"null" if orders is None else orders}'
            else:
                texts = texts or list(items_of(text))
                more = "".join(
                    f",{json.dumps(name)}:{member}"  # orjson refuses a lone surrogate
                    for name, member in _further_members(texts[index])
                )
        yield Decimal(level["price"]), (level["price"], level["quantity"], more)
        more = ""


def _further_members(level: str) -> Iterator[tuple[str, str]]:
    members = {name: text for name, _, text in read_members(level)}
    return ((name, text) for name, text in members.items() if name not in _USUAL_MEMBERS[0])


def side_of(levels: Iterable[tuple[Decimal, Level]], *, descending: bool) -> Side | None:
    """Return a side; None if its levels are not in order, best first, with quantities above 0.

    Between such books, changes of levels cannot say what has changed.
    """
    side = dict(known := list(levels))
    prices = list(side)
    in_order = all(map(gt if descending else lt, prices, prices[1:]))
    if len(side) != len(known) or not in_order:
        return None
    if not all(Decimal(quantity) > 0 for _, quantity, _ in side.values()):
        return None
    return side


def level_text(level: Level) -> str:
    """Return the JSON of a level."""
    price, quantity, more = level
    return f'{{"price":{price},"quantity":{quantity}{more}}}'


def changed_levels(base: Side, side: Side) -> list[str]:
    """Return the JSON of the levels that lead from `base` to `side`; a quantity of 0 removes one.

    A quantity that is only written differently is no change.
    """
    changed = [
        level_text(level)
        for price, level in side.items()
        if (known := base.get(price)) is not level and (known is None or _differ(known, level))
    ]
    gone = [
        f'{{"price":{level[0]},"quantity":0}}' for price, level in base.items() if price not in side
    ]
    return changed + gone


def _differ(known: Level, level: Level) -> bool:
    if known[2] != level[2]:
        return True
    return known[1] != level[1] and Decimal(known[1]) != Decimal(level[1])


def apply_changes(
    side: Side, changes: Iterable[tuple[Decimal, Level]], *, descending: bool
) -> Side:
    """Return the side after changes, each a level with its new quantity; 0 removes it."""
    changed = dict(side)
    is_new = False
    for price, level in changes:
        if Decimal(level[1]):
            is_new |= price not in changed
            changed[price] = level
        else:
            changed.pop(price, None)
    return dict(sorted(changed.items(), key=_FIRST, reverse=descending)) if is_new else changed


def best(side: Side, count: int) -> Side:
    """Return the best `count` levels of a side."""
    return side if len(side) <= count else dict(islice(side.items(), count))
