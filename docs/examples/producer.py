"""Publish prices with positions: python producer.py redis://127.0.0.1:6379 005930."""

import json
import random
import sys

import trio

from streamer import PublishFailedError, open_publisher


async def main(url: str, code: str, count: int = 10) -> None:
    """Publish a random walk; while Redis is away, publications are held and sent later."""
    price = 72_500
    async with open_publisher(url) as publisher:
        for _ in range(count):
            price += random.randrange(-100, 101, 50)  # noqa: S311 - simulates a market
            update = {
                "type": "price_update",
                "stock_code": code,
                "price": price,
                "change": price - 72_500,
                "change_percent": round((price - 72_500) / 725, 2),
                "volume": 1,
            }
            try:
                receipt = await publisher.publish(
                    f"stock:{code}:price", json.dumps(update).encode()
                )
            except PublishFailedError as error:
                print("not acknowledged:", error)
            else:
                print(price, "is at", receipt.position)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
