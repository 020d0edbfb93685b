"""Run a server inside another program, without Redis: python embedded.py 8765."""

import json
import sys
from functools import partial

import structlog
import trio

from streamer import Server, Settings, serve


async def main(port: str) -> None:
    """Publish a counter once a second to all subscribers of stock:COUNTER."""
    # The program decides where the server's log goes.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    settings = Settings(memory=True, port=int(port), http_port=0)
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(partial(serve, settings))
        print("serving at", server.websocket_url, flush=True)
        assert server.bus is not None  # with memory=True there is one
        update = {"type": "price_update", "stock_code": "COUNTER", "change": 0, "volume": 0}
        count = 0
        while True:
            count += 1
            message = update | {"price": count, "change_percent": 0}
            server.bus.publish("stock:COUNTER:price", json.dumps(message).encode())
            await trio.sleep(1)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
