"""The messages that the producers of the hub's tests publish."""

from __future__ import annotations

import random
from typing import Any

from streamer.protocol.topics import Kind, Topic
from tests.hub.pad import pad

_LEVELS = 8
_STOCKS_OF_A_SECTOR = 2


def body(topic: Topic, kind: Kind, value: int, size: int) -> dict[str, Any]:
    """Return the members of a publication: those of its kind, its value, and `size` bytes more.

    Books and prices differ from one to the next in some levels and members.
    """
    choice = random.Random(value)
    members: dict[str, Any] = {"type": f"{kind}_update"}
    if kind is Kind.ORDERBOOK:
        members["stock_code"] = topic.target
        members["bids"] = _side(choice, best=99, step=-1)
        members["asks"] = _side(choice, best=101, step=1)
    elif kind is Kind.PRICE:
        stock = topic.target if topic.key else f"S{value % _STOCKS_OF_A_SECTOR}"
        members |= {"stock_code": stock, "price": choice.randint(99, 101), "change": None}
        if choice.random() < 0.2:
            members["note"] = None
    return members | {"value": value, "pad": pad(value, size)}


def _side(choice: random.Random, *, best: int, step: int) -> list[dict[str, Any]]:
    return [
        {"price": best + step * level * 0.5, "quantity": choice.choice([1, 2, 2.5])}
        for level in range(_LEVELS)
        if choice.random() < 0.7
    ]
