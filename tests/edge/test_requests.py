"""Missed messages are sent after `since` and after restoring a session, or announced as a gap."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import orjson
import pytest
import redis as redis_py
import trio
from trio.testing import MockClock
from wsproto.frame_protocol import Opcode

from streamer.broker.keys import history_key, position_key
from streamer.protocol.deltas import cut_book
from streamer.protocol.endpoint import WEBSOCKET_PATH
from streamer.publisher import Publisher, open_publisher
from streamer.server import Server
from tests.helpers.clients import Client, Message, connected, open_client, raw_client
from tests.helpers.events import streaming
from tests.helpers.publications import orderbook, price
from tests.helpers.server import first_session, publish, running_server
from tests.helpers.timing import eventually

AT_ONCE: dict[str, Any] = {"flush_interval_ms": 0}


def publish_prices(server: Server, *values: int, code: str = "A", **more: Any) -> None:
    """On the bus of the server."""
    for value in values:
        publish(server, f"stock:{code}:price", price(code, value, **more))


async def place(publisher: Publisher, *values: int, code: str = "A", **more: Any) -> None:
    """Through Redis, with positions."""
    await publisher.publish_many(
        [(f"stock:{code}:price", price(code, value, **more)) for value in values]
    )


async def prices(client: Client, count: int) -> list[int]:
    """The next live prices, with nothing between them and nothing merged."""
    messages = [await client.data() for _ in range(count)]
    for message in messages:
        assert message["type"] == "price_update", message
        assert not message.keys() & {"previous", "snapshot"}, message
    return [message["price"] for message in messages]


async def gap(client: Client, reason: str) -> Message:
    """The next message, which must be a gap for this reason."""
    message = await client.receive_type("gap")
    assert message["reason"] == reason
    return message


async def snapshot(client: Client) -> Message:
    """The next message, which must be a last known value."""
    message = await client.data()
    assert message["snapshot"] is True
    return message


@asynccontextmanager
async def returning(server: Server, session_id: str) -> AsyncIterator[tuple[Client, Message]]:
    """A client that reconnects with a session in its URL, and the answer to that."""
    path = f"{WEBSOCKET_PATH}?session_id={session_id}"
    async with open_client(server, path=path) as client:
        client.session_id = (await client.receive_type("connected"))["session_id"]
        yield client, await client.receive()


@asynccontextmanager
async def following(**settings: Any) -> AsyncIterator[tuple[Server, Client, Message]]:
    """A server, a client that has subscribed to stock:A, and the position where it began."""
    async with running_server(**AT_ONCE, **settings) as server, connected(server) as client:
        yield server, client, (await client.subscribe("stock:A"))["positions"]["A"]


@asynccontextmanager
async def two_servers(redis_url: str) -> AsyncIterator[tuple[Server, Server, Publisher]]:
    """Two servers and a publisher of one Redis."""
    async with (
        running_server(redis=redis_url, **AT_ONCE) as first,
        running_server(redis=redis_url, **AT_ONCE) as second,
        open_publisher(redis_url) as publisher,
    ):
        yield first, second, publisher


async def confirm(server: Server, mock_clock: MockClock) -> None:
    """Let the heartbeat pass: what clients have been sent so far is known to have arrived."""
    mock_clock.jump(server.settings.heartbeat_interval_seconds)
    subscriptions = [
        subscription
        for session in server._acceptor.sessions.values()
        for subscription in session.outbox.subscriptions.values()
    ]
    await eventually(lambda: all(s.confirmed == server.hub.position(s) for s in subscriptions))


def held(answer: Message) -> dict[str, list[str]]:
    """The subscriptions that were restored: type -> targets."""
    assert answer["type"] == "reconnected", answer
    restored: dict[str, list[str]] = answer["restored_subscriptions"]
    return restored


# since


async def test_what_was_missed_since_a_position_comes_in_order_and_then_the_live_flow(
    mock_clock: MockClock,
) -> None:
    """Without a snapshot, from the position that the answer repeats."""
    async with following() as (server, first, position):
        publish_prices(server, 1, 2, 3)
        assert await prices(first, 3) == [1, 2, 3]
        async with connected(server) as client:
            since = {"A": position | {"sequence": 1}, "unasked": position}
            answer = await client.subscribe("stock:A", "stock:B", since=since)
            assert answer["targets"] == ["A", "B"]
            assert answer["positions"]["A"] == since["A"]
            publish_prices(server, 4)
            assert await prices(client, 3) == [2, 3, 4]
        async with connected(server) as client:
            current = {"A": position | {"sequence": 4}}
            answer = await client.subscribe("stock:A", since=current)
            publish_prices(server, 5)
            assert await prices(client, 1) == [5]


async def test_kinds_that_are_not_asked_for_are_not_brought_either(mock_clock: MockClock) -> None:
    """And `previous` names what each follows."""
    async with following() as (server, _first, position):
        for number in (1, 3):
            publish(server, "stock:A:price", price("A", number))
            publish(server, "stock:A:orderbook", orderbook("A", number))
        async with connected(server) as client:
            await client.subscribe("stock:A", kinds=["price"], since={"A": position})
            publish_prices(server, 5)
            messages = [await client.data() for _ in range(3)]
            assert [(m["sequence"], m.get("previous")) for m in messages] == [
                (1, None),
                (3, 1),
                (5, 3),
            ]


@pytest.mark.parametrize(
    ("since", "reason"),
    [
        ({"sequence": 1}, "history_expired"),
        ({"sequence": 99}, "history_expired"),
        ({"epoch": "unheard-of", "sequence": 4}, "source_reconnected"),
    ],
    ids=["before the history", "ahead", "another epoch"],
)
async def test_a_position_that_nothing_is_known_to_follow_is_a_gap(
    since: dict[str, Any], reason: str, mock_clock: MockClock
) -> None:
    """The gap has the stream's position; the last known value follows, even if not requested."""
    async with following(history_length=2) as (server, _first, position):
        publish_prices(server, 1, 2, 3, 4)
        async with connected(server) as client:
            answer = await client.subscribe(
                "stock:A", since={"A": position | since}, snapshot=False
            )
            message = await gap(client, reason)
            here = {"epoch": position["epoch"], "sequence": 4}
            assert answer["positions"]["A"] == here
            assert message.items() >= here.items()
            assert (await snapshot(client))["price"] == 4
            publish_prices(server, 5)
            assert await prices(client, 1) == [5]


async def test_of_what_is_held_already_nothing_was_missed(mock_clock: MockClock) -> None:
    """The stream continues unchanged, and no message of it is repeated."""
    async with following() as (server, client, position):
        publish_prices(server, 1)
        assert await prices(client, 1) == [1]
        answer = await client.subscribe("stock:A", since={"A": position}, snapshot=False)
        assert answer["positions"]["A"]["sequence"] == 1
        publish_prices(server, 2)
        assert await prices(client, 1) == [2]


async def test_history_is_kept_for_its_time(mock_clock: MockClock) -> None:
    """And for no longer: what is older is a gap."""
    settings = {"history_seconds": 60, "heartbeat_interval_seconds": 1000}
    async with following(**settings) as (server, first, position):
        publish_prices(server, 1)
        assert await prices(first, 1) == [1]
        for _ in range(58):
            mock_clock.jump(1)
            await trio.testing.wait_all_tasks_blocked()
        async with connected(server) as client:
            await client.subscribe("stock:A", since={"A": position})
            assert await prices(client, 1) == [1]
        for _ in range(4):
            mock_clock.jump(1)
            await trio.testing.wait_all_tasks_blocked()
        async with connected(server) as client:
            await client.subscribe("stock:A", since={"A": position})
            await gap(client, "history_expired")


async def test_another_server_brings_what_was_missed_from_redis(redis_url: str) -> None:
    """The topic is new on that server; messages meanwhile are live, once and in order."""
    async with (
        two_servers(redis_url) as (first_server, second_server, publisher),
        connected(first_server) as first,
    ):
        await place(publisher, 1)
        position = (await first.subscribe("stock:A", snapshot=False))["positions"]["A"]
        assert position["sequence"] == 1
        await place(publisher, 2, 3)
        assert await prices(first, 2) == [2, 3]
        async with connected(second_server) as second:
            await second.subscribe("stock:A", since={"A": position})
            await place(publisher, 4)
            assert await prices(second, 3) == [2, 3, 4]
        # From memory by now, and from Redis again where memory does not reach so far back.
        for since, expected in ((3, [4]), (0, [1, 2, 3, 4])):
            async with connected(second_server) as second:
                await second.subscribe("stock:A", since={"A": position | {"sequence": since}})
                assert await prices(second, len(expected)) == expected


async def test_another_server_brings_books_that_were_published_as_changes(redis_url: str) -> None:
    """A change is sent as the whole book, also if the client has had the last whole one."""
    async with two_servers(redis_url) as (first_server, second_server, publisher):
        await publisher.publish("stock:A:orderbook", orderbook("A", 1))
        for bid in (2, 3, 4):
            change = {
                "type": "orderbook_delta",
                "stock_code": "A",
                "bids": [{"price": bid, "quantity": 1}],
                "asks": [],
            }
            await publisher.publish("stock:A:orderbook", change)
        async with connected(first_server) as first:
            position = (await first.subscribe("stock:A"))["positions"]["A"]
        for sequence in (0, 1, 3):
            for server in (first_server, second_server):
                async with connected(server) as client:
                    since = {"A": position | {"sequence": sequence}}
                    await client.subscribe("stock:A", since=since)
                    for number in range(sequence + 1, 5):
                        message = await client.data()
                        assert (message["type"], message["sequence"]) == (
                            "orderbook_update",
                            number,
                        )
                        bids = [level["price"] for level in message["bids"]]
                        assert bids == list(range(number, 0, -1))


async def test_a_book_that_was_read_for_a_client_goes_on(redis_url: str) -> None:
    """The server did not know it, and left out changes; after the read no change is missing."""
    async with two_servers(redis_url) as (first_server, second_server, publisher):
        await publisher.publish("stock:A:orderbook", orderbook("A", 1))

        async def change(bid: int) -> None:
            level = {"price": bid, "quantity": 1}
            await publisher.publish(
                "stock:A:orderbook",
                {"type": "orderbook_delta", "stock_code": "A", "bids": [level], "asks": []},
            )

        for bid in range(2, 52):
            await change(bid)
        async with connected(first_server) as first, connected(second_server) as second:
            position = (await first.subscribe("stock:A"))["positions"]["A"]
            await second.subscribe("stock:A")
            await change(52)
            assert (await second.receive_type("gap"))["reason"] == "book_unknown"
            async with connected(second_server) as client:
                await client.subscribe("stock:A", since={"A": position | {"sequence": 50}})
                for number in (51, 52):
                    assert (await client.data())["sequence"] == number
                await change(53)
                for subscriber in (client, second):
                    message = await subscriber.data()
                    assert message["sequence"] == 53
                    bids = [level["price"] for level in message["bids"]]
                    assert bids == list(range(53, 0, -1))


async def test_another_server_has_the_last_values_of_rare_kinds_too(redis_url: str) -> None:
    """An order book that many prices have followed is a snapshot on a server that is new to it."""
    async with two_servers(redis_url) as (first_server, second_server, publisher):
        await publisher.publish("stock:A:orderbook", orderbook("A", 1))
        await place(publisher, *range(2, 50))
        for server in (first_server, second_server):
            async with connected(server) as client:
                await client.subscribe("stock:A")
                snapshots = [await client.data(), await client.data()]
                assert [m["type"] for m in snapshots] == ["orderbook_update", "price_update"]
                assert [m["sequence"] for m in snapshots] == [1, 49]
                assert all(m["snapshot"] for m in snapshots)


async def test_an_epoch_is_known_on_another_server_by_the_name_that_clients_were_told(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """They came before the first publication, so that their server had to invent one."""
    async with (
        two_servers(redis_url) as (first_server, second_server, publisher),
        connected(first_server) as first,
    ):
        position = (await first.subscribe("stock:A"))["positions"]["A"]
        await place(publisher, 1, 2)
        assert await prices(first, 2) == [1, 2]
        name = f"was:{position['epoch']}"
        await eventually(lambda: redis.hexists(position_key("stock:A"), name))
        for server in (first_server, second_server):
            async with connected(server) as client:
                await client.subscribe("stock:A", since={"A": position | {"sequence": 1}})
                assert await prices(client, 1) == [2]


async def test_a_history_that_redis_has_trimmed_is_a_gap_on_another_server(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """No missed message is sent; the gap has the position, and the last known value follows."""
    async with (
        two_servers(redis_url) as (first_server, second_server, publisher),
        connected(first_server) as first,
        connected(second_server) as second,
    ):
        await place(publisher, 1)
        position = (await first.subscribe("stock:A", snapshot=False))["positions"]["A"]
        await place(publisher, 2, 3, 4)
        redis.xtrim(history_key("stock:A"), maxlen=2, approximate=False)
        await second.subscribe("stock:A", since={"A": position})
        assert (await gap(second, "history_expired"))["sequence"] == 4
        assert (await snapshot(second))["price"] == 4
        await place(publisher, 5)
        assert await prices(second, 1) == [5]


async def test_a_server_that_is_behind_the_client_catches_up_first(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Another server was faster: that is no hole, and nothing comes twice."""
    async with (
        running_server(redis=redis_url, **AT_ONCE) as server,
        open_publisher(redis_url) as publisher,
        connected(server) as first,
        connected(server) as second,
    ):
        await place(publisher, 1)
        position = (await first.subscribe("stock:A", snapshot=False))["positions"]["A"]
        # A publication that this server's connection to Redis has still to bring.
        key, epoch = history_key("stock:A"), position["epoch"]
        text = price("A", 2, epoch=epoch, sequence=2)
        redis.xadd(key, {"m": text, "t": 0, "k": "price"}, id="2-0")
        redis.hset(position_key("stock:A"), "sequence", 2)
        await second.subscribe("stock:A", since={"A": position | {"sequence": 2}})
        redis.publish("stock:A:price", text)
        await place(publisher, 3)
        assert await prices(second, 1) == [3]
        assert await prices(first, 2) == [2, 3]


# Restore


async def test_a_session_is_restored_with_its_options_from_what_was_confirmed(
    mock_clock: MockClock,
) -> None:
    """The last ping that was answered says what had arrived, without any help from the client."""
    async with running_server(**AT_ONCE) as server:
        async with connected(server) as client:
            await client.subscribe("stock:A", mode="all", kinds=["price"])
            await client.subscribe("market:KOSPI", max_rate=2)
            publish_prices(server, 1, 2)
            assert await prices(client, 2) == [1, 2]
            await confirm(server, mock_clock)
            publish_prices(server, 3)
            assert await prices(client, 1) == [3]
        publish(server, "stock:A:orderbook", orderbook("A", 4))
        publish_prices(server, 5)
        async with returning(server, client.session_id) as (again, answer):
            assert held(answer) == {"stock": ["A"], "market": ["KOSPI"]}
            assert answer["session_id"] == again.session_id != client.session_id
            assert answer["positions"]["stock:A"]["sequence"] == 2
            assert (answer["missed_messages_count"], answer["recovered"]) == (2, True)
            messages = [await again.data() for _ in range(2)]
            assert [(m["price"], m.get("previous")) for m in messages] == [(3, None), (5, 3)]
            publish_prices(server, 6)
            assert await prices(again, 1) == [6]
            (info,) = server.connections()
            assert info.outbox.replayed == 2


async def test_an_answer_that_was_lost_with_its_last_values_is_made_good(
    mock_clock: MockClock,
) -> None:
    """The client asked, and its connection ended: once restored, it has what it asked for."""
    async with running_server(**AT_ONCE) as server:
        publish_prices(server, 1)
        async with connected(server) as client:
            await client.send(type="subscribe", subscription_type="stock", targets=["A"])
            await eventually(lambda: server.statistics().subscriptions == 1)
        for _ in range(2):  # the second is cut as well
            async with returning(server, client.session_id) as (client, answer):
                assert (answer["missed_messages_count"], answer["recovered"]) == (0, True)
                last = await client.data()
                assert (last["price"], last["snapshot"]) == (1, True)
        async with returning(server, client.session_id) as (client, _):
            await client.data()
            (subscription,) = first_session(server).outbox.subscriptions.values()
            mock_clock.jump(server.settings.heartbeat_interval_seconds)
            await eventually(lambda: subscription.unconfirmed is None)
        async with returning(server, client.session_id) as (client, _):
            await client.ping_pong()


async def test_the_clients_own_positions_are_better_than_what_was_confirmed(
    mock_clock: MockClock,
) -> None:
    """That holds for the topics that it names, also on a connection used before."""
    async with running_server(**AT_ONCE) as server:
        async with connected(server) as client:
            position = (await client.subscribe("stock:A", "stock:B"))["positions"]["A"]
            publish_prices(server, 1, 2)
            publish_prices(server, 1, 2, code="B")
            await prices(client, 4)
        async with connected(server) as again:
            await again.subscribe("stock:C")
            answer = await again.request(
                type="reconnect",
                session_id=client.session_id,
                positions={"stock:A": position | {"sequence": 1}, "stock:Z": position},
            )
            assert held(answer) == {"stock": ["A", "B"]}
            assert (answer["missed_messages_count"], answer["recovered"]) == (3, True)
            messages = [await again.data() for _ in range(3)]
            assert [(m["stock_code"], m["price"]) for m in messages] == [
                ("A", 2),
                ("B", 1),
                ("B", 2),
            ]
            assert server.statistics().subscriptions == 3


async def test_last_values_do_not_come_again_to_a_client_that_names_its_position(
    mock_clock: MockClock,
) -> None:
    """It has what it was sent up to there; of the other topics that is not known."""
    async with running_server(**AT_ONCE) as server:
        publish_prices(server, 1)
        publish_prices(server, 1, code="B")
        async with connected(server) as client:
            position = (await client.subscribe("stock:A", "stock:B"))["positions"]["A"]
            assert {(await client.data())["snapshot"] for _ in range(2)} == {True}
        publish(server, "stock:A:orderbook", orderbook("A", 2))
        async with connected(server) as again:
            answer = await again.request(
                type="reconnect", session_id=client.session_id, positions={"stock:A": position}
            )
            assert (answer["missed_messages_count"], answer["recovered"]) == (1, True)
            messages = [await again.data() for _ in range(2)]
            assert [(m["stock_code"], m["type"], m.get("snapshot")) for m in messages] == [
                ("B", "price_update", True),
                ("A", "orderbook_update", None),
            ]


async def test_a_session_can_be_taken_up_while_its_connection_still_lives(
    mock_clock: MockClock,
) -> None:
    """The server learns last that a client has moved on; both are served until then."""
    async with running_server(**AT_ONCE) as server, connected(server) as client:
        await client.subscribe("stock:A")
        publish_prices(server, 1)
        await prices(client, 1)
        async with returning(server, client.session_id) as (again, answer):
            assert (answer["missed_messages_count"], answer["recovered"]) == (1, True)
            publish_prices(server, 2)
            assert await prices(again, 2) == [1, 2]
            assert await prices(client, 1) == [2]


async def test_a_session_that_is_not_known_is_an_error_and_the_connection_goes_on(
    mock_clock: MockClock,
) -> None:
    """One's own, too: it is no earlier one. And an id so long that nobody was given it."""
    async with (
        running_server(**AT_ONCE) as server,
        returning(server, "unheard-of") as (client, refusal),
    ):
        assert (refusal["type"], refusal["code"]) == ("error", "SESSION_RESTORATION_FAILED")
        await client.subscribe("stock:A")
        for session_id in ("unheard-of", client.session_id, "x" * 65):
            answer = await client.request(type="reconnect", session_id=session_id, positions={})
            assert answer["code"] == "SESSION_RESTORATION_FAILED"
        publish_prices(server, 1)
        assert await prices(client, 1) == [1]


async def test_a_session_is_kept_for_its_lifetime(mock_clock: MockClock) -> None:
    """From the end of its connection, however often it is restored meanwhile."""
    async with running_server(history_seconds=10_000, **AT_ONCE) as server:
        async with connected(server) as client:
            await client.subscribe("stock:A")
        await eventually(lambda: server.active_connections == 0)
        mock_clock.jump(299.9)
        async with returning(server, client.session_id) as (_, answer):
            assert held(answer) == {"stock": ["A"]}
        mock_clock.jump(0.1)
        async with returning(server, client.session_id) as (_, answer):
            assert answer["code"] == "SESSION_RESTORATION_FAILED"


async def test_recovered_is_true_only_if_every_missed_message_follows(
    mock_clock: MockClock,
) -> None:
    """One topic of which too much was missed: a gap for that one, and all of the others."""
    async with running_server(history_length=2, **AT_ONCE) as server:
        async with connected(server) as client:
            await client.subscribe("stock:A", "stock:B", "stock:C")
        publish_prices(server, 1, 2, code="A")
        publish_prices(server, 1, 2, 3, code="B")
        async with returning(server, client.session_id) as (again, answer):
            assert held(answer) == {"stock": ["A", "B", "C"]}
            assert (answer["missed_messages_count"], answer["recovered"]) == (2, False)
            assert answer["positions"]["stock:B"]["sequence"] == 3
            assert await prices(again, 2) == [1, 2]
            message = await gap(again, "history_expired")
            assert (message["target"], message["sequence"]) == ("B", 3)
            assert (await snapshot(again))["price"] == 3
            publish_prices(server, 4, code="B")
            assert await prices(again, 1) == [4]


async def test_more_than_the_connection_has_room_for_is_left_out(mock_clock: MockClock) -> None:
    """Topics that the connection holds already take no more room."""
    async with running_server(max_subscriptions=2, **AT_ONCE) as server:
        async with connected(server) as client:
            await client.subscribe("stock:A", "stock:B")
        async with connected(server) as again:
            await again.subscribe("stock:B")
            answer = await again.request(
                type="reconnect", session_id=client.session_id, positions={}
            )
            assert held(answer) == {"stock": ["A", "B"]}
        async with connected(server) as again:
            await again.subscribe("stock:Z")
            answer = await again.request(
                type="reconnect", session_id=client.session_id, positions={}
            )
            assert held(answer) == {"stock": ["A"]}


async def test_another_server_restores_a_session_from_redis(
    redis_url: str, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first server still has the client's connection, and after that has ended."""
    monkeypatch.setattr("streamer.edge.sessions._SETTLE_SECONDS", 0.0)
    async with (
        open_publisher(redis_url) as publisher,
        running_server(redis=redis_url, **AT_ONCE) as other,
    ):
        await place(publisher, 1)
        async with (
            running_server(redis=redis_url, **AT_ONCE) as server,
            connected(server) as client,
        ):
            await client.subscribe("stock:A", snapshot=False)
            await place(publisher, 2)
            assert await prices(client, 1) == [2]
            await confirm(server, mock_clock)
            await server._sessions.save()
            await place(publisher, 3)
            async with returning(other, client.session_id) as (again, answer):
                assert held(answer) == {"stock": ["A"]}
                assert (answer["missed_messages_count"], answer["recovered"]) == (1, True)
                assert await prices(again, 1) == [3]
        await place(publisher, 4)
        async with returning(other, client.session_id) as (again, answer):
            assert (answer["missed_messages_count"], answer["recovered"]) == (2, True)
            await place(publisher, 5)
            assert await prices(again, 3) == [3, 4, 5]


async def test_what_nobody_places_cannot_be_recovered_on_another_server(
    redis_url: str,
    redis: redis_py.Redis,
    mock_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each server numbers for itself what it hears: a gap, even if nothing was missed."""
    monkeypatch.setattr("streamer.edge.sessions._SETTLE_SECONDS", 0.0)
    async with (
        running_server(redis=redis_url, **AT_ONCE) as server,
        running_server(redis=redis_url, **AT_ONCE) as other,
        connected(server) as client,
    ):
        await client.subscribe("stock:A")
        redis.publish("stock:A:price", price("A", 1))
        assert await prices(client, 1) == [1]
        await server._sessions.save()
        async with returning(other, client.session_id) as (again, answer):
            assert held(answer) == {"stock": ["A"]}
            assert (answer["missed_messages_count"], answer["recovered"]) == (0, False)
            await gap(again, "source_reconnected")
            redis.publish("stock:A:price", price("A", 2))
            assert await prices(again, 1) == [2]


async def test_more_than_may_be_left_unread_comes_in_portions(mock_clock: MockClock) -> None:
    """Each topic is complete and in order, and live after that."""
    settings = AT_ONCE | {"max_unread_replies_bytes": 1000}
    async with running_server(**settings) as server:
        codes = ["A", "B", "C", "D"]
        async with connected(server) as client:
            await client.subscribe(*[f"stock:{code}" for code in codes])
        for code in codes:
            publish_prices(server, *range(1, 11), code=code)
        async with returning(server, client.session_id) as (again, answer):
            assert set(held(answer)["stock"]) == set(codes)
            assert [at["sequence"] for at in answer["positions"].values()] == [0] * 4
            assert (answer["missed_messages_count"], answer["recovered"]) == (40, True)
            for code in codes:
                for number in range(1, 11):
                    message = await again.data()
                    assert (message["stock_code"], message["price"]) == (code, number)
            for code in codes:
                publish_prices(server, 11, code=code)
                assert await prices(again, 1) == [11]


@pytest.mark.parametrize("positioned", [True, False])
async def test_a_client_that_reads_slowly_is_sent_all_that_it_was_promised(
    positioned: bool, redis_url: str, redis: redis_py.Redis, mock_clock: MockClock
) -> None:
    """Though the others leave, time passes, and more is published meanwhile."""
    codes = ["A", "B", "C", "D"]
    pad = "x" * 4000
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        publisher = await enter(open_publisher(redis_url, positioned=positioned))
        server = await enter(running_server(redis=redis_url, **AT_ONCE))
        client = await enter(connected(server))
        positions: dict[str, Any] = {}
        for code in codes:
            await place(publisher, 1, code=code)
            answer = await client.subscribe(f"stock:{code}", mode="all", snapshot=False)
            positions |= answer["positions"]
            await place(publisher, *range(2, 102), code=code, pad=pad)
            assert len(await prices(client, 100)) == 100
        raw = await enter(raw_client(server, receive_buffer_bytes=4096))
        await raw.send(type="subscribe", subscription_type="stock", targets=codes, since=positions)
        await eventually(lambda: any(info.outbox.blocked for info in server.connections()))
        await client.unsubscribe("stock:C", "stock:D")
        for _ in range(7):
            mock_clock.jump(1)
            await trio.testing.wait_all_tasks_blocked()
        received: list[Message] = []
        async with aclosing(raw.frames()) as frames:
            async for opcode, message in frames:
                assert opcode is Opcode.TEXT
                received += message.get("messages", [message])
                if _ends(received[-1]):
                    break
        assert [m["type"] for m in received[:2]] == ["connected", "subscribed"]
        expected = [(code, number) for code in codes for number in range(2, 102)]
        assert [(m["stock_code"], m["price"]) for m in received[2:]] == expected


def _ends(message: Message) -> bool:
    last = (message.get("stock_code"), message.get("price"))
    return message.get("target") == "D" or last == ("D", 101)


async def test_a_request_that_is_refused_changes_no_option_of_the_connection() -> None:
    """Its depth is too large, so its bandwidth does not count either."""
    async with running_server(max_book_levels=10) as server, connected(server) as client:
        error = await client.subscribe("stock:A", depth=11, max_bandwidth=5000)
        assert error["code"] == "INVALID_MESSAGE"
        assert (await client.request(type="options"))["max_bandwidth"] == 0


class Turns(trio.abc.Instrument):
    """The number of the present turn of the loop."""

    def __init__(self) -> None:
        self.number = 0

    def after_io_wait(self, timeout: float) -> None:
        """Begin a turn."""
        del timeout
        self.number += 1


def big_book(code: str, *, best_price: int = 0) -> bytes:
    """An order book of some 40 KB."""
    prices = [best_price, *range(1, 1000)]
    asks = [{"price": price, "quantity": 1, "orders": 1} for price in prices]
    book = {"type": "orderbook_update", "stock_code": code, "bids": [], "asks": asks}
    return orjson.dumps(book | {"timestamp": "2026-01-02T03:04:05.678Z"})


@pytest.mark.parametrize("over_http", [False, True])
async def test_many_books_are_cut_in_turns_between_which_others_are_served(
    monkeypatch: pytest.MonkeyPatch, over_http: bool
) -> None:
    """In front of all that is published meanwhile; pings are answered, and streams not broken."""
    codes = [f"A{number}" for number in range(20)]
    topics = [f"stock:{code}" for code in codes]
    turns = Turns()
    cuts: list[int] = []

    def counted(text: bytes, depth: int) -> bytes:
        cuts.append(turns.number)
        if len(cuts) == 10:
            publish(server, "stock:A0:price", price("A0", 7))
        return cut_book(text, depth)

    monkeypatch.setattr("streamer.hub.renditions.cut_book", counted)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        server = await enter(running_server(**AT_ONCE))
        other = await enter(connected(server))
        await other.subscribe(*topics)
        for code in codes:
            publish(server, f"stock:{code}:orderbook", big_book(code))
            await other.data()
        trio.lowlevel.add_instrument(turns)
        client: Any
        if over_http:
            client = await enter(streaming(server, ",".join(topics), query="&depth=2"))
            await client.message_type("subscribed")
            received = [await client.message() for _ in range(len(codes) + 1)]
        else:
            client = await enter(connected(server))
            await client.subscribe(*topics, depth=2)
            received = [await client.data() for _ in range(len(codes) + 1)]
        assert sorted(message["stock_code"] for message in received[:-1]) == sorted(codes)
        assert all(len(message["asks"]) == 2 for message in received[:-1])
        assert received[-1]["price"] == 7
        assert len(cuts) == len(codes)
        assert max(Counter(cuts).values()) < 6
        if not over_http:
            await client.subscribe(*topics, depth=3, delta=True, kinds=["orderbook"])
            for code in codes:
                await client.data()
                publish(server, f"stock:{code}:orderbook", big_book(code, best_price=-1))
            for _ in codes:
                assert (await client.data())["type"] == "orderbook_delta"
            cuts.clear()
            await client.send(type="resync", subscription_type="stock", targets=codes, request_id=1)
            assert (await client.receive_type("resynced"))["targets"] == codes
            resynced = [await client.data() for _ in codes]
            assert {message["asks"][0]["price"] for message in resynced} == {-1}
            assert len(cuts) == len(codes)
            assert max(Counter(cuts).values()) < 6
