"""Messages that are about something else than their topic name the topic, too."""

from __future__ import annotations

import json

import orjson
import pytest
import redis as redis_py

from streamer.auth.permissions import Decision, Permissions
from streamer.publisher.publisher import open_publisher
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


def members(text: str) -> list[str]:
    """The names of an object's members, with those that are there twice."""
    names: list[str] = []
    json.loads(text, object_pairs_hook=lambda pairs: names.extend(name for name, _ in pairs))
    return names


@pytest.mark.parametrize("positioned", [True, False])
@pytest.mark.parametrize("topic", ["stock:A", "sector:A", "watchlist:A", "user:A"])
async def test_a_producers_own_members_mislead_nobody(
    redis_url: str,
    redis: redis_py.Redis,
    monkeypatch: pytest.MonkeyPatch,
    topic: str,
    positioned: bool,
) -> None:
    """Whatever it writes, no member is there twice, and the topic and the position are true."""
    allowed = Decision(is_allowed=True, rule="a test")
    monkeypatch.setattr(Permissions, "decide", lambda *_: allowed)
    own = {"subscription_type": "sector", "target": "B", "epoch": 412, "sequence": 9}
    if topic == "user:A":
        channel = "alerts:A"
        raw = {"alert_id": 1, "stock_code": "A", "alert_type": "a", "message": "m"}
        text = orjson.dumps(raw | own)
    else:
        channel = f"{topic}:price"
        text = price("A", 1, **own, type=None)
    async with (
        running_server(redis=redis_url) as server,
        open_publisher(redis_url) as publisher,
        connected(server) as client,
    ):
        answer = await client.subscribe(topic)
        if positioned:
            await publisher.publish(channel, text)
        else:
            redis.publish(channel, text)
        sent = await client.connection.get_message()
    assert isinstance(sent, str)
    names = members(sent)
    assert len(set(names)) == len(names)
    message = json.loads(sent)
    assert message["sequence"] == 1
    named = (message.get("subscription_type"), message.get("target"))
    assert named == ((None, None) if topic == "stock:A" else tuple(topic.split(":")))
    if positioned:
        assert type(message["epoch"]) is str
    else:
        assert message["epoch"] == 412
    assert answer["positions"]["A"]["sequence"] == 0


async def test_what_no_client_could_read_is_refused_and_counted(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """It reaches no client, and the next publication follows without a gap."""
    async with running_server(redis=redis_url) as server, connected(server) as client:
        await client.subscribe("stock:A")
        for value in ("1E-99999999999999999999", "[" * 1000 + "]" * 1000):
            redis.publish("stock:A:price", price("A", 1, x="X").replace(b'"X"', value.encode()))
        redis.publish(
            "stock:A:price", b"\xef\xbb\xbf" + price("A", 2, x="X").replace(b"X", rb"\ud800")
        )
        message = await client.data()
        assert (message["price"], message["sequence"], message["x"]) == (2, 1, "\ud800")
        assert server.statistics().ingest.rejected == 2
