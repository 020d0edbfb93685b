"""Print prices as they arrive: python client.py ws://127.0.0.1:8765/v1/ws stock:005930."""

import sys

import trio

from streamer import Gap, PriceUpdate, open_client


async def main(url: str, topics: list[str]) -> None:
    """Subscribe, and print until interrupted; the client reconnects by itself."""
    async with open_client(url) as client:
        await client.subscribe(topics)
        async for event in client:
            if isinstance(event, PriceUpdate):
                print(event.topic, event.sequence, event.price, flush=True)
            elif isinstance(event, Gap):
                print(event.topic, "some publications are missing:", event.reason, flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2:])
