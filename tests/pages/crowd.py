"""Many connections that only read: `python -m tests.pages.crowd URL COUNT`.

It says when all of them are subscribed, and ends with its standard input. They are bare sockets: a
client that judges its stream would need the processor that the server and the browser need.
"""

from __future__ import annotations

import json
import sys
from typing import Final
from urllib.parse import urlsplit

import trio

from streamer.cli.serve import allow_many_connections

CONNECTED: Final = "connected"
TOPICS: Final = tuple(f"stock:{number:06}" for number in range(100))
_IN_FLIGHT: Final = 50
_READ_BYTES: Final = 65_536


def _masked(text: str) -> bytes:
    """A frame of a client (RFC 6455, 5.2), whose mask of zeros changes nothing."""
    body = text.encode()
    assert len(body) < 126
    return bytes([0x81, 0x80 | len(body), 0, 0, 0, 0]) + body


async def _stay(url: str, number: int, limit: trio.CapacityLimiter, ready: trio.Semaphore) -> None:
    """Connect, subscribe, and read until cancelled."""
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    target = TOPICS[number % len(TOPICS)].partition(":")[2]
    request = {"type": "subscribe", "subscription_type": "stock", "targets": [target]}
    handshake = (
        f"GET {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nUser-Agent: crowd/{number}\r\n\r\n"
    )
    async with limit:
        stream = await trio.open_tcp_stream(address.hostname, address.port)
        received = b""
        await stream.send_all(handshake.encode() + _masked(json.dumps(request)))
        while b'"subscribed"' not in received:
            data = await stream.receive_some(_READ_BYTES)
            assert data, f"the server closed the connection after {received!r}"
            received += data
    ready.release()
    async with stream:
        while await stream.receive_some(_READ_BYTES):
            pass


async def _run(url: str, count: int) -> None:
    limit = trio.CapacityLimiter(_IN_FLIGHT)
    ready = trio.Semaphore(0)
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(_stay, url, number, limit, ready)
        for _ in range(count):
            await ready.acquire()
        print(CONNECTED, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    allow_many_connections()
    trio.run(_run, sys.argv[1], int(sys.argv[2]))
