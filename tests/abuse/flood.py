"""Publications for attacks that need some."""

from __future__ import annotations

import json

import trio

from streamer.broker.requests import RedisClient
from streamer.publisher.publisher import open_publisher
from tests.abuse.attack import Target


def price(code: str, number: int, size: int = 0) -> bytes:
    """A publication of about `size` bytes."""
    return json.dumps(
        {
            "type": "price_update",
            "stock_code": code,
            "price": number,
            "change": 0,
            "change_percent": 0,
            "volume": number,
            "timestamp": "2024-08-09T05:00:00Z",
            "padding": "x" * max(size - 150, 0),
        }
    ).encode()


async def flood(
    target: Target,
    codes: list[str],
    *,
    count: int,
    size: int,
    seconds: float = 0,
    positioned: bool = False,
) -> None:
    """Publish `count` prices of each code, spread over some `seconds`."""
    async with trio.open_nursery() as nursery:
        commands = RedisClient(target.redis_url, client_name="attacker")
        nursery.start_soon(commands.run)
        async with open_publisher(target.redis_url, positioned=positioned) as publisher:
            for number in range(1, count + 1):
                sent = [(f"stock:{code}:price", price(code, number, size)) for code in codes]
                if positioned:
                    await publisher.publish_many(sent)
                else:
                    await commands.execute_many([("PUBLISH", *one) for one in sent])
                await trio.sleep(seconds / count)
        nursery.cancel_scope.cancel()
