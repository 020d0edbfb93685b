"""A client that reconnects by itself, restores its subscriptions and verifies its stream.

async with open_client("ws://127.0.0.1:8765/v1/ws") as client:
    await client.subscribe(["stock:005930", "market:KOSPI"])
    async for message in client:
        if isinstance(message, PriceUpdate):
            print(message.topic, message.price)
print(client.account())
"""

from streamer.backoff import Backoff
from streamer.client.account import Account, Fault, Violation
from streamer.client.client import DEFAULT_URL, Client, ClientStatistics, Event, open_client
from streamer.client.decode import decode_server
from streamer.client.errors import (
    ClientError,
    ClosedError,
    ConnectError,
    DecodeError,
    RequestError,
    SubscriptionRejectedError,
)
from streamer.client.messages import (
    Alert,
    Data,
    Error,
    Gap,
    MarketStatus,
    Notification,
    OrderbookUpdate,
    PriceLevel,
    PriceUpdate,
    Unreadable,
)
from streamer.client.verify import Verifier
from streamer.protocol.messages import Mode, Position
from streamer.protocol.topics import Kind, SubscriptionType, Topic

__all__ = [
    "DEFAULT_URL",
    "Account",
    "Alert",
    "Backoff",
    "Client",
    "ClientError",
    "ClientStatistics",
    "ClosedError",
    "ConnectError",
    "Data",
    "DecodeError",
    "Error",
    "Event",
    "Fault",
    "Gap",
    "Kind",
    "MarketStatus",
    "Mode",
    "Notification",
    "OrderbookUpdate",
    "Position",
    "PriceLevel",
    "PriceUpdate",
    "RequestError",
    "SubscriptionRejectedError",
    "SubscriptionType",
    "Topic",
    "Unreadable",
    "Verifier",
    "Violation",
    "decode_server",
    "open_client",
]
