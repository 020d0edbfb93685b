"""Topics and sessions of another user are refused on every path, and refresh tokens are taken."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
import trio

from streamer.auth.signing import REFRESH, SigningKey
from streamer.broker.keys import session_key
from tests.auth.tokens import SECRET, secret_file
from tests.helpers.clients import Client, open_client
from tests.helpers.events import streaming
from tests.helpers.identities import bearer, identifying_server, user
from tests.helpers.publications import price
from tests.helpers.server import publish
from tests.helpers.timing import eventually

ALERT = b'{"alert_id":1,"stock_code":"A","alert_type":"above","message":"m"}'


async def answers(client: Client, session_id: str) -> list[dict[str, Any]]:
    """The answer to `reconnect`, and the next, without the id of the session that was named."""
    answer = await client.request(
        type="reconnect",
        session_id=session_id,
        positions={"user:ann": {"epoch": "e", "sequence": 0}},
    )
    pong = await client.request(type="ping")
    known = [json.loads(json.dumps(a).replace(session_id, "ID")) for a in (answer, pong)]
    for message in known:
        message.pop("timestamp", None)
    return known


async def test_the_session_of_another_user_is_answered_like_one_that_never_was(
    tmp_path: Path, redis_url: str, redis: redis_py.Redis
) -> None:
    """By `reconnect` and by the URL, on its own server and on another, alive and ended."""
    async with (
        identifying_server(tmp_path, redis=redis_url) as own_server,
        identifying_server(tmp_path, redis=redis_url) as other_server,
    ):
        async with user(own_server, "ann") as ann:
            session_id = ann.session_id
            await ann.subscribe("watchlist:ann")
            await ann.subscribe("stock:A")
            await eventually(lambda: redis.exists(session_key(session_id)))
            await check_answered_alike(own_server, other_server, session_id)
        await eventually(lambda: not own_server._acceptor.sessions)
        await check_answered_alike(own_server, other_server, session_id)
        async with user(other_server, "ann") as ann:
            answer = await ann.request(type="reconnect", session_id=session_id, positions={})
            assert answer["restored_subscriptions"]["stock"] == ["A"]


async def check_answered_alike(own_server: Any, other_server: Any, session_id: str) -> None:
    """Name the session, and one that does not exist, as another user and as nobody."""
    missing = "x" * len(session_id)
    for server in (own_server, other_server):
        for headers in (bearer("bob"), None):
            outcomes = []
            for named in (session_id, missing):
                async with open_client(server, headers=headers) as client:
                    await client.receive_type("connected")
                    by_message = await answers(client, named)
                path = f"/v1/ws?session_id={named}"
                async with open_client(server, headers=headers, path=path) as client:
                    greeting = await client.receive_type("connected")
                    assert greeting["session_id"] != named
                    error = await client.receive_type("error")
                    await client.ping_pong()
                by_url = (sorted(greeting), error["code"], error["message"])
                outcomes.append((by_message, by_url))
            assert outcomes[0] == outcomes[1]


async def test_topics_of_another_user_are_refused_with_a_position_too(tmp_path: Path) -> None:
    """Over WebSocket by `since`, and as an event stream that is resumed with the other's cursor."""
    async with identifying_server(tmp_path) as server, user(server, "bob") as bob:
        since = {
            topic: (await bob.subscribe(topic))["positions"]
            for topic in ("watchlist:bob", "user:bob")
        }
        headers = {name.decode(): value.decode() for name, value in bearer("bob")}
        async with streaming(server, "watchlist:bob,user:bob", headers=headers) as stream:
            for _ in range(2):
                await stream.message_type("subscribed")
            publish(server, "watchlist:bob:price", price("A", 1))
            publish(server, "alerts:bob", ALERT)
            received = [await stream.message()]
            if received[0]["type"] != "batch":
                received.append(await stream.message())
            cursor = stream.last_id
        assert cursor
        async with user(server, "ann") as ann:
            for topic, positions in since.items():
                answer = await ann.subscribe(topic, since=positions)
                assert answer["targets"] == []
                assert [r["code"] for r in answer["rejected"]] == ["FORBIDDEN"]
            await ann.ping_pong()
        headers = {name.decode(): value.decode() for name, value in bearer("ann")}
        topics = "stock:A,watchlist:bob,user:bob"
        async with streaming(server, topics, headers=headers, cursor=cursor) as stream:
            rejected = {}
            for _ in range(3):
                answer = await stream.message_type("subscribed")
                for r in answer.get("rejected", []):
                    rejected[answer["subscription_type"]] = (r["target"], r["code"])
            assert rejected == dict.fromkeys(("watchlist", "user"), ("bob", "FORBIDDEN"))
            publish(server, "watchlist:bob:price", price("A", 2))
            publish(server, "alerts:bob", ALERT)
            publish(server, "stock:A:price", price("A", 3))
            message = await stream.message_type("price_update")
            assert message["price"] == 3


async def test_a_restored_session_has_only_what_its_token_permits(tmp_path: Path) -> None:
    """The topics of the session before are judged anew."""
    async with identifying_server(tmp_path) as server:
        async with user(server, "ann", topics=["watchlist:paid"]) as ann:
            session_id = ann.session_id
            await ann.subscribe("watchlist:paid", "watchlist:ann")
        await eventually(lambda: not server._acceptor.sessions)
        async with user(server, "ann") as ann:
            answer = await ann.request(type="reconnect", session_id=session_id, positions={})
            assert answer["restored_subscriptions"]["watchlist"] == ["ann"]
            publish(server, "watchlist:paid:price", price("A", 1))
            publish(server, "watchlist:ann:price", price("A", 2))
            assert (await ann.data())["price"] == 2
            await ann.ping_pong()


class SlowStore:
    """A store of sessions that has none, and says so only when it is released."""

    def __init__(self) -> None:
        self.asked, self.released = trio.Event(), trio.Event()

    async def save(self, records: Mapping[str, bytes]) -> None:
        """Forget them."""

    async def forget(self, session_ids: Sequence[str]) -> None:
        """Forget them."""

    async def load(self, session_id: str) -> None:  # noqa: ARG002 - none is known
        """Find nothing, in the end."""
        self.asked.set()
        await self.released.wait()


async def test_a_session_that_was_not_restored_to_the_end_is_no_session(tmp_path: Path) -> None:
    """Its user's own topic is not all that the client had, so it must not be `recovered`."""
    async with identifying_server(tmp_path) as server:
        store = server._sessions._store = SlowStore()
        path = "/v1/ws?session_id=earlier"
        async with open_client(server, headers=bearer("ann"), path=path) as ann:
            session_id = (await ann.receive_type("connected"))["session_id"]
            await store.asked.wait()
        await eventually(lambda: not server._acceptor.sessions)
        store.released.set()
        async with user(server, "ann") as ann:
            answer = await ann.request(type="reconnect", session_id=session_id)
            assert answer["code"] == "SESSION_RESTORATION_FAILED"


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_refresh_token_renews_the_token_of_its_connection(
    tmp_path: Path, is_known: bool
) -> None:
    """An anonymous client becomes the user, and permissions are those of the new token."""
    path = secret_file(tmp_path)
    key = SigningKey(SECRET.encode())
    refresh_token = key.token(
        "ann", use=REFRESH, topics=["watchlist:new"], issued_at=time.time(), lifetime_seconds=60
    )
    headers = bearer("ann", topics=["watchlist:old"]) if is_known else None
    async with (
        identifying_server(
            tmp_path, auth_signing_key_file=path, auth_token_lifetime_seconds=7200
        ) as server,
        open_client(server, headers=headers) as client,
    ):
        await client.receive_type("connected")
        if is_known:
            assert (await client.subscribe("watchlist:old"))["targets"] == ["old"]
        answer = await client.request(type="refresh_token", refresh_token=refresh_token)
        assert answer["type"] == "token_refreshed"
        assert 7000 < answer["expires_in"] <= 7200
        assert list(answer.get("positions", {})) == ([] if is_known else ["user:ann"])
        if is_known:
            ended = await client.receive_type("unsubscribed")
            assert (ended["targets"], ended["reason"]) == (["old"], "forbidden")
        assert (await client.subscribe("watchlist:new"))["targets"] == ["new"]
        publish(server, "alerts:ann", ALERT)
        assert (await client.data())["type"] == "alert"
        error = await client.request(type="refresh_token", refresh_token=answer["access_token"])
        assert error["code"] == "INVALID_TOKEN"
        error = await client.request(type="authenticate", token=refresh_token)
        assert error["code"] == "INVALID_TOKEN"
        authenticated = await client.request(type="authenticate", token=answer["access_token"])
        assert authenticated["user_id"] == "ann"
