"""Who may ask what over HTTP, and the errors of everybody else.

Covers streamer.edge.http_answers.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from trio.testing import MockClock

from streamer.edge.http_stream import HttpStream
from streamer.edge.writer import BlockedWriter
from streamer.hub.outbox import Outbox
from tests.auth.tokens import secret_file, signed
from tests.helpers.clients import connected, raw_client
from tests.helpers.events import fetched, requested, streaming
from tests.helpers.http import http_client
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually

STREAM = "/v1/stream?topics=stock:A"
PATHS = [STREAM, "/v1/snapshot?topics=stock:A", "/v1/history?topic=stock:A&epoch=e&sequence=0"]
PAGE = {"Origin": "https://page.example"}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "PATCH"])
async def test_only_get_is_served(path: str, method: str, mock_clock: MockClock) -> None:
    """Any other method is 405 with the allowed ones, before any virtual time passes."""
    async with running_server() as server:
        response = await fetched(server, path, method=method)
        assert response.status == 405
        assert response.headers["allow"] == "GET, OPTIONS"
        assert response.headers["connection"] == "close"
        assert bool(response.body) is (method != "HEAD")
        assert server.statistics().connections_total == 0


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/stream", 400),
        ("/v1/stream?topics=stock:*", 400),
        ("/v1/stream?topics=stock:A&last_event_id=x", 400),
        ("/v1/snapshot?topics=%FF", 400),
        ("/v1/stream?" + "&".join(["topic=stock:A"] * 201), 400),
        ("/v1/history?topic=stock:A", 400),
        ("/v1/stream/", 404),
        ("/v1/streams", 404),
        ("/v1/ws", 426),
        ("/v1/stream?topics=user:42", 403),
        ("/v1/snapshot?topics=user:42", 403),
        ("/v1/history?topic=user:42&epoch=e&sequence=0", 403),
        ("/v1/stream?topics=stock:A&last_event_id=" + "x" * 60_000, 431),
    ],
)
async def test_what_cannot_be_served_is_answered_at_once(
    path: str, status: int, mock_clock: MockClock
) -> None:
    """With a status, a reason, and the end of the connection."""
    async with running_server() as server:
        response = await fetched(server, path)
        assert response.status == status
        if status in {400, 403}:
            assert set(response.json) >= {"code", "message"}
            assert response.headers["cache-control"] == "no-store"
        assert server.statistics().pending_handshakes == 0
        assert server.statistics().connections_total == 0


async def test_a_topic_that_is_forbidden_does_not_affect_the_others() -> None:
    """It is in `rejected`, as in the answer to subscribe."""
    async with running_server() as server:
        async with streaming(server, "stock:A,user:42") as client:
            subscribed = await client.message_type("subscribed")
            assert (subscribed["targets"], subscribed["rejected"]) == (["A"], [])
            refused = await client.message_type("subscribed")
            assert (refused["subscription_type"], refused["targets"]) == ("user", [])
            assert [(one["target"], one["code"]) for one in refused["rejected"]] == [
                ("42", "FORBIDDEN")
            ]
        response = await fetched(server, "/v1/snapshot?topics=stock:A,user:42")
        assert response.json["user:42"]["error"]["code"] == "FORBIDDEN"
        assert response.json["stock:A"]["messages"] == []


# Web pages


async def test_any_page_may_read_where_no_origins_are_set() -> None:
    """But no browser sends it the cookies of a user."""
    async with running_server() as server:
        response = await fetched(server, PATHS[1], headers=PAGE)
        assert response.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in response.headers


async def test_a_page_of_an_allowed_origin_may_read_and_send_cookies() -> None:
    """Its own origin is named, also in errors and streams; caches keep answers apart by it."""
    async with running_server(allowed_origins=("https://*.example",)) as server:
        for path in (*PATHS[1:], "/v1/stream"):
            response = await fetched(server, path, headers=PAGE)
            assert response.headers["access-control-allow-origin"] == "https://page.example"
            assert response.headers["access-control-allow-credentials"] == "true"
            assert response.headers["vary"] == "Origin"
        async with streaming(server, "stock:A", headers=PAGE) as client:
            assert client.response.headers["access-control-allow-credentials"] == "true"
        response = await fetched(server, PATHS[1])
        assert response.status == 200, "a client that is no browser has no origin"
        assert "access-control-allow-origin" not in response.headers
        assert response.headers["vary"] == "Origin"


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
async def test_pages_of_other_origins_are_refused(method: str) -> None:
    """403, which their scripts cannot read; it is counted as an origin that was refused."""
    async with running_server(allowed_origins=("https://good.example",)) as server:
        response = await fetched(server, STREAM, method=method, headers=PAGE)
        assert response.status == 403
        assert "access-control-allow-origin" not in response.headers
        assert server.statistics().rate_limiting.connections_refused["origin"] == 1


async def test_a_preflight_says_what_a_page_may_send() -> None:
    """A token in a header, and the id of the last event."""
    async with running_server(allowed_origins=("https://page.example",)) as server:
        asked = {"Access-Control-Request-Method": "GET"}
        response = await fetched(server, STREAM, method="OPTIONS", headers=PAGE | asked)
        assert (response.status, response.body) == (204, b"")
        assert response.headers["access-control-allow-methods"] == "GET"
        assert "Authorization" in response.headers["access-control-allow-headers"]
        assert "Last-Event-ID" in response.headers["access-control-allow-headers"]
        assert response.headers["access-control-allow-origin"] == "https://page.example"


# Identity


def with_tokens(directory: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a server that verifies tokens."""
    return {"auth_secret_file": secret_file(directory), "auth": "required"} | settings


def bearer(token: str) -> dict[str, str]:
    """The header of a token."""
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("path", PATHS)
async def test_a_token_is_required_where_the_settings_say_so(path: str, tmp_path: Path) -> None:
    """401 without one, with a bad one, and with one that has expired, each with its code."""
    async with running_server(**with_tokens(tmp_path)) as server:
        for headers, code in (
            ({}, "FORBIDDEN"),
            (bearer("nonsense"), "INVALID_TOKEN"),
            (bearer(signed(exp=int(time.time()) - 3600)), "TOKEN_EXPIRED"),
        ):
            response = await fetched(server, path, headers=headers)
            assert (response.status, response.json["code"]) == (401, code)
            assert response.headers["www-authenticate"] == "Bearer"
        async with requested(server, path, headers=bearer(signed())) as client:
            assert (await client.head()).status == 200


async def test_a_bad_token_is_refused_where_none_is_required(tmp_path: Path) -> None:
    """Who has none is anonymous and has the public topics."""
    async with running_server(**with_tokens(tmp_path, auth="optional")) as server:
        assert (await fetched(server, PATHS[1])).status == 200
        assert (await fetched(server, PATHS[1], headers=bearer("x"))).status == 401
        assert (await fetched(server, "/v1/snapshot?topics=watchlist:42")).status == 403
        own = await fetched(server, "/v1/snapshot?topics=watchlist:42", headers=bearer(signed()))
        assert own.status == 200


async def test_a_token_may_come_in_a_cookie_or_the_query(tmp_path: Path) -> None:
    """EventSource has no headers: a page sends a cookie, or the token in the URL."""
    settings = with_tokens(tmp_path, auth_cookie="jwt", allowed_origins=("https://page.example",))
    async with running_server(**settings) as server:
        with_cookie = PAGE | {"Cookie": f"jwt={signed()}"}
        assert (await fetched(server, PATHS[1], headers=with_cookie)).status == 200
        assert (await fetched(server, f"{PATHS[1]}&token={signed()}")).status == 200


async def test_the_personal_messages_of_a_user_come_without_asking(tmp_path: Path) -> None:
    """Their position is in the cursor: an alert published while the user was away arrives once."""
    alert = (
        b'{"alert_id":1,"stock_code":"A","alert_type":"above","message":"%b",'
        b'"timestamp":"2026-01-02T03:04:05.678Z"}'
    )
    async with running_server(**with_tokens(tmp_path)) as server:
        async with streaming(server, "stock:A", headers=bearer(signed())) as client:
            assert (await client.message_type("subscribed"))["targets"] == ["A"]
            subscribed = await client.message_type("subscribed")
            assert (subscribed["subscription_type"], subscribed["targets"]) == ("user", ["42"])
            publish(server, "alerts:42", alert % b"first")
            assert (await client.message())["message"] == "first"
            cursor = client.last_id
        publish(server, "alerts:42", alert % b"second")
        async with streaming(server, "stock:A", headers=bearer(signed()), cursor=cursor) as client:
            for _ in range(2):
                await client.message_type("subscribed")
            message = await client.message()
            assert (message["message"], message["sequence"]) == ("second", 2)
        async with streaming(server, "stock:A", headers=bearer(signed(sub="7"))) as other:
            assert (await other.message_type("subscribed"))["targets"] == ["A"]
            assert (await other.message_type("subscribed"))["targets"] == ["7"]


# Limits


async def test_streams_take_the_places_of_their_address() -> None:
    """One too many is 429 with a delay; a WebSocket and a stream count alike."""
    async with running_server(max_connections_per_address=2) as server:
        async with connected(server) as websocket, streaming(server, "stock:A"):
            response = await fetched(server, STREAM)
            assert response.status == 429
            assert int(response.headers["retry-after"]) > 0
            assert (await fetched(server, PATHS[1])).status == 429
            assert server.statistics().rate_limiting.connections_refused["address_full"] == 2
            assert server.statistics().connections_by_transport == {"websocket": 1, "http": 1}
            await websocket.ping_pong()
        await eventually(lambda: server.statistics().active_connections == 0)
        assert (await fetched(server, PATHS[1])).status == 200
        assert (await fetched(server, PATHS[1])).status == 200
        assert (await fetched(server, PATHS[1])).status == 200, "a read gives its place back"


async def test_a_full_server_is_503() -> None:
    """Which a client answers with backoff."""
    async with running_server(max_connections=1) as server, connected(server):
        response = await fetched(server, STREAM)
        assert (response.status, response.json["message"]) == (503, "too many connections")


async def test_the_connections_of_a_user_are_limited(tmp_path: Path) -> None:
    """The stream begins and says so at once, as a WebSocket of one user too many does."""
    async with (
        running_server(**with_tokens(tmp_path, max_connections_per_user=1)) as server,
        streaming(server, "stock:A", headers=bearer(signed())) as first,
        streaming(server, "stock:A", headers=bearer(signed())) as second,
    ):
        assert (await second.message_type("closed"))["code"] == 1013
        assert await second.rest() == []
        await first.message_type("subscribed")


async def test_an_ordinary_http_client_reads_a_stream() -> None:
    """httpx2, which knows nothing of this server."""
    async with running_server() as server:
        address = urlsplit(server.websocket_url)
        async with (
            http_client(base_url=f"http://{address.netloc}") as client,
            client.stream("GET", "/v1/stream", params={"topics": "stock:A,market:M"}) as response,
        ):
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert response.headers["cache-control"] == "no-cache, no-transform"
            assert response.headers["x-accel-buffering"] == "no"
            await eventually(lambda: server.statistics().subscriptions == 2)
            publish(server, "stock:A:price", price("A", 5))
            await eventually(lambda: server.statistics().messages_sent == 1)
            server.shutdown()
            text = "".join([chunk async for chunk in response.aiter_text()])
        (event,) = [event for event in text.split("\n\n") if '"price": 5' in event]
        assert "\nid: 1~" in event


async def test_an_ended_stream_is_freed_without_the_garbage_collector() -> None:
    """No cycle of references outlives it."""
    async with running_server(linger_seconds=0) as server:

        async def connect() -> None:
            async with streaming(server, "stock:A") as client:
                await client.message_type("subscribed")
            await eventually(lambda: server.statistics().active_connections == 0)
            assert (await fetched(server, PATHS[1])).status == 200

        await connect()
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                await connect()
            await eventually(lambda: not server.statistics().pending_handshakes)
            left = [
                one
                for one in gc.get_objects()
                if isinstance(one, HttpStream | Outbox | BlockedWriter)
            ]
        finally:
            gc.enable()
        assert left == []


async def test_a_client_that_sends_half_a_request_is_cut(mock_clock: MockClock) -> None:
    """The bounds of handshakes hold for it, and a neighbour notices nothing."""
    async with (
        running_server() as server,
        connected(server) as neighbour,
        raw_client(server, opened=False) as client,
    ):
        await client.stream.send_all(b"GET /v1/stream?topics=stock:A HTTP/1.1\r\nHost:")
        await eventually(lambda: server.statistics().pending_handshakes == 1)
        mock_clock.jump(11)
        assert await client.rest() == b""
        await neighbour.ping_pong()
