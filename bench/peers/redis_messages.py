# mypy: ignore-errors
"""Shared by the asyncio peers: publications from Redis as they arrive, and their subscribers."""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Hashable
from typing import Generic, TypeVar

import redis.asyncio

Client = TypeVar("Client", bound=Hashable)


async def messages(port: int) -> AsyncIterator[tuple[str, bytes]]:
    """Channel and payload of every publication."""
    pubsub = redis.asyncio.Redis(port=port).pubsub()
    await pubsub.psubscribe("stock:*")
    async for message in pubsub.listen():
        if message["type"] == "pmessage":
            yield message["channel"].decode(), message["data"]


class Book(Generic[Client]):
    """The subscribers of each channel."""

    def __init__(self) -> None:
        self.clients: defaultdict[str, set[Client]] = defaultdict(set)

    def subscribe(self, client: Client, request: str | bytes) -> str:
        """Take a client's request; return the answer to send."""
        channels = json.loads(request)["subscribe"]
        for channel in channels:
            self.clients[channel].add(client)
        return json.dumps({"subscribed": len(channels)})

    def forget(self, client: Client) -> None:
        """Remove a client that has disconnected."""
        for clients in self.clients.values():
            clients.discard(client)
