"""Identity at the edge: tokens on real connections, permissions, and the user's own topic."""

from __future__ import annotations

import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import structlog
from trio.testing import MockClock
from trio_websocket import ConnectionClosed
from wsproto.frame_protocol import Opcode

from streamer.protocol.topics import Topic
from tests.auth.tokens import secret_file
from tests.helpers.clients import Client, connected, open_client, raw_client
from tests.helpers.identities import bearer, identifying_server, token, user
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually

ALERT = b'{"alert_id":1,"stock_code":"A","alert_type":"above","message":"m"}'


def codes(answer: dict[str, Any]) -> dict[str, str]:
    """The rejected targets of an answer, each with its code."""
    return {rejected["target"]: rejected["code"] for rejected in answer["rejected"]}


@pytest.mark.parametrize("place", ["header", "subprotocol", "cookie", "query"])
async def test_a_token_is_taken_from_each_place_of_the_handshake(
    tmp_path: Path, place: str
) -> None:
    """The greeting names the user, the end of the token, and the position of the own topic."""
    text = token()
    header, path = {
        "header": (f"Authorization: Bearer {text}", "/v1/ws"),
        "subprotocol": (f"Sec-WebSocket-Protocol: streamer.v1, bearer.{text}", "/v1/ws"),
        "cookie": (f"Cookie: a=b; session={text}", "/v1/ws"),
        "query": ("X: y", f"/v1/ws?token={text}"),
    }[place]
    async with (
        identifying_server(
            tmp_path, auth_cookie="session", allowed_origins=("https://a.example",)
        ) as server,
        raw_client(server, opened=False) as client,
    ):
        await client.open(path, f"{header}\r\n".encode())
        await client.response()
        async with aclosing(client.frames()) as frames:
            _, greeting = await anext(frames)
        assert greeting["type"] == "connected"
        assert greeting["user_id"] == "ann"
        assert 3500 < greeting["expires_in"] <= 3600
        (topic,) = greeting["positions"]
        assert topic == "user:ann"


async def test_a_client_without_a_token_is_anonymous(tmp_path: Path) -> None:
    """Where tokens are optional: public topics, and no watchlist."""
    async with identifying_server(tmp_path) as server, open_client(server) as client:
        greeting = await client.receive_type("connected")
        assert greeting.keys().isdisjoint({"user_id", "expires_in", "positions"})
        assert (await client.subscribe("stock:A"))["targets"] == ["A"]
        for topic in ("watchlist:ann", "user:ann"):
            answer = await client.subscribe(topic)
            assert codes(answer) == {"ann": "FORBIDDEN"}


async def test_without_keys_a_token_is_ignored() -> None:
    """Everything is as it was before there were identities."""
    async with (
        running_server() as server,
        open_client(server, headers=bearer(), path="/v1/ws?token=x") as client,
    ):
        greeting = await client.receive_type("connected")
        assert "user_id" not in greeting
        assert (await client.subscribe("watchlist:bob"))["targets"] == ["bob"]
        answer = await client.request(type="authenticate", token=token())
        assert answer["code"] == "INVALID_TOKEN"


@pytest.mark.parametrize(
    ("headers", "code", "close"),
    [
        ([(b"Authorization", b"Bearer no token")], "INVALID_TOKEN", 4500),
        (bearer(exp=int(time.time()) - 3600), "TOKEN_EXPIRED", 4001),
    ],
)
async def test_a_bad_token_of_a_handshake_closes_the_connection(
    tmp_path: Path, headers: list[tuple[bytes, bytes]], code: str, close: int
) -> None:
    """After an error that says why, in place of the greeting; the place is free again."""
    with structlog.testing.capture_logs() as logs:
        async with identifying_server(tmp_path, max_connections_per_address=1) as server:
            for _ in range(3):
                async with open_client(server, headers=headers) as client:
                    error = await client.receive_type("error")
                    assert error["code"] == code
                    assert await client.closed() == close
            refused = server.statistics().rate_limiting.connections_refused
            assert refused["token"] == 3
    assert headers[0][1].removeprefix(b"Bearer ").decode() not in str(logs)


async def test_a_token_is_presented_by_message(tmp_path: Path) -> None:
    """An anonymous client becomes a user; its subscriptions continue, and more are permitted."""
    async with identifying_server(tmp_path) as server, connected(server) as client:
        await client.subscribe("stock:A")
        answer = await client.request(type="authenticate", token=token())
        assert (answer["type"], answer["user_id"]) == ("authenticated", "ann")
        assert list(answer["positions"]) == ["user:ann"]
        assert (await client.subscribe("watchlist:ann", "watchlist:ann/2"))["rejected"] == []
        publish(server, "stock:A:price", price("A", 1))
        publish(server, "alerts:ann", ALERT)
        received = {(await client.data())["type"] for _ in range(2)}
        assert received == {"price_update", "alert"}
        (info,) = server.connections()
        assert info.user_id == "ann"
        assert "user:ann" in info.subscriptions


async def test_a_bad_token_by_message_changes_nothing(tmp_path: Path) -> None:
    """It is an error, and so is the token of another user."""
    async with identifying_server(tmp_path) as server, user(server) as client:
        for bad, code in (
            ("x", "INVALID_TOKEN"),
            (token(exp=int(time.time()) - 3600), "TOKEN_EXPIRED"),
            (token("bob"), "FORBIDDEN"),
        ):
            error = await client.request(type="authenticate", token=bad)
            assert error["code"] == code
            assert bad not in str(error)
        assert codes(await client.subscribe("watchlist:bob")) == {"bob": "FORBIDDEN"}
        assert (await client.subscribe("watchlist:ann"))["targets"] == ["ann"]


@pytest.mark.parametrize("request_type", ["authenticate", "refresh_token"])
async def test_a_user_with_no_place_left_is_not_admitted_by_message(
    tmp_path: Path, request_type: str
) -> None:
    """The connection is closed, without an answer: it is never the user's."""
    message = {"type": request_type, "token": token()}
    if request_type == "refresh_token":
        message = {"type": request_type, "refresh_token": token(token_use="refresh")}
    signing = {"auth_signing_key_file": secret_file(tmp_path)}
    async with (
        identifying_server(tmp_path, max_connections_per_user=1, **signing) as server,
        user(server) as first,
        connected(server) as second,
    ):
        await first.ping_pong()  # alive, so that it does not give way
        await second.send(**message)
        with pytest.raises(ConnectionClosed) as closed:
            await second.receive()  # no answer comes before the close
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1013
        await first.ping_pong()


async def test_what_a_new_token_does_not_permit_ends(tmp_path: Path) -> None:
    """Nothing of it comes after `unsubscribed`: not from the replay, the backlog or the rate queue.

    The other topics continue without a hole.
    """
    paid = ["watchlist:paid/*", "watchlist:gold"]
    async with identifying_server(tmp_path) as server, user(server, topics=paid) as client:
        await client.subscribe("watchlist:paid/1", "watchlist:paid/2", max_rate=0.001)
        await client.subscribe("watchlist:gold")
        await client.subscribe("stock:A")
        for number in range(3):
            for channel in ("watchlist:paid/1", "watchlist:paid/2", "watchlist:gold", "stock:A"):
                publish(server, f"{channel}:price", price("A", number))
        answer = None
        await client.send(type="authenticate", token=token(), request_id="a")
        ended: dict[str, list[str]] = {}
        while len(ended) < 1:
            message = await client.receive()
            if message["type"] == "authenticated":
                answer = message
            elif message["type"] == "unsubscribed":
                assert "request_id" not in message
                assert message["reason"] == "forbidden"
                ended[message["subscription_type"]] = sorted(message["targets"])
        assert answer is not None
        assert ended == {"watchlist": ["gold", "paid/1", "paid/2"]}
        for channel in ("watchlist:paid/1", "watchlist:gold", "stock:A"):
            publish(server, f"{channel}:price", price("A", 9))
        message = {"price": None}
        while message["price"] != 9:
            message = await client.data()
            assert message["type"] == "price_update"
            assert "target" not in message
        await client.ping_pong()
        assert codes(await client.subscribe("watchlist:gold")) == {"gold": "FORBIDDEN"}


@pytest.mark.parametrize("options", [{}, {"mode": "all"}, {"delta": True}], ids=str)
async def test_a_replay_ends_with_the_permission(tmp_path: Path, options: dict[str, Any]) -> None:
    """A client in the midst of missed messages receives none of them after `unsubscribed`."""
    async with (
        identifying_server(tmp_path, max_replay_bytes=1 << 24) as server,
        user(server, "bob", topics=["watchlist:gold"]) as holder,
        raw_client(server, opened=False, receive_buffer_bytes=4096) as client,
    ):
        position = (await holder.subscribe("watchlist:gold"))["positions"]["gold"]
        for number in range(4000):
            publish(server, "watchlist:gold:price", price("A", number))
        ((name, value),) = bearer("ann", topics=["watchlist:gold"])
        await client.open(headers=b"%b: %b\r\n" % (name, value))
        await client.response()
        await client.send(
            type="subscribe",
            subscription_type="watchlist",
            targets=["gold"],
            since={"gold": position},
            **options,
        )
        await eventually(lambda: any(one.outbox.blocked for one in server.connections()))
        await client.send(type="authenticate", token=token("ann"))
        await client.send(type="ping", request_id="last")
        await eventually(
            lambda: [one for one in server.connections() if one.subscriptions == ["user:ann"]]
        )
        publish(server, "watchlist:gold:price", price("A", 4000))
        types: list[str] = []
        async with aclosing(client.frames()) as frames:
            async for opcode, message in frames:
                if opcode is not Opcode.TEXT:
                    continue
                types.append(message["type"])
                if message.get("request_id") == "last":
                    break
    ended = types.index("unsubscribed")
    assert "batch" in types[:ended]
    assert types[ended + 1 :] == ["pong"]


async def test_where_a_token_is_required_nothing_goes_without(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    """Public topics are FORBIDDEN, and after 10 s the connection is closed with 4001."""
    async with (
        identifying_server(tmp_path, auth="required") as server,
        connected(server) as client,
        connected(server) as late,
    ):
        assert codes(await client.subscribe("stock:A")) == {"A": "FORBIDDEN"}
        mock_clock.jump(9)
        answer = await late.request(type="authenticate", token=token())
        assert answer["type"] == "authenticated"
        mock_clock.jump(1.5)
        error = await client.receive_type("error")
        assert error["code"] == "INVALID_TOKEN"
        assert await client.closed() == 4001
        assert (await late.subscribe("stock:A"))["targets"] == ["A"]


async def test_a_token_that_ends_is_announced_and_then_closes(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    """A client that presents a new one after the notice stays."""
    async with (
        identifying_server(tmp_path, heartbeat_interval_seconds=10_000) as server,
        user(server, "ann") as idle,
        user(server, "bob") as awake,
    ):
        mock_clock.jump(3599)
        for client in (idle, awake):
            notice = await client.receive_type("token_expiring")
            assert 0 < notice["expires_in"] < 2
        answer = await awake.request(
            type="authenticate", token=token("bob", exp=int(time.time()) + 7200)
        )
        assert answer["type"] == "authenticated"
        mock_clock.jump(27)
        error = await idle.receive_type("error")
        assert error["code"] == "TOKEN_EXPIRED"
        assert await idle.closed() == 4001
        await awake.ping_pong()


async def test_the_own_topic_is_held_and_counts_against_nothing(tmp_path: Path) -> None:
    """It is not unsubscribed from; subscribing to it again changes nothing."""
    async with (
        identifying_server(tmp_path, max_subscriptions=1) as server,
        user(server) as client,
    ):
        assert (await client.subscribe("stock:A"))["targets"] == ["A"]
        assert codes(await client.subscribe("stock:B")) == {"B": "SUBSCRIPTION_LIMIT_EXCEEDED"}
        answer = await client.unsubscribe("user:ann")
        assert answer["targets"] == []
        assert codes(answer) == {"ann": "FORBIDDEN"}
        assert (await client.subscribe("user:ann"))["targets"] == ["ann"]
        publish(server, "alerts:ann", ALERT)
        assert (await client.data())["type"] == "alert"
        await client.ping_pong()


async def test_users_with_the_same_topics_share_one_group(tmp_path: Path) -> None:
    """A price to them is one frame, although each has a topic of its own beside it."""
    async with identifying_server(tmp_path) as server:
        async with user(server, "ann") as ann, user(server, "bob") as bob:
            for client in (ann, bob):
                await client.subscribe("stock:A")
            assert server.hub.statistics().groups == 1
            publish(server, "alerts:ann", ALERT)
            publish(server, "stock:A:price", price("A", 1))
            assert {(await ann.data())["type"] for _ in range(2)} == {"alert", "price_update"}
            assert (await bob.data())["type"] == "price_update"
            await bob.ping_pong()
            assert server.hub.statistics().groups == 1
        await eventually(lambda: not server.hub.streams[Topic.parse("user:ann")].subscriptions)


async def test_a_position_that_is_named_is_continued_from(tmp_path: Path) -> None:
    """All after it is sent again: a client names it only after the greeting."""

    async def restored(client: Client, position: dict[str, Any]) -> dict[str, Any]:
        return await client.subscribe("user:ann", since={"ann": position})

    async with identifying_server(tmp_path) as server, user(server) as keeper:
        async with user(server) as client:
            answer = await client.subscribe("user:ann")
            start = answer["positions"]["ann"]
            for _ in range(3):
                publish(server, "alerts:ann", ALERT)
            assert [(await client.data())["sequence"] for _ in range(3)] == [1, 2, 3]
        async with user(server) as client:
            publish(server, "alerts:ann", ALERT)
            assert (await client.data())["sequence"] == 4
            answer = await restored(client, start | {"sequence": 2})
            assert answer["positions"]["ann"]["sequence"] == 2
            assert [(await client.data())["sequence"] for _ in range(2)] == [3, 4]
            publish(server, "alerts:ann", ALERT)
            assert (await client.data())["sequence"] == 5
            await client.ping_pong()
        assert [(await keeper.data())["sequence"] for _ in range(5)] == [1, 2, 3, 4, 5]
