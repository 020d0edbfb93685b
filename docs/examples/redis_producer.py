"""Publish one price with redis-py: python redis_producer.py redis://127.0.0.1:6379 005930 72500."""

import json
import sys

import redis


def main(url: str, code: str, price: str) -> None:
    """Publish; the server numbers the prices, so one that it misses while away becomes a gap."""
    update = {
        "type": "price_update",
        "stock_code": code,
        "price": float(price),
        "change": 0,
        "change_percent": 0,
        "volume": 1,
    }
    with redis.Redis.from_url(url) as client:
        servers = client.publish(f"stock:{code}:price", json.dumps(update))
    print("received by", servers, "servers")


if __name__ == "__main__":
    main(*sys.argv[1:4])
