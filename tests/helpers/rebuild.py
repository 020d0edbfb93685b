"""A client's view of deltas, written from the protocol reference alone.

Numbers are exact (`read_exactly`). Nothing here is shared with the server or the client library,
so that a fault of theirs shows.
"""

from __future__ import annotations

import json
import zlib
from decimal import Decimal
from typing import Any

Message = dict[str, Any]

_SIDES = ("bids", "asks")
_OF_THE_STREAM = {"type", "sequence", "previous", "snapshot", "checksum"}
WHOLE_TYPES = {"price_delta": "price_update", "orderbook_delta": "orderbook_update"}


def read_exactly(text: str | bytes) -> Any:
    """Decode JSON; fractions are Decimal."""
    return json.loads(text, parse_float=Decimal)


def content(message: Message) -> Message:
    """The members of a whole message, apart from its place in the stream; levels by price."""
    said = {name: value for name, value in message.items() if name not in _OF_THE_STREAM}
    for side in _SIDES:
        if side in said:
            said[side] = {level["price"]: level for level in said[side]}
    return said


def cut(message: Message, depth: int | None) -> Message:
    """A whole message with the first levels of each side."""
    return message | {side: message[side][:depth] for side in _SIDES if side in message}


def rebuilt(base: Message, delta: Message) -> Message:
    """The content after a delta. Its checksum must be right."""
    result = base | {
        name: value
        for name, value in delta.items()
        if name not in _OF_THE_STREAM and name not in _SIDES
    }
    if delta["type"] != "orderbook_delta":
        return result
    for side in _SIDES:
        levels = dict(base[side])
        for level in delta[side]:
            levels.pop(level["price"], None)
            if level["quantity"]:
                levels[level["price"]] = level
        result[side] = dict(sorted(levels.items(), reverse=side == "bids"))
    assert delta["checksum"] == checksum(result), "a wrong checksum"
    return result


def checksum(book: Message) -> int:
    """The checksum of a book's content, by the words of the reference."""
    levels = [*list(book["asks"].values())[:10], *list(book["bids"].values())[:10]]
    text = ",".join(f"{_plain(level['price'])}:{_plain(level['quantity'])}" for level in levels)
    return zlib.crc32(text.encode("ascii"))


def _plain(number: int | Decimal) -> str:
    text = f"{Decimal(number):f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if not number else text
