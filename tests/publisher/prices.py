"""Publications that carry a number, to be recognised by."""

import orjson


def price(number: int, code: str = "005930") -> tuple[str, bytes]:
    """The channel and the text of a price of stock `code` whose volume is `number`."""
    update = {
        "type": "price_update",
        "stock_code": code,
        "price": 71_000,
        "change": 0,
        "change_percent": 0,
        "volume": number,
        "timestamp": "2026-01-02T00:00:00Z",
    }
    return f"stock:{code}:price", orjson.dumps(update)
