"""A client that sends the messages it is given, over a real socket, and returns all it receives."""

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
