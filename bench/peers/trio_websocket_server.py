# mypy: ignore-errors
"""trio-websocket as in its documentation: send_message for each message and client."""

import sys

import hiredis
import trio
import trio_websocket
from redis_messages import Book

book: Book[trio_websocket.WebSocketConnection] = Book()


async def client(request: trio_websocket.WebSocketRequest) -> None:
    """Serve one connection."""
    connection = await request.accept()
    try:
        while True:
            await connection.send_message(
                book.subscribe(connection, await connection.get_message())
            )
    except trio_websocket.ConnectionClosed:
        book.forget(connection)


async def forward(redis_port: int) -> None:
    """Send each publication to its subscribers in turn; redis-py has no client for Trio."""
    stream = await trio.open_tcp_stream("127.0.0.1", redis_port)
    await stream.send_all(b"PSUBSCRIBE stock:*\r\n")
    reader = hiredis.Reader()
    async for chunk in stream:
        reader.feed(chunk)
        while (reply := reader.gets()) is not False:
            if reply[0] != b"pmessage":
                continue
            text = reply[3].decode()
            for connection in list(book.clients[reply[2].decode()]):
                try:
                    await connection.send_message(text)
                except trio_websocket.ConnectionClosed:
                    book.forget(connection)


async def main(redis_port: int, port: int) -> None:
    """Serve until stopped."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forward, redis_port)
        await trio_websocket.serve_websocket(client, "127.0.0.1", port, ssl_context=None)


trio.run(main, int(sys.argv[1]), int(sys.argv[2]))
