# mypy: ignore-errors
"""websockets on uvloop, with its broadcast(): one frame made for all, written to each."""

import sys

import uvloop
from redis_messages import Book, messages
from websockets.asyncio.server import ServerConnection, broadcast, serve

book: Book[ServerConnection] = Book()


async def client(connection: ServerConnection) -> None:
    """Serve one connection."""
    try:
        async for request in connection:
            await connection.send(book.subscribe(connection, request))
    finally:
        book.forget(connection)


async def main(redis_port: int, port: int) -> None:
    """Serve until stopped."""
    async with serve(client, "127.0.0.1", port, backlog=4096):
        async for channel, payload in messages(redis_port):
            broadcast(book.clients[channel], payload.decode())


uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
