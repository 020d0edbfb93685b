"""Revoked tokens are refused on every server, also on one that starts later.

Covers streamer.broker.revocations.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
import trio
from hypothesis import given
from hypothesis import strategies as st

from streamer.auth.errors import TokenError
from streamer.auth.identity import Identity
from streamer.control import revocations
from streamer.control.revocations import Revocation, Revocations, RevocationSync
from streamer.server import Server
from tests.auth.tokens import NOW, secret_file, signed
from tests.helpers.clients import connected, open_client
from tests.helpers.events import EventClient, streaming
from tests.helpers.operator import Operator, key_file, operator_of
from tests.helpers.redis_server import RedisServer
from tests.helpers.server import running_server
from tests.helpers.timing import eventually


def settings(directory: Path, redis_url: str) -> dict[str, Any]:
    """Settings of a server with identity and the API."""
    return {
        "redis": redis_url,
        "auth": "optional",
        "auth_secret_file": secret_file(directory),
        "api_key_file": key_file(directory),
        "api_timeout_seconds": 30,
    }


async def is_accepted(server: Server, token: str) -> bool:
    """Whether a server accepts a token."""
    try:
        await server._authenticator.authenticate(token)
    except TokenError as error:
        return "revoked" not in error.message
    return True


@pytest.mark.parametrize(
    "request_body", [{"user": "42"}, {"user": "42", "issued_before": NOW + 1}, {"jti": "one"}]
)
async def test_a_revoked_token_is_refused_everywhere(
    redis_url: str, redis: redis_py.Redis, tmp_path: Path, request_body: dict[str, Any]
) -> None:
    """On the server that was asked, on the others, and on one that starts afterwards.

    Other users, other tokens and later ones are not concerned.
    """
    token = signed(jti="one")
    others = [signed(sub="43", jti="two"), signed(iat=int(time.time()) + 200, jti="three")]
    chosen = settings(tmp_path, redis_url) | {"auth_leeway_seconds": 300}
    async with running_server(**chosen) as one, running_server(**chosen) as two:
        async with operator_of(one.http_url) as operator:
            while (await operator.done("info"))["answered"] < 2:
                pass
            for server in (one, two):
                assert await is_accepted(server, token)
            answer = await operator.done("revoke", **request_body)
        assert (answer["processes"], answer["answered"]) == (2, 2)
        for server in (one, two):
            assert not await is_accepted(server, token)
            assert [await is_accepted(server, other) for other in others] == [True, True]
    async with running_server(**chosen) as later:
        assert not await is_accepted(later, token)
        assert [await is_accepted(later, other) for other in others] == [True, True]
    assert 0 < redis.zcard("streamer:revocations") <= 1


@asynccontextmanager
async def two_with_streams(
    redis_url: str, directory: Path, *tokens: str
) -> AsyncIterator[tuple[Operator, list[EventClient]]]:
    """Two servers with an event stream for each token on each, and an operator of the first."""
    chosen = settings(directory, redis_url)
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(running_server(**chosen)) for _ in range(2)]
        operator = await stack.enter_async_context(operator_of(servers[0].http_url))
        while (await operator.done("info"))["answered"] < 2:
            pass
        clients = []
        for server in servers:
            for token in tokens:
                headers = {"Authorization": f"Bearer {token}"}
                opening = streaming(server, "stock:A", headers=headers)
                client = await stack.enter_async_context(opening)
                await client.message()
                clients.append(client)
        yield operator, clients


async def farewell(client: EventClient, message_type: str, field: str) -> tuple[Any, int]:
    """A field of the last message before the close, which has this type; and the close code."""
    last, close = (await client.rest())[-2:]
    assert last["type"] == message_type, last
    return last[field], close["code"]


async def test_connections_with_a_revoked_token_are_closed(
    redis_url: str, redis: redis_py.Redis, tmp_path: Path
) -> None:
    """On every server, after INVALID_TOKEN; that of another token of the user is not."""
    tokens = [signed(jti="one"), signed(jti="two")]
    async with two_with_streams(redis_url, tmp_path, *tokens) as (operator, clients):
        answer = await operator.done("revoke", jti="one")
        assert (answer["count"], answer["answered"]) == (2, 2)
        for client in clients[::2]:
            assert await farewell(client, "error", "code") == ("INVALID_TOKEN", 4500)
        page = await operator.done("connections", user="42", state="open")
        assert page["total"] == 2
        answer = await operator.done("revoke", user="42")
        assert (answer["count"], answer["answered"]) == (2, 2)
        for client in clients[1::2]:
            assert await farewell(client, "error", "code") == ("INVALID_TOKEN", 4500)


async def test_a_user_is_disconnected_on_every_server(
    redis_url: str, redis: redis_py.Redis, tmp_path: Path
) -> None:
    """All connections of that user, and of no other; the token is still good."""
    tokens = [signed(), signed(sub="43")]
    async with two_with_streams(redis_url, tmp_path, *tokens) as (operator, clients):
        answer = await operator.done("disconnect", user="42", reason="maintenance")
        assert (answer["count"], answer["answered"]) == (2, 2)
        for client in clients[::2]:
            assert await farewell(client, "disconnected", "reason") == ("maintenance", 4003)
        page = await operator.done("connections", state="open")
        assert {row["user"] for row in page["connections"]} == {"43"}
        explained = await operator.done("explain", topic="user:42", token=tokens[0])
        assert explained["allowed"] is True


async def test_websockets_of_a_user_are_closed_and_a_revoked_token_does_not_come_back(
    tmp_path: Path,
) -> None:
    """4003 for a disconnect, after which the token opens another; 4500 for a revocation, always."""
    chosen = settings(tmp_path, "")
    del chosen["redis"]
    headers = [(b"Authorization", f"Bearer {signed()}".encode())]
    async with (
        running_server(**chosen) as server,
        operator_of(server.http_url) as operator,
        connected(server) as anonymous,
    ):
        async with connected(server, headers=headers) as client:
            assert (await operator.done("disconnect", user="42", reconnect=True))["count"] == 1
            assert (await client.receive_type("disconnected"))["reconnect"] is True
            assert await client.closed() == 4003
        async with connected(server, headers=headers) as client:
            assert (await operator.done("revoke", user="42"))["count"] == 1
            assert (await client.receive_type("error"))["code"] == "INVALID_TOKEN"
            assert await client.closed() == 4500
        async with open_client(server, headers=headers) as client:
            while (message := await client.receive())["type"] != "error":
                pass
            assert message["code"] == "INVALID_TOKEN"
            assert await client.closed() == 4500
        await anonymous.ping_pong()


async def test_a_connection_made_while_its_token_is_revoked_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was not there yet when the revocation came is found soon after."""
    monkeypatch.setattr(revocations, "_SWEEP_SECONDS", 0.01)
    chosen = settings(tmp_path, "")
    del chosen["redis"]
    async with running_server(**chosen) as server:
        headers = {"Authorization": f"Bearer {signed()}"}
        async with streaming(server, "stock:A", headers=headers) as client:
            # As if it had come before the connection, of which it then could not know.
            server._revocations.add(Revocation("42", time.time() + 1), time.time() + 1000)
            assert await farewell(client, "error", "code") == ("INVALID_TOKEN", 4500)


async def test_a_revocation_that_redis_lost_is_written_again(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """A server that knows it writes it to a Redis that came back empty; later servers read it."""
    redis_server = own_redis_server()
    chosen = settings(tmp_path, redis_server.url)
    token = signed()
    async with running_server(**chosen) as one:
        async with operator_of(one.http_url) as operator:
            assert (await operator.done("revoke", user="42"))["count"] == 0
        redis_server.restart()
        with redis_server.connect() as redis:
            await eventually(lambda: redis.zcard("streamer:revocations"))
    async with running_server(**chosen) as later:
        assert not await is_accepted(later, token)


async def test_a_revocation_without_redis_holds_here_and_is_stored_later(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """The status is 503; when Redis is back, the revocation is there."""
    redis_server = own_redis_server()
    async with running_server(**settings(tmp_path, redis_server.url)) as server:
        async with operator_of(server.http_url) as operator:
            redis_server.stop()
            status, answer = await operator.post("revoke", user="42")
            assert (status, answer["answered"], answer["count"]) == (503, 1, 0)
            assert not await is_accepted(server, signed())
            redis_server.start()
        with redis_server.connect() as redis:
            await eventually(lambda: redis.zcard("streamer:revocations"))


async def test_revocations_that_cannot_be_read_are_tried_again(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon, although the connection to Redis is as good as before."""
    monkeypatch.setattr(revocations, "_READ_INTERVAL_SECONDS", 3600.0)
    redis_server = own_redis_server()
    with redis_server.connect() as redis:
        redis.zadd("streamer:revocations", {b'{"jti": "one"}': time.time() + 1000})
        redis.execute_command("ACL", "SETUSER", "default", "-zrevrangebyscore")
        async with running_server(**settings(tmp_path, redis_server.url)) as server:
            assert await is_accepted(server, signed(jti="one"))
            redis.execute_command("ACL", "SETUSER", "default", "+zrevrangebyscore")
            await eventually(lambda: len(server._revocations))
            assert not await is_accepted(server, signed(jti="one"))


async def test_the_number_of_revocations_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more is refused, and those that are kept hold."""
    monkeypatch.setattr(revocations, "MAX_REVOCATIONS", 2)
    async with (
        running_server(api_key_file=key_file(tmp_path)) as server,
        operator_of(server.http_url) as operator,
    ):
        for jti in ("one", "two"):
            await operator.done("revoke", jti=jti)
        status, answer = await operator.post("revoke", jti="three")
        assert (status, answer["error"]) == (503, "2 revocations are kept already")
        assert server._revocations.is_revoked(Identity("42", token_id="two"))
        assert not server._revocations.is_revoked(Identity("42", token_id="three"))


async def test_what_is_no_revocation_in_redis_is_left_out(
    redis_url: str, redis: redis_py.Redis, tmp_path: Path
) -> None:
    """The others are read all the same."""
    until = time.time() + 1000
    texts = [b"", b"[]", b"{}", b"\xff", b'{"user": "42"}', b'{"jti": 5}', b'{"jti": "one"}']
    redis.zadd("streamer:revocations", dict.fromkeys(texts, until))
    redis.zadd("streamer:revocations", {b'{"jti": "two"}': time.time() - 1})
    async with running_server(**settings(tmp_path, redis_url)) as server:
        assert not await is_accepted(server, signed(jti="one"))
        assert await is_accepted(server, signed(jti="two"))
        assert await is_accepted(server, signed())


async def test_many_revocations_are_read_by_the_page(
    redis_url: str, redis: redis_py.Redis, tmp_path: Path
) -> None:
    """Each of 2,500 tokens is refused by a server that starts."""
    until = time.time() + 1000
    tokens = {Revocation(jti=str(n)).to_text(): until for n in range(2500)}
    redis.zadd("streamer:revocations", tokens)
    async with running_server(**settings(tmp_path, redis_url)) as server:
        assert len(server._revocations) == 2500


class EmptyStore:
    """A store that has lost everything, and keeps what it is given."""

    def __init__(self) -> None:
        self.added: list[int] = []
        self.read = trio.Event()

    async def add(self, entries: Sequence[tuple[bytes, float]], *, now_seconds: float) -> None:
        """Count the entries of this call."""
        assert now_seconds
        self.added.append(len(entries))
        await trio.lowlevel.checkpoint()

    async def load(self, *, now_seconds: float) -> list[tuple[bytes, float]]:
        """Return nothing."""
        assert now_seconds
        await trio.lowlevel.checkpoint()
        return []


async def test_many_revocations_are_compared_and_written_in_portions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All 100,000 at once take a second, each minute."""
    known = Revocations()
    for number in range(3000):
        known.add(Revocation(jti=str(number)), time.time() + 1000)
    encoded = 0
    to_text = Revocation.to_text

    def count(revocation: Revocation) -> bytes:
        nonlocal encoded
        encoded += 1
        return to_text(revocation)

    async def nothing() -> None:
        """Nobody is connected."""

    monkeypatch.setattr(Revocation, "to_text", count)
    store = EmptyStore()
    sync = RevocationSync(known, store, reads=True, on_new=nothing)
    most = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync.run)
        while sum(store.added) < 3000:
            before = encoded
            await trio.lowlevel.checkpoint()
            most = max(most, encoded - before)
        nursery.cancel_scope.cancel()
    assert most <= 1000
    assert max(store.added) <= 500


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"user": "42", "issued_before": NOW + 10_000}, "issued_before"),
        ({"user": "42", "issued_before": 5}, "issued_before"),
        ({"jti": "x", "issued_before": NOW}, "issued_before"),
        ({"user": "42", "jti": "x"}, "user or jti"),
        ({}, "user or jti"),
    ],
)
async def test_a_revocation_that_makes_no_sense_is_refused(
    tmp_path: Path, body: dict[str, Any], field: str
) -> None:
    """One that is a ban, or that can concern no token, or is about two things."""
    async with (
        running_server(api_key_file=key_file(tmp_path)) as server,
        operator_of(server.http_url) as operator,
    ):
        status, answer = await operator.post("revoke", **body)
    assert (status, list(answer["fields"])) == (422, [field])


async def test_the_rule_that_decides_is_explained(tmp_path: Path) -> None:
    """For an anonymous client, a user, and a token with its patterns."""
    path = tmp_path / "redis"
    chosen = settings(tmp_path, str(path))
    del chosen["redis"]
    async with (
        running_server(**chosen) as server,
        operator_of(server.http_url) as operator,
    ):
        anonymous = await operator.done("explain", topic="watchlist:42")
        own = await operator.done("explain", topic="watchlist:42", user="42")
        token = signed(topics=["watchlist:7/*"])
        granted = await operator.done("explain", topic="watchlist:7/a", token=token)
        status, answer = await operator.post("explain", topic="stock:A", token="not a token")
    assert (anonymous["allowed"], anonymous["user"]) == (False, None)
    assert (own["allowed"], own["user"]) == (True, "42")
    assert (granted["allowed"], granted["user"]) == (True, "42")
    assert "watchlist:7/*" in granted["rule"]
    assert (status, list(answer["fields"])) == (422, ["token"])
    assert "not a token" not in str(answer)


async def test_where_a_token_is_required_the_explanation_says_so(tmp_path: Path) -> None:
    """An anonymous client has nothing, as at a connection."""
    chosen = settings(tmp_path, "") | {"auth": "required"}
    del chosen["redis"]
    async with (
        running_server(**chosen) as server,
        operator_of(server.http_url) as operator,
    ):
        answer = await operator.done("explain", topic="stock:A")
    assert (answer["allowed"], answer["rule"][:16]) == (False, "auth is required")


TIMES = st.integers(0, 10).map(float)


@given(
    revoked=st.lists(
        st.tuples(st.sampled_from(["a", "b", None]), TIMES, st.integers(90, 110)), max_size=6
    ),
    now=st.integers(95, 105),
    issued=TIMES | st.none(),
)
def test_a_token_is_revoked_by_any_entry_that_is_about_it(
    revoked: list[tuple[str | None, float, int]], now: int, issued: float | None
) -> None:
    """A user's by the time of issue, a single one by its id; no longer than the entry is kept.

    Of several entries of one user, the latest time of issue and the latest end hold.
    """
    clock = [90.0 - 1]
    known = Revocations(lambda: clock[0])
    for user, before, until in revoked:
        one = Revocation(jti="t") if user is None else Revocation(user, before)
        known.add(one, until)
    clock[0] = float(now)
    known.expire()
    identity = Identity("a", issued_at=issued, token_id="t")
    entries = [(before, until) for user, before, until in revoked if user == "a"]
    by_user = bool(entries) and (
        max(until for _, until in entries) > now
        and (issued is None or issued < max(before for before, _ in entries))
    )
    by_id = any(until > now for user, _, until in revoked if user is None)
    assert known.is_revoked(identity) is (by_user or by_id)
