"""The operator's API over HTTP: keys, bounds and statuses, and each endpoint on one server.

Covers streamer.admin.models, streamer.admin.openapi and streamer.control.publishing.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import structlog
import trio

from streamer.admin import api
from streamer.server import Server
from tests.helpers.clients import connected
from tests.helpers.http import http_client
from tests.helpers.operator import KEY, Operator, key_file, operator_of
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually

PRICE = {"type": "price_update", "stock_code": "005930", "price": 1, "change": 0}
PRICE |= {"change_percent": 0, "volume": 1}
ALERT = {"type": "alert", "alert_id": 7, "stock_code": "005930", "alert_type": "above"}
ALERT |= {"message": "It is above 70,000"}
NOTIFICATION = {"type": "notification", "notification_id": 1, "title": "t", "message": "m"}
NOTIFICATION |= {"notification_type": "news", "priority": "HIGH"}
BOOK: dict[str, Any] = {"type": "orderbook_update", "stock_code": "005930"}
BOOK |= {"bids": [{"price": 1, "quantity": 1}], "asks": []}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server on the bus in the process, with the API."""
    async with running_server(api_key_file=key_file(tmp_path)) as server:
        yield server


@pytest.fixture
async def operator(server: Server) -> AsyncIterator[Operator]:
    """An operator of that server."""
    async with operator_of(server.http_url) as operator:
        yield operator


async def test_without_a_file_of_keys_there_is_no_api() -> None:
    """Every path of it is 404, whatever key is named."""
    async with running_server() as server, operator_of(server.http_url) as operator:
        for name in ("info", "disconnect", "nothing"):
            assert await operator.post(name) == (404, {"error": "Not Found"})
        assert (await operator.client.get("/v1/api/openapi.json")).status_code == 404


@pytest.mark.parametrize("header", [None, "", "Basic abc", "Bearer", KEY])
async def test_without_a_key_a_request_is_refused(server: Server, header: str | None) -> None:
    """The status is 401, and the answer names the scheme."""
    headers = {} if header is None else {"Authorization": header}
    async with http_client(base_url=server.http_url) as client:
        response = await client.post("/v1/api/info", json={}, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert "Bearer KEY" in response.json()["error"]


async def test_wrong_keys_are_answered_late_and_hold_up_nobody(
    server: Server, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While all places of wrong keys are taken, others are refused at once and a right one works.

    The log has the address, but not the key.
    """
    monkeypatch.setattr(api, "_FAILURE_SECONDS", float("inf"))
    statuses: list[int] = []

    async def guess(client: httpx2.AsyncClient) -> None:
        response = await client.post("/v1/api/info", json={}, headers={"Authorization": "Bearer x"})
        statuses.append(response.status_code)

    with structlog.testing.capture_logs() as logs:
        limits = httpx2.Limits(max_connections=None)
        async with (
            http_client(base_url=server.http_url, limits=limits) as client,
            trio.open_nursery() as nursery,
        ):
            for _ in range(api._MAX_FAILURES + 2):
                nursery.start_soon(guess, client)
            await eventually(lambda: len(statuses) == 2)
            assert (await operator.post("info"))[0] == 200
            nursery.cancel_scope.cancel()
    assert statuses == [429, 429]
    (line,) = [line for line in logs if line["event"] == "wrong key for the operator's API"]
    assert line["address"] == "127.0.0.1"
    assert KEY not in str(logs)
    assert [line["key"] for line in logs if line["event"] == "operator"] == ["alice"]


async def test_a_wrong_key_is_forbidden(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status is 403, after the delay."""
    monkeypatch.setattr(api, "_FAILURE_SECONDS", 0.001)
    async with http_client(base_url=server.http_url) as client:
        headers = {"Authorization": f"Bearer {KEY}x"}
        response = await client.post("/v1/api/info", json={}, headers=headers)
    assert (response.status_code, response.json()["error"]) == (
        403,
        "the key is not one of this server's",
    )


async def test_bodies_are_bounded_in_size(operator: Operator) -> None:
    """Both an announced and an unannounced length beyond the bound are 413."""
    body = b'{"topic": "' + b"x" * 400_000

    async def chunks() -> AsyncIterator[bytes]:
        await trio.lowlevel.checkpoint()
        yield body

    for content in (body, chunks()):
        response = await operator.client.post(
            "/v1/api/publish", content=content, headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 413, response.text


async def test_a_body_that_does_not_arrive_is_not_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status is 408 once the time is over."""
    monkeypatch.setattr(api, "_BODY_SECONDS", 0.05)
    address = urlsplit(server.http_url)
    async with await trio.open_tcp_stream(address.hostname or "", address.port or 0) as stream:
        head = f"POST /v1/api/info HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        await stream.send_all(f"{head}Content-Length: 10\r\n\r\n{{".encode())
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"a": NaN}', "application/json", 400),
        (b"[]", "application/json", 422),
        (b"{}", "text/plain", 415),
        (b"{}", "application/json; charset=utf-8", 200),
        (b"", "application/json", 200),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(
    operator: Operator, content: bytes, content_type: str, status: int
) -> None:
    """Each mistake has its status, and a message in JSON."""
    response = await operator.client.post(
        "/v1/api/info", content=content, headers={"Content-Type": content_type}
    )
    assert response.status_code == status
    assert response.json().get("error", "") != "" or status == 200


@pytest.mark.parametrize("depth", [40, 1000])
async def test_a_publication_that_is_nested_too_deeply_is_refused(
    operator: Operator, depth: int
) -> None:
    """However deep it is, and whichever parser gives it up."""
    message = json.dumps(PRICE)[:-1] + ',"x":' + "[" * depth + "]" * depth + "}"
    content = f'{{"topic": "stock:005930", "message": {message}}}'
    headers = {"Content-Type": "application/json"}
    response = await operator.client.post("/v1/api/publish", content=content, headers=headers)
    assert response.status_code in {400, 422}
    assert "nested" in response.json()["error"]


async def test_other_methods_are_refused(operator: Operator) -> None:
    """GET of an endpoint is 405 with the method that is allowed, in JSON."""
    response = await operator.client.get("/v1/api/info")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json() == {"error": "Method Not Allowed"}


async def test_a_request_with_a_foreign_host_is_refused(operator: Operator) -> None:
    """No web page can use a key of the operator through a name of its own."""
    response = await operator.client.post("/v1/api/info", json={}, headers={"Host": "evil.example"})
    assert response.status_code == 421
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("name", "body", "field"),
    [
        ("disconnect", {}, "user or session or topic"),
        ("disconnect", {"user": "a", "topic": "stock:A"}, "user or session or topic"),
        ("disconnect", {"user": "a", "who": "b"}, "who"),
        ("disconnect", {"user": 5}, "user"),
        ("disconnect", {"session": "s-secret"}, "session"),
        ("disconnect", {"topic": "stock"}, "topic"),
        ("disconnect", {"user": "a", "retry_after_ms": -1}, "retry_after_ms"),
        ("disconnect", {"user": "a", "reason": ""}, "reason"),
        ("connections", {"sort": "size"}, "sort"),
        ("connections", {"limit": 0}, "limit"),
        ("connections", {"cursor": "x"}, "cursor"),
        ("topics", {"subscription_type": "bond"}, "subscription_type"),
        ("publish", {"message": {}}, "topic"),
        ("publish", {"topic": "stock:005930", "message": {}}, "message.type"),
        ("publish", {"topic": "stock:005930", "message": ALERT}, "message.type"),
        ("publish", {"topic": "stock:005930", "message": PRICE | {"price": "1"}}, "message.price"),
        ("publish", {"topic": "stock:A", "message": PRICE}, "message"),
    ],
)
async def test_a_wrong_field_is_named(
    operator: Operator, name: str, body: dict[str, Any], field: str
) -> None:
    """The status is 422, and `fields` says of the field what is wrong."""
    status, answer = await operator.post(name, **body)
    assert status == 422, answer
    assert list(answer["fields"]) == [field]
    assert answer["fields"][field]
    assert field in answer["error"]


async def test_a_publication_reaches_those_who_hold_its_topic(
    server: Server, operator: Operator
) -> None:
    """Numbers arrive with the digits that the operator wrote; a repeated key publishes nothing."""
    async with connected(server) as client:
        await client.subscribe("stock:005930")
        message = json.dumps(PRICE).replace('"price": 1', '"price": 1.50')
        body = f'{{"topic": "stock:005930", "idempotency_key": "k", "message": {message}}}'
        answers = []
        for _ in range(2):
            response = await operator.client.post(
                "/v1/api/publish",
                content=body.encode(),
                headers={"Content-Type": "application/json"},
            )
            answers.append(response.json())
        assert '"price": 1.50' in await client.connection.get_message()
        await client.ping_pong()
    first, second = answers
    assert first == {
        "topic": "stock:005930",
        "epoch": first["epoch"],
        "sequence": 1,
        "receivers": 1,
        "duplicate": False,
    }
    assert second == first | {"duplicate": True}


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("stock:005930", PRICE),
        ("stock:005930", BOOK),
        ("stock:005930", BOOK | {"type": "orderbook_delta"}),
        ("market:KOSPI", {"type": "market_status", "market": "KOSPI", "status": "open"}),
        ("user:42", ALERT),
        ("user:42", NOTIFICATION),
    ],
    ids=lambda value: value.get("type") if isinstance(value, dict) else "",
)
async def test_whatever_producers_may_publish_an_operator_may(
    operator: Operator, topic: str, message: dict[str, Any]
) -> None:
    """The type says on which of the topic's channels it belongs."""
    answer = await operator.done("publish", topic=topic, message=message)
    assert answer["topic"] == topic


async def test_a_topic_without_subscribers_can_be_published_to(operator: Operator) -> None:
    """Nobody receives it, and it has no position in the process."""
    assert await operator.done("publish", topic="user:42", message=ALERT) == {
        "topic": "user:42",
        "epoch": None,
        "sequence": None,
        "receivers": 0,
        "duplicate": False,
    }


async def test_a_connection_is_closed_by_its_hash(server: Server, operator: Operator) -> None:
    """It is sent the reason and the delay, then closed with 4003; the other one is not."""
    async with connected(server) as client, connected(server) as other:
        listed = await operator.done("connections", limit=1)
        session = listed["connections"][0]["session"]
        both = {one.session_id: one for one in (client, other)}
        with structlog.testing.capture_logs() as logs:
            answer = await operator.done(
                "disconnect", session=session, reason="moved", reconnect=True, retry_after_ms=1500
            )
        (line,) = [line for line in logs if line["event"] == "operator"]
        assert (line["key"], line["request"], line["session"]) == ("alice", "disconnect", session)
        assert answer == {"count": 1, "processes": 1, "answered": 1}
        await eventually(lambda: server.active_connections == 1)
        (left,) = list(server._acceptor.sessions)
        gone = both[next(name for name in both if name != left)]
        farewell = await gone.receive_type("disconnected")
        del farewell["timestamp"]
        assert farewell == {
            "type": "disconnected",
            "reason": "moved",
            "reconnect": True,
            "retry_after_ms": 1500,
        }
        assert await gone.closed() == 4003
        await both[left].ping_pong()


async def test_a_delay_is_spread_where_the_operator_gives_none(
    server: Server, operator: Operator
) -> None:
    """A client that may come back is given a time; one that may not is given none."""
    async with connected(server) as client:
        await client.subscribe("stock:A")
        assert (await operator.done("disconnect", topic="stock:A", reconnect=True))["count"] == 1
        farewell = await client.receive_type("disconnected")
        assert farewell["retry_after_ms"] >= server.settings.drain_min_retry_ms
    async with connected(server) as client:
        await client.subscribe("stock:A")
        assert (await operator.done("disconnect", topic="stock:A"))["count"] == 1
        farewell = await client.receive_type("disconnected")
        assert farewell["reconnect"] is False
        assert "retry_after_ms" not in farewell
    assert (await operator.done("disconnect", topic="stock:A"))["count"] == 0


async def test_connections_are_filtered_and_paged(server: Server, operator: Operator) -> None:
    """Pages follow each other without a repeat, in both orders; filters count what fits."""
    async with connected(server) as one, connected(server) as two, connected(server) as three:
        await two.subscribe("stock:A", "stock:B")
        await three.subscribe("stock:A")
        assert (await operator.done("connections", topic="stock:A"))["total"] == 2
        assert (await operator.done("connections", topic="stock:C"))["total"] == 0
        assert (await operator.done("connections", address="10.0.0.1"))["total"] == 0
        assert (await operator.done("connections", state="slow"))["total"] == 0
        assert (await operator.done("connections", state="open", address="127.0.0.1"))["total"] == 3
        for descending in (False, True):
            seen: list[int] = []
            cursor: dict[str, str] = {}
            for _ in range(3):
                page = await operator.done(
                    "connections", sort="subscriptions", limit=1, descending=descending, **cursor
                )
                assert page["total"] == 3
                seen += [row["subscriptions"] for row in page["connections"]]
                cursor = {"cursor": page["next"]}
            assert seen == ([2, 1, 0] if descending else [0, 1, 2])
            end = await operator.done(
                "connections", sort="subscriptions", limit=1, descending=descending, **cursor
            )
            assert (end["connections"], end["next"]) == ([], None)
        (row,) = (await operator.done("connections", topic="stock:B"))["connections"]
        assert row["topics"] == ["stock:A", "stock:B"]
        assert one.session_id not in json.dumps(await operator.done("connections"))


async def test_topics_are_listed_with_their_last_message(
    server: Server, operator: Operator
) -> None:
    """Each has its subscribers, its position and the time in its last message."""
    async with connected(server) as client, connected(server) as other:
        await client.subscribe("stock:005930", "stock:A")
        await other.subscribe("stock:005930")
        timestamp = "2026-11-26T00:00:00.000Z"
        message = PRICE | {"timestamp": timestamp}
        await operator.done("publish", topic="stock:005930", message=message)
        page = await operator.done("topics", sort="subscribers", subscription_type="stock")
    first, second = page["topics"]
    assert (first["topic"], first["subscribers"], first["sequence"]) == ("stock:005930", 2, 1)
    assert (first["producer"], first["last_message_at"]) == ("plain", timestamp)
    assert (second["topic"], second["producer"], second["last_message_at"]) == (
        "stock:A",
        None,
        None,
    )


async def test_a_topic_is_listed_whatever_text_is_in_its_last_message(
    server: Server, operator: Operator
) -> None:
    """A lone surrogate, which few parsers read, is JSON."""
    async with connected(server) as client:
        await client.subscribe("stock:A")
        publish(server, "stock:A:price", price("A", 1, name="\ud800"))
        await client.data()
        (row,) = (await operator.done("topics"))["topics"]
        assert row["last_message_at"] == "2026-01-02T03:04:05.678Z"


async def test_topics_are_paged_by_name(server: Server, operator: Operator) -> None:
    """A page begins after the last topic of the one before."""
    async with connected(server) as client:
        await client.subscribe("stock:C", "stock:A", "stock:B")
        page = await operator.done("topics", limit=2)
        rest = await operator.done("topics", limit=2, cursor=page["next"])
        assert [row["topic"] for row in page["topics"]] == ["stock:A", "stock:B"]
        assert [row["topic"] for row in rest["topics"]] == ["stock:C"]
        assert rest["next"] is None
        assert (await operator.done("topics", topic="stock:B"))["topics"][0]["subscribers"] == 1


async def test_info_has_the_settings_without_their_secrets(tmp_path: Path) -> None:
    """The file of keys is named, and nothing of it is shown."""
    path = key_file(tmp_path)
    async with (
        running_server(api_key_file=path) as server,
        operator_of(server.http_url) as operator,
    ):
        info = await operator.done("info")
    assert info["settings"]["api_key_file"] == str(path)
    assert (info["processes"], info["answered"]) == (1, 1)
    assert info["servers"][0]["version"] == info["version"]
    assert info["servers"][0]["ready"] is True
    assert KEY not in json.dumps(info)


async def test_a_fault_is_answered_and_logged(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status is 500, in JSON, and the server goes on."""

    async def fail(_actions: object, _action: object, _arguments: object) -> object:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr("streamer.control.actions.Actions.__call__", fail)
        status, answer = await operator.post("info")
    assert (status, answer) == (500, {"error": "a fault of this server, which is logged"})
    assert (await operator.post("info"))[0] == 200
