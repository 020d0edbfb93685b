"""Messages to a user: a topic with positions, for that user only."""

from __future__ import annotations

from typing import Final

import pytest
import redis as redis_py

from streamer.auth.permissions import Decision, Permissions
from streamer.broker.keys import session_key
from streamer.client import Alert, Data, Notification, Topic, open_client
from streamer.hub.sessions import HeldSubscription, SessionRecord
from streamer.protocol import messages
from streamer.protocol.messages import DataMessage, Mode, Position, Priority
from streamer.publisher import open_publisher
from tests.helpers.clients import Client, connected
from tests.helpers.server import running_server
from tests.helpers.session_records import encoded

USER: Final = Topic.parse("user:auth0|5f7c")
ALERTS: Final = f"alerts:{USER.target}"
NOTIFICATIONS: Final = f"notifications:{USER.target}"


@pytest.fixture
def identified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients have every topic, as one that has proved who it is will have its own."""
    allowed = Decision(is_allowed=True, rule="a test")
    monkeypatch.setattr(Permissions, "decide", lambda *_: allowed)


def alert(number: int) -> tuple[str, DataMessage]:
    """An alert to the user, and its channel."""
    return ALERTS, messages.Alert(number, "005930", "above", "up")


def notification(number: int) -> tuple[str, DataMessage]:
    """A notification to the user, and its channel."""
    return NOTIFICATIONS, messages.Notification(number, "t", "m", "news", Priority.LOW)


def numbers(received: list[Data]) -> list[int | str]:
    """The ids, by which the messages are recognised."""
    ids: list[int | str] = []
    for message in received:
        assert isinstance(message, Alert | Notification)
        assert message.topic == USER
        ids.append(message.alert_id if isinstance(message, Alert) else message.notification_id)
    return ids


async def receive(client: Client, count: int) -> list[tuple[int, int | str, bool]]:
    """Sequence, id and whether it is a snapshot, of the next data messages."""
    received = [await client.data() for _ in range(count)]
    for message in received:
        assert (message["subscription_type"], message["target"]) == ("user", USER.target)
    return [
        (
            message["sequence"],
            message["alert_id" if message["type"] == "alert" else "notification_id"],
            message.get("snapshot", False),
        )
        for message in received
    ]


@pytest.mark.usefixtures("identified")
async def test_messages_to_a_user_arrive_in_order_and_are_proven(any_redis_url: str) -> None:
    """Alerts and notifications are one stream, which the client library checks like any other."""
    async with (
        running_server(redis=any_redis_url) as server,
        open_publisher(any_redis_url) as publisher,
        open_client(server.websocket_url) as client,
    ):
        # A stock of this test alone: the servers are shared, and may have last values of others.
        await client.subscribe([USER, "stock:quiet-beside-alerts"])
        await publisher.publish_many([alert(1), notification(2), alert(3), notification(4)])
        received = [await client.receive() for _ in range(4)]
        assert numbers([m for m in received if isinstance(m, Data)]) == [1, 2, 3, 4]
        assert client.account().violations == 0
        position = client.position(USER)
        assert position is not None
        assert position.sequence == received[-1].sequence  # type: ignore[union-attr]


@pytest.mark.usefixtures("identified")
async def test_what_came_while_the_user_was_away_is_replayed_once(redis_url: str) -> None:
    """On any server that reads the same Redis, from the position that the client holds."""
    async with (
        running_server(redis=redis_url) as server,
        running_server(redis=redis_url) as other_server,
        open_publisher(redis_url) as publisher,
    ):
        async with connected(server) as client:
            await client.subscribe(str(USER))
            await publisher.publish(*alert(1))
            assert await receive(client, 1) == [(1, 1, False)]
            position = {"epoch": server.hub.stream(USER).epoch, "sequence": 1}
        await publisher.publish_many([notification(2), alert(3)])
        async with connected(other_server) as client:
            answer = await client.subscribe(str(USER), since={USER.target: position})
            assert answer["positions"] == {USER.target: position}
            assert await receive(client, 2) == [(2, 2, False), (3, 3, False)]
            await client.ping_pong()
            await publisher.publish(*alert(4))
            assert await receive(client, 1) == [(4, 4, False)]


@pytest.mark.usefixtures("identified")
@pytest.mark.parametrize("published", [True, False])
async def test_an_event_is_no_last_known_value(redis_url: str, published: bool) -> None:
    """Neither on a first subscription nor on the next is an alert of the past shown as snapshot.

    Where the alerts came in through this server, and where it knows them from the history.
    """
    async with open_publisher(redis_url) as publisher:
        if not published:
            await publisher.publish_many([alert(1), notification(2)])
        async with running_server(redis=redis_url) as server, connected(server) as client:
            if published:
                await client.subscribe(str(USER))
                await publisher.publish_many([alert(1), notification(2)])
                await receive(client, 2)
            answer = await client.subscribe(str(USER))
            assert answer["positions"][USER.target]["sequence"] == 2
            async with connected(server) as second:
                await second.subscribe(str(USER))
                await second.ping_pong()
            await client.ping_pong()
            await publisher.publish(*alert(3))
            assert await receive(client, 1) == [(3, 3, False)]


@pytest.mark.usefixtures("identified")
async def test_after_a_gap_no_event_is_shown_again(redis_url: str, redis: redis_py.Redis) -> None:
    """The gap says that alerts may be missing; the one before it is not sent as its snapshot."""
    async with (
        running_server(redis=redis_url) as server,
        open_publisher(redis_url, history_length=1) as publisher,
        connected(server) as client,
    ):
        await client.subscribe(str(USER))
        redis.publish(ALERTS, b'{"alert_id":1,"stock_code":"A","alert_type":"a","message":"m"}')
        assert await receive(client, 1) == [(1, 1, False)]
        await publisher.publish(*alert(2))
        gap = await client.receive_type("gap")
        assert (gap["subscription_type"], gap["target"]) == ("user", USER.target)
        assert await receive(client, 1) == [(1, 2, False)]


async def test_nobody_may_have_it_while_nobody_is_identified(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Nor what was missed of it; the other targets of a request do not suffer."""
    async with (
        running_server(redis=redis_url) as server,
        open_publisher(redis_url) as publisher,
        connected(server) as client,
    ):
        receipt = await publisher.publish(*alert(1))
        assert receipt.position is not None
        for options in (
            {},
            {"since": {USER.target: {"epoch": receipt.position.epoch, "sequence": 0}}},
        ):
            answer = await client.subscribe(str(USER), "user:*", **options)
            assert (answer["targets"], answer["positions"]) == ([], {})
            assert {r["target"]: r["code"] for r in answer["rejected"]} == {
                USER.target: "FORBIDDEN",
                "*": "INVALID_TARGET",
            }
        await publisher.publish(*alert(2))
        await client.ping_pong()
        assert USER not in server.hub.streams
        assert redis.pubsub_numsub(ALERTS) == [(ALERTS.encode(), 0)]


async def test_a_session_record_brings_nobody_what_is_a_users(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """One that names such a topic is restored without it."""
    record = SessionRecord(
        "s1",
        [
            HeldSubscription(topic, Mode.LATEST, topic.kind_set, 0.0, Position("e", 0))
            for topic in (USER, Topic.parse("stock:A"))
        ],
    )
    redis.set(session_key("s1"), encoded(record))
    async with running_server(redis=redis_url) as server, connected(server) as client:
        at = {"epoch": "e", "sequence": 0}
        answer = await client.request(
            type="reconnect", session_id="s1", positions={str(USER): at, "stock:A": at}
        )
        assert answer["restored_subscriptions"] == {"stock": ["A"]}
        assert USER not in server.hub.streams
