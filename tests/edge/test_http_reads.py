"""Snapshots and histories: what a subscription would be sent, without one."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import redis as redis_py

from streamer.protocol.messages import Position
from streamer.publisher.publisher import open_publisher
from streamer.server import Server
from tests.helpers.clients import connected
from tests.helpers.events import fetched
from tests.helpers.publications import market_status, orderbook, price
from tests.helpers.server import publish, running_server


async def snapshot(server: Server, topics: str) -> dict[str, Any]:
    """The snapshot of topics."""
    response = await fetched(server, f"/v1/snapshot?topics={topics}")
    assert response.status == 200, response
    assert response.headers["cache-control"] == "no-store"
    answer: dict[str, Any] = response.json
    return answer


async def history(server: Server, topic: str, epoch: str, sequence: int, query: str = "") -> Any:
    """The history after a position."""
    response = await fetched(
        server, f"/v1/history?topic={topic}&epoch={quote(epoch)}&sequence={sequence}{query}"
    )
    assert response.status == 200, response
    assert response.headers["cache-control"] == "no-store"
    return response.json


async def test_a_snapshot_has_the_last_known_values_and_their_position() -> None:
    """For each topic, whether it has any or not; nothing remains subscribed."""
    async with running_server() as server, connected(server) as client:
        await client.subscribe("stock:A")
        for number in range(3):
            publish(server, "stock:A:price", price("A", number))
        publish(server, "stock:A:orderbook", orderbook("A", 9))
        answer = await snapshot(server, "stock:A,market:M")
        assert answer["stock:A"]["position"]["sequence"] == 4
        known = answer["stock:A"]["messages"]
        assert [(one["type"], one["sequence"], one["snapshot"]) for one in known] == [
            ("price_update", 3, True),
            ("orderbook_update", 4, True),
        ]
        assert answer["market:M"]["position"]["sequence"] == 0
        assert answer["market:M"]["messages"] == []
        statistics = server.statistics()
        assert (statistics.subscriptions, statistics.connections_total) == (1, 1)


async def test_the_position_of_a_snapshot_is_one_to_continue_from() -> None:
    """Over WebSocket as well: what follows the snapshot, and nothing of it again."""
    async with running_server() as server:
        before = (await snapshot(server, "market:M"))["market:M"]["position"]
        publish(server, "market:M:status", market_status("M", "open"))
        async with connected(server) as client:
            await client.subscribe("market:M", since={"M": before})
            message = await client.data()
            assert (message["status"], message["sequence"]) == ("open", 1)


async def test_a_snapshot_that_would_be_too_large_says_which_topics_have_no_room() -> None:
    """Ask for these with another request."""
    async with running_server() as server, connected(server) as client:
        codes = [f"S{number}" for number in range(6)]
        await client.subscribe(*[f"stock:{code}" for code in codes])
        for code in codes:
            publish(server, f"stock:{code}:price", price(code, 1, pad="x" * 200_000))
        answer = await snapshot(server, ",".join(f"stock:{code}" for code in codes))
        assert [len(answer[f"stock:{code}"].get("messages", [])) for code in codes] == [
            1,
            1,
            1,
            1,
            1,
            0,
        ]
        assert answer["stock:S5"]["error"]["code"] == "MESSAGE_TOO_LARGE"


async def test_a_history_is_what_followed_a_position() -> None:
    """In portions of `limit`, each of which has the position to go on from."""
    async with running_server() as server, connected(server) as client:
        answer = await client.subscribe("stock:A")
        epoch = answer["positions"]["A"]["epoch"]
        for number in range(1, 8):
            publish(server, "stock:A:price", price("A", number))
        sequence, received, more = 0, [], True
        while more:
            part = await history(server, "stock:A", epoch, sequence, "&limit=3")
            assert part["topic"] == "stock:A"
            assert part["recovered"] is True
            assert len(part["messages"]) <= 3
            received += [message["price"] for message in part["messages"]]
            assert part["position"]["epoch"] == epoch
            sequence, more = part["position"]["sequence"], part["more"]
        assert received == list(range(1, 8))
        assert (await history(server, "stock:A", epoch, 7))["messages"] == []


async def test_a_history_that_is_not_known_is_a_gap() -> None:
    """And the last known values, as a client that resumes there is sent."""
    async with running_server() as server, connected(server) as client:
        await client.subscribe("stock:A")
        publish(server, "stock:A:price", price("A", 5))
        answer = await history(server, "stock:A", "another", 0)
        assert (answer["recovered"], answer["more"]) == (False, False)
        gap, value = answer["messages"]
        assert (gap["type"], gap["sequence"]) == ("gap", 1)
        assert (value["price"], value["snapshot"]) == (5, True)
        assert answer["position"] == {"epoch": gap["epoch"], "sequence": 1}


async def test_a_gap_comes_with_the_values_after_it_whatever_the_limit() -> None:
    """Whoever went on from the gap alone would never be sent them."""
    async with running_server() as server, connected(server) as client:
        await client.subscribe("stock:A")
        publish(server, "stock:A:price", price("A", 5))
        publish(server, "stock:A:orderbook", orderbook("A", 6))
        answer = await history(server, "stock:A", "another", 0, "&limit=1")
        assert (answer["recovered"], answer["more"]) == (False, False)
        types = [message["type"] for message in answer["messages"]]
        assert types == ["gap", "price_update", "orderbook_update"]


async def test_a_long_history_comes_in_portions_of_bytes() -> None:
    """However large the messages are, the answer is bounded, and one after the other comes."""
    async with running_server(max_publication_bytes=300_000) as server, connected(server) as client:
        answer = await client.subscribe("stock:A")
        epoch = answer["positions"]["A"]["epoch"]
        for number in range(12):
            publish(server, "stock:A:price", price("A", number, pad="x" * 250_000))
        sequence, portions, more = 0, 0, True
        while more:
            part = await history(server, "stock:A", epoch, sequence)
            assert 1 <= len(part["messages"]) <= 6
            sequence, more = part["position"]["sequence"], part["more"]
            portions += 1
        assert (sequence, portions) == (12, 3)


async def test_what_redis_keeps_can_be_read(redis_url: str) -> None:
    """Last known values and the history of a topic that nobody has subscribed to."""
    async with open_publisher(redis_url) as publisher:
        receipts = [
            await publisher.publish("stock:A:price", price("A", number)) for number in range(3)
        ]
    async with running_server(redis=redis_url) as server:
        answer = (await snapshot(server, "stock:A"))["stock:A"]
        assert [message["price"] for message in answer["messages"]] == [2]
        epoch = answer["position"]["epoch"]
        assert receipts[-1].position == Position(**answer["position"])
        part = await history(server, "stock:A", epoch, 1)
        assert [message["price"] for message in part["messages"]] == [1, 2]


async def test_a_topic_that_redis_forbids_is_forbidden(
    redis: redis_py.Redis, redis_url: str
) -> None:
    """It is an error of that topic alone; of a history, and of a stream without another, 403."""
    redis.acl_setuser(
        "reader",
        enabled=True,
        passwords=["+secret"],
        categories=["+@all"],
        keys=["*"],
        reset_channels=True,  # Redis 6.2 allows a new user all channels.
        channels=["stock:A:*", "streamer*", "__*"],
    )
    try:
        url = redis_url.replace("redis://", "redis://reader:secret@")
        async with running_server(redis=url) as server:
            answer = await snapshot(server, "stock:A,stock:B")
            assert answer["stock:A"]["messages"] == []
            assert answer["stock:B"]["error"]["code"] == "FORBIDDEN"
            for path in ("history?topic=stock:B&epoch=e&sequence=0", "stream?topics=stock:B"):
                response = await fetched(server, f"/v1/{path}")
                assert (response.status, response.json["code"]) == (403, "FORBIDDEN")
    finally:
        redis.acl_deluser("reader")
