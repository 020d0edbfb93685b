"""A client that sends the messages it is given, over a real socket, and returns all it receives."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.helpers.clients import Client, open_url


@asynccontextmanager
async def converse(url: str) -> AsyncIterator[Client]:
    """One that is past its greeting."""
    async with open_url(url) as connection:
        client = Client(connection)
        client.session_id = (await client.receive_type("connected"))["session_id"]
        yield client
