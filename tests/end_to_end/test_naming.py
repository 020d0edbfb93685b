"""Messages that are about something else than their topic name the topic, too."""

from __future__ import annotations

import pytest

from tests.helpers.clients import connected
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server


@pytest.mark.parametrize("subscription_type", ["sector", "watchlist"])
async def test_a_stream_of_many_stocks_names_itself(subscription_type: str) -> None:
    """A client that has the stock as well could not tell the two sequences apart otherwise."""
    async with running_server() as server, connected(server) as client:
        await client.subscribe(f"{subscription_type}:A")
        publish(server, f"{subscription_type}:A:price", price("005930", 72500))
        message = await client.data()
        assert (message["stock_code"], message["sequence"]) == ("005930", 1)
        assert (message["subscription_type"], message["target"]) == (subscription_type, "A")


async def test_a_stock_tells_what_it_is() -> None:
    """Nothing is added to a message that names its stock."""
    async with running_server() as server, connected(server) as client:
        await client.subscribe("stock:005930")
        publish(server, "stock:005930:price", price("005930", 72500))
        message = await client.data()
        assert not {"target", "subscription_type"} & message.keys()
