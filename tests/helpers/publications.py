"""Publications as producers write them."""

from __future__ import annotations

import json


def price(code: str, value: object, **more: object) -> bytes:
    """A price publication as a producer writes it."""
    return json.dumps(
        {
            "type": "price_update",
            "stock_code": code,
            "price": value,
            "change": 0,
            "change_percent": 0,
            "volume": 1,
            "timestamp": "2026-01-02T03:04:05.678Z",
            **more,
        }
    ).encode()


def numbered_price(number: int, code: str = "005930") -> bytes:
    """A price publication whose volume is its number."""
    return (
        b'{"type":"price_update","stock_code":"%b","price":72500.10,"change":-500,'
        b'"change_percent":-0.680,"volume":%d,"timestamp":"2024-08-09T00:00:00.000Z"}'
    ) % (code.encode(), number)


def numbered_publication(number: int, code: str = "005930") -> tuple[str, bytes]:
    """The channel and the text of a `numbered_price`."""
    return f"stock:{code}:price", numbered_price(number, code)


def orderbook(code: str, bid: object) -> bytes:
    """An order book publication with one bid."""
    return json.dumps(
        {
            "type": "orderbook_update",
            "stock_code": code,
            "bids": [{"price": bid, "quantity": 1}],
            "asks": [],
            "timestamp": "2026-01-02T03:04:05.678Z",
        }
    ).encode()


def market_status(market: str, phase: str) -> bytes:
    """A market status publication."""
    return json.dumps(
        {
            "type": "market_status",
            "market": market,
            "status": phase,
            "timestamp": "2026-01-02T03:04:05.678Z",
        }
    ).encode()
