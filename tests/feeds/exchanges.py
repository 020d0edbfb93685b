"""Local servers that speak like exchanges, by a WebSocket library that is not ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

import attrs
import trio
import trio_websocket

from tests.feeds.recordings import depth, snapshot, trade

UPBIT_REQUEST: Final = json.dumps(
    [
        {"ticket": "test"},
        {"type": "trade", "codes": ["KRW-BTC"]},
        {"type": "orderbook", "codes": ["KRW-BTC"]},
    ]
)

UPBIT_TRADE: Final = (
    '{"type":"trade","code":"KRW-BTC","timestamp":1723161255342,"trade_timestamp":1723161255300,'
    '"trade_price":85123000.00000000,"trade_volume":0.00012345,"ask_bid":"BID",'
    '"prev_closing_price":85000000.00000000,"change":"RISE","change_price":123000.00000000,'
    '"sequential_id":%d,"stream_type":"REALTIME"}'
)

UPBIT_BOOK: Final = (
    '{"type":"orderbook","code":"KRW-BTC","timestamp":1723161255342,"total_ask_size":3.5,'
    '"total_bid_size":1.25,"orderbook_units":['
    '{"ask_price":85124000.0,"bid_price":85123000.0,"ask_size":1.5,"bid_size":1.00},'
    '{"ask_price":85125000.0,"bid_price":85122000.0,"ask_size":2.0,"bid_size":2.5E-1}],'
    '"stream_type":"SNAPSHOT","level":0}'
)


@attrs.define
class Exchange:
    """A running server, and what its clients have done."""

    port: int
    http_port: int = 0
    connections: int = 0
    requests: list[Any] = attrs.field(factory=list)
    """The text messages of all clients."""
    pongs: int = 0
    """Pings of the server that were answered."""
    fetched: int = 0
    sent: int = 0
    """Messages of all connections, where `talk` counts them."""
    sockets: list[trio_websocket.WebSocketConnection] = attrs.field(factory=list)

    @property
    def url(self) -> str:
        """The URL of the WebSocket."""
        return f"ws://127.0.0.1:{self.port}/stream"

    @property
    def snapshot_url(self) -> str:
        """The URL of the order book's snapshot."""
        return f"http://127.0.0.1:{self.http_port}/api/v3/depth?symbol=BTCUSDT"


Talk = Callable[[Exchange, trio_websocket.WebSocketConnection], Any]


@asynccontextmanager
async def serving(talk: Talk, *, snapshots: Sequence[str] = ()) -> AsyncIterator[Exchange]:
    """Serve every connection with `talk`; HTTP requests get the snapshot of the newest one."""
    exchange = Exchange(0)

    async def accept(request: trio_websocket.WebSocketRequest) -> None:
        socket = await request.accept()
        exchange.connections += 1
        exchange.sockets.append(socket)
        with suppress(trio_websocket.ConnectionClosed):
            await talk(exchange, socket)

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            body = snapshots[exchange.connections - 1].encode()
            exchange.fetched += 1
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            await stream.send_all(head.encode() + body)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(
                trio_websocket.serve_websocket,
                *(accept, "127.0.0.1", 0, None),
                message_queue_size=100,  # with less, pongs wait behind messages that are not taken
            )
        )
        exchange.port = server.port
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        exchange.http_port = listener.socket.getsockname()[1]
        yield exchange
        nursery.cancel_scope.cancel()


async def ping_and_read(exchange: Exchange, socket: trio_websocket.WebSocketConnection) -> None:
    """Ping the client, count its pong, and keep its messages until it closes."""
    await socket.ping()
    exchange.pongs += 1
    while True:
        exchange.requests.append(await socket.get_message())


async def like_binance(exchange: Exchange, socket: trio_websocket.WebSocketConnection) -> None:
    """Send events of a combined stream, five trades and five depth updates a connection.

    The ids go on over connections, with a hole of 100 between. Each connection is cut after the
    client has answered a ping, except the third, which stays.
    """
    first = 1 + 100 * (exchange.connections - 1)
    for number in range(first, first + 5):
        await socket.send_message(trade(number, f"{60000 + number}.10"))
        await socket.send_message(depth(number, number, {f"{number}.0": "1.50"}))
    await socket.ping()
    exchange.pongs += 1
    if exchange.connections >= 3:
        await ping_and_read(exchange, socket)


def binance_snapshots() -> list[str]:
    """The snapshots for the connections of `like_binance`: each is within its updates."""
    return [snapshot(2 + 100 * number, {"0.5": "2.0"}, {"99999.0": "1.0"}) for number in range(9)]


async def like_upbit(exchange: Exchange, socket: trio_websocket.WebSocketConnection) -> None:
    """Send JSON in binary frames, once the client has asked with an array that has a ticket.

    The text PING is answered with a status, as by the exchange; each gives one more trade.
    """
    request = json.loads(await socket.get_message())
    exchange.requests.append(request)
    if not (isinstance(request, list) and "ticket" in request[0]):
        await socket.send_message(json.dumps({"error": {"name": "NO_TICKET"}}).encode())
        return
    await socket.send_message(UPBIT_BOOK.encode())
    number = 1000 * exchange.connections
    while True:
        await socket.send_message((UPBIT_TRADE % number).encode())
        number += 1
        message = await socket.get_message()
        exchange.requests.append(message)
        if message == "PING":
            await socket.send_message('{"status":"UP"}')
