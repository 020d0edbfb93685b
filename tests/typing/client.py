"""Types of the names that receive as a client, as an application sees them."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, assert_type

from streamer import (
    Account,
    Backoff,
    Client,
    Data,
    Error,
    Event,
    Gap,
    MarketStatus,
    Mode,
    OrderbookUpdate,
    Position,
    PriceUpdate,
    SubscriptionRejectedError,
    Topic,
    Violation,
    open_client,
)


def on_violation(violation: Violation) -> None:
    """A callback takes a violation."""
    assert_type(violation.topic, Topic | None)


async def listen() -> Account:
    """A client is iterated over for events, whose fields have precise types."""
    backoff = Backoff(first_seconds=0.1, max_seconds=5)
    async with open_client("ws://127.0.0.1", backoff=backoff, on_violation=on_violation) as client:
        assert_type(client, Client)
        await client.subscribe(["stock:005930", Topic.parse("market:KOSPI")], mode=Mode.ALL)
        await client.subscribe(["stock:000660"], kinds=["price"], max_rate=2)
        async for event in client:
            assert_type(event, Event)
            match event:
                case PriceUpdate():
                    assert_type(event.price, Decimal)
                    assert_type(event.topic, Topic | None)
                    assert_type(event.sequence, int)
                    assert_type(event.extra, Mapping[str, Any])
                case OrderbookUpdate():
                    assert_type(event.bids[0].quantity, Decimal)
                case MarketStatus():
                    assert_type(event.market, str)
                case Gap():
                    assert_type(event.topic, Topic)
                    assert_type(event.epoch, str)
                case Error():
                    assert_type(event.message, str)
                case Data():
                    assert_type(event.timestamp, str)
        assert_type(client.position("stock:005930"), Position | None)
        return client.account()


async def mistakes(client: Client, rejected: SubscriptionRejectedError) -> None:
    """Each line is an error to a type checker."""
    await client.subscribe([5930])  # type: ignore[list-item]
    await client.subscribe(["stock:005930"], Mode.ALL)  # type: ignore[call-arg]
    for _ in client:  # type: ignore[attr-defined]
        pass
    rejected.targets  # type: ignore[attr-defined]
