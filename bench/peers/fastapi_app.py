# mypy: ignore-errors
"""FastAPI on uvicorn and uvloop: the connection manager of its documentation, a send per client."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from redis_messages import Book, messages

REDIS_PORT, PORT = int(sys.argv[1]), int(sys.argv[2])

book: Book[WebSocket] = Book()


async def forward() -> None:
    """Send each publication to its subscribers in turn."""
    async for channel, payload in messages(REDIS_PORT):
        text = payload.decode()
        for client in list(book.clients[channel]):
            try:
                await client.send_text(text)
            except (WebSocketDisconnect, RuntimeError):
                book.forget(client)


@contextlib.asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Forward while the application runs."""
    async with asyncio.TaskGroup() as tasks:
        forwarding = tasks.create_task(forward())
        yield
        forwarding.cancel()


app = FastAPI(lifespan=lifespan)


@app.websocket("/")
async def client(connection: WebSocket) -> None:
    """Serve one connection."""
    await connection.accept()
    try:
        while True:
            await connection.send_text(book.subscribe(connection, await connection.receive_text()))
    except WebSocketDisconnect:
        book.forget(connection)


uvicorn.run(app, host="127.0.0.1", port=PORT, loop="uvloop", log_level="warning", backlog=4096)
