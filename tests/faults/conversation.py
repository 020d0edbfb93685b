"""A client that says what it is told to, over a real socket, and hides nothing that it gets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio_websocket

from tests.helpers.clients import Client


@asynccontextmanager
async def converse(url: str) -> AsyncIterator[Client]:
    """One that is past its greeting."""
    async with trio_websocket.open_websocket_url(
        url, max_message_size=1 << 24, message_queue_size=1000
    ) as connection:
        client = Client(connection)
        client.session_id = (await client.receive_type("connected"))["session_id"]
        yield client
