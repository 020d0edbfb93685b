"""Streams of events: everything once or a gap, however often they are cut, and their ends.

Covers streamer.edge.acknowledged.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from trio.testing import MockClock

from streamer.edge.acknowledged import seconds_since_acknowledged
from streamer.edge.http_stream import RETRY_MS, HttpStream
from streamer.server import Server
from tests.auth.tokens import secret_file, signed
from tests.helpers.clients import connected
from tests.helpers.events import EventClient, Message, fetched, requested, streaming
from tests.helpers.publications import market_status, orderbook, price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually

CUTS = 100


def the_stream(server: Server) -> HttpStream:
    """The only client of a server."""
    (stream,) = server._acceptor.sessions.values()
    assert isinstance(stream, HttpStream)
    return stream


async def subscribed(client: EventClient, *types: str) -> None:
    """Read the first events, one for each type of topic."""
    for _ in types or ("stock",):
        await client.message_type("subscribed")


async def test_a_stream_begins_with_the_last_known_values() -> None:
    """Then come the live messages; several of one flush are a batch, in one event."""
    async with running_server() as server, connected(server) as other:
        await other.subscribe("stock:A")
        publish(server, "stock:A:price", price("A", 1))
        await other.data()
        async with streaming(server, "stock:A,market:M") as client:
            assert client.response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert client.response.headers["connection"] == "close"
            assert client.response.headers["heartbeat-interval"] == "25"
            assert client.response.headers["access-control-expose-headers"] == "Heartbeat-Interval"
            await subscribed(client, "stock", "market")
            assert client.retry_ms is not None
            assert RETRY_MS[0] <= client.retry_ms <= RETRY_MS[1]
            message = await client.message()
            assert (message["price"], message["snapshot"]) == (1, True)
            publish(server, "stock:A:price", price("A", 2))
            publish(server, "market:M:status", market_status("M", "open"))
            assert [(await client.message())["type"] for _ in range(2)] == [
                "price_update",
                "market_status",
            ]
        await eventually(lambda: server.statistics().active_connections == 1)
        assert server.statistics().subscriptions == 1


async def test_clients_of_one_subscription_share_their_frames() -> None:
    """They are one group, and get the same bytes from one flush."""
    async with (
        running_server(flush_interval_ms=0) as server,
        streaming(server, "stock:A,market:M") as one,
        streaming(server, "market:M,stock:A") as two,
    ):
        for client in (one, two):
            await subscribed(client, "stock", "market")
        before = server.hub.statistics().groups
        assert before == 1
        publish(server, "stock:A:price", price("A", 1))
        events = []
        for client in (one, two):
            while not (taken := client.take()):
                assert await client.more()
            events.append(taken)
        assert events[0] == events[1]
        assert events[0][0][1].startswith("1~")


async def test_a_stream_that_is_cut_between_its_first_values_has_them_all_when_it_resumes() -> None:
    """They take several events, and whoever has the first has no position to resume from."""
    codes = ["A", "B", "C"]
    topics = ",".join(f"stock:{code}" for code in codes)
    async with running_server(flush_interval_ms=0) as server, connected(server) as other:
        await other.subscribe(*topics.split(","))
        for code in codes:
            publish(server, f"stock:{code}:price", price(code, 1, pad="x" * 150_000))
        async with streaming(server, topics) as client:
            await subscribed(client)
            first = await client.message()
            cursor = client.last_id
        assert first["snapshot"]
        async with streaming(server, topics, cursor=cursor) as client:
            await subscribed(client)
            received = [first, *[await client.message() for _ in codes]]
            assert {message["stock_code"] for message in received} == set(codes)
            cursor = client.last_id
        publish(server, "stock:C:price", price("C", 2))
        async with streaming(server, topics, cursor=cursor) as client:
            await subscribed(client)
            assert (await client.message())["price"] == 2


class Follower:
    """A client that is cut at random places and resumes, and checks each message."""

    def __init__(self, server: Server, topics: str, query: str = "") -> None:
        self._server = server
        self._topics = topics
        self._query = query
        self._cursor = ""
        self._positions: dict[str, int] = {}
        """The last sequence of each stock."""
        self.values: dict[str, list[int]] = {}
        self.gaps = 0

    @asynccontextmanager
    async def connection(self, lost: Callable[[int], int]) -> AsyncIterator[EventClient]:
        """Connect and resume; in the end `lost` of the bytes that have come count as never come."""
        async with streaming(
            self._server, self._topics, cursor=self._cursor, query=self._query
        ) as client:
            yield client
            received = len(client.received)
            del client.received[received - lost(received) :]
            self._receive(client)

    def _receive(self, client: EventClient) -> None:
        for event, _ in client.take():
            for message in event.get("messages", [event]):
                self._receive_message(message)
        self._cursor = client.last_id

    def _receive_message(self, message: Message) -> None:
        match message["type"]:
            case "subscribed":
                for target, position in message["positions"].items():
                    known = self._positions.setdefault(target, position["sequence"])
                    assert position["sequence"] == known, "it resumes elsewhere"
            case "gap":
                self.gaps += 1
                self._positions[message["target"]] = message["sequence"]
            case _ if not message.get("snapshot"):
                code = message["stock_code"]
                follows = message.get("previous", message["sequence"] - 1)
                assert follows == self._positions[code], f"a hole or a repeat: {message}"
                self._positions[code] = message["sequence"]
                self.values.setdefault(code, []).append(message["volume"])

    async def catch_up(self, numbers: Mapping[str, int]) -> None:
        """Resume, and read until these are the last sequences."""
        async with self.connection(lambda _: 0) as client:
            self._receive(client)
            while self._positions != numbers:
                assert await client.more()
                self._receive(client)


@pytest.mark.parametrize("mode", ["all", "latest"])
async def test_a_stream_that_is_cut_a_hundred_times_misses_nothing(mode: str) -> None:
    """Cut after any byte, also in the middle of an event: every message once, in order."""
    seed = random.Random(7)
    numbers = {"A": 0, "B": 0}

    def publish_some() -> None:
        for _ in range(seed.randrange(1, 6)):
            code = seed.choice("AB")
            numbers[code] += 1
            publish(server, f"stock:{code}:price", price(code, 1, volume=numbers[code]))

    async with running_server(flush_interval_ms=0, linger_seconds=60) as server:
        follower = Follower(server, "stock:A,stock:B", f"&mode={mode}")
        for _ in range(CUTS):
            async with follower.connection(lambda n: seed.randrange(min(n, 600) + 1)) as client:
                for _ in range(seed.randrange(3)):
                    publish_some()
                    await client.more()
            publish_some()
        await follower.catch_up(numbers)
        assert follower.gaps == 0
        assert follower.values == {code: list(range(1, n + 1)) for code, n in numbers.items()}


async def test_what_is_no_longer_known_is_a_gap() -> None:
    """As over WebSocket: the reason, and the last known values after it."""
    async with running_server(flush_interval_ms=0, history_length=2) as server:
        async with streaming(server, "stock:A,stock:B") as client:
            await subscribed(client)
            cursor = client.last_id
        for number in range(5):
            publish(server, "stock:A:price", price("A", number))
        publish(server, "stock:B:price", price("B", 7))
        async with streaming(server, "stock:A,stock:B", cursor=cursor) as client:
            await subscribed(client)
            messages = [await client.message() for _ in range(3)]
            live = [one for one in messages if one.get("stock_code") == "B"]
            assert [one["sequence"] for one in live] == [1]
            gap, value = [one for one in messages if one not in live]
            assert (gap["type"], gap["target"], gap["sequence"]) == ("gap", "A", 5)
            assert (value["price"], value["snapshot"]) == (4, True)


async def test_topics_can_be_added_when_a_stream_resumes() -> None:
    """The others continue where they were; the new ones begin with their last known values."""
    async with running_server(flush_interval_ms=0) as server:
        async with streaming(server, "stock:A") as client:
            await subscribed(client)
            publish(server, "stock:A:price", price("A", 1))
            await client.message()
            cursor = client.last_id
        publish(server, "stock:A:price", price("A", 2))
        async with streaming(server, "stock:B,stock:A", query=f"&last_event_id={cursor}") as client:
            await subscribed(client)
            assert (await client.message())["price"] == 2


async def test_kinds_and_rates_are_those_of_subscribe(mock_clock: MockClock) -> None:
    """Only prices, and at most one a second."""
    async with (
        running_server(flush_interval_ms=0) as server,
        streaming(server, "stock:A", query="&kinds=price&max_rate=1") as client,
    ):
        await subscribed(client)
        publish(server, "stock:A:orderbook", orderbook("A", 1))
        publish(server, "stock:A:price", price("A", 0))
        first = await client.message()
        for number in range(1, 5):
            publish(server, "stock:A:price", price("A", number))
        assert (first["price"], first["previous"]) == (0, 0)
        mock_clock.jump(1)
        last = await client.message()
        assert (last["price"], last["previous"]) == (4, 2)


async def test_deltas_are_those_of_subscribe_and_a_resumed_stream_begins_whole() -> None:
    """Only the changes of a book come; who resumes has a base before the next change."""
    books = [
        b'{"type":"orderbook_update","stock_code":"A","bids":[%b],"asks":[],'
        b'"timestamp":"2026-01-02T03:04:05.678Z"}'
        % b",".join(
            b'{"price":%d,"quantity":%d}' % (100 - n, n + 1 + (n == first)) for n in range(40)
        )
        for first in range(4)
    ]
    async with running_server(flush_interval_ms=0) as server:
        async with streaming(server, "stock:A", query="&delta=true") as client:
            await subscribed(client)
            for book in books[:2]:
                publish(server, "stock:A:orderbook", book)
            received = [await client.message() for _ in range(2)]
            assert [one["type"] for one in received] == ["orderbook_update", "orderbook_delta"]
            assert len(received[1]["bids"]) == 2
            cursor = client.last_id
        publish(server, "stock:A:orderbook", books[2])
        async with streaming(server, "stock:A", query="&delta=true", cursor=cursor) as client:
            await subscribed(client)
            assert (await client.message())["type"] == "orderbook_update"
            publish(server, "stock:A:orderbook", books[3])
            message = await client.message()
            assert (message["type"], message["sequence"]) == ("orderbook_delta", 4)
            cursor = client.last_id
        # With the cursor, a base comes with the next change; without one, at once.
        async with streaming(server, "stock:A", query="&delta=true", cursor=cursor) as client:
            await subscribed(client)
            publish(server, "stock:A:orderbook", books[0])
            message = await client.message()
            assert (message["type"], message["sequence"]) == ("orderbook_update", 5)
        async with streaming(server, "stock:A", query="&delta=true") as client:
            await subscribed(client)
            message = await client.message()
            assert (message["type"], message["snapshot"]) == ("orderbook_update", True)
            publish(server, "stock:A:orderbook", books[1])
            message = await client.message()
            assert (message["type"], message["sequence"]) == ("orderbook_delta", 6)


# Heartbeat


async def test_comments_keep_a_quiet_stream_open(mock_clock: MockClock) -> None:
    """One within 25 s; the client answers none, and stays."""
    async with running_server() as server, streaming(server, "stock:A") as client:
        await subscribed(client)
        for comments in range(1, 5):
            mock_clock.jump(25)
            while client.comments < comments:
                assert await client.more()
                assert client.take() == []
        mock_clock.jump(11)
        publish(server, "stock:A:price", price("A", 1))
        assert (await client.message())["price"] == 1


async def test_a_client_that_does_not_read_is_cut_by_the_heartbeat(mock_clock: MockClock) -> None:
    """Its system acknowledges nothing more when its buffers are full; a neighbour stays."""
    async with (
        running_server(flush_interval_ms=0) as server,
        streaming(server, "stock:B") as neighbour,
    ):
        async with streaming(server, "stock:A") as client:
            await subscribed(client)
            number = 0
            while not server.hub.statistics().blocked_clients:
                publish(server, "stock:A:price", price("A", number, pad="x" * 100_000))
                number += 1
                await trio.lowlevel.checkpoint()
            mock_clock.jump(25)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(11)
            await eventually(lambda: server.statistics().active_connections == 1)
        publish(server, "stock:B:price", price("B", 1))
        await subscribed(neighbour)
        assert (await neighbour.message())["price"] == 1


async def test_an_acknowledgement_is_a_sign_of_life() -> None:
    """The system of a client acknowledges what arrives, though the client sends nothing."""
    async with running_server() as server, streaming(server, "stock:A") as client:
        await subscribed(client)
        stream = the_stream(server)
        assert not stream.is_silent_since(trio.current_time() - 3600)
        assert stream.is_silent_since(trio.current_time() + 3600)
        before = trio.current_time()
        stream.ping()
        await client.more()
        await eventually(lambda: not stream.is_silent_since(before))
        assert stream.info().idle_seconds < 3600
        assert stream.info().transport == "http"


def test_a_closed_socket_has_no_last_acknowledgement() -> None:
    """Nor one that is no TCP connection."""
    one, two = trio.socket.socketpair()
    with one, two:
        assert seconds_since_acknowledged(one) is None
    assert seconds_since_acknowledged(one) is None


# Ends


async def test_a_stopping_server_says_when_to_come_back() -> None:
    """After all that was published, with a delay that browsers obey; then the stream ends."""
    async with (
        running_server(drain_min_retry_ms=1234) as server,
        streaming(server, "stock:A") as client,
    ):
        await subscribed(client)
        publish(server, "stock:A:price", price("A", 1))
        server.shutdown()
        assert (await client.message())["price"] == 1
        shutdown = await client.message_type("server_shutdown")
        assert shutdown["retry_after_ms"] == client.retry_ms
        assert shutdown["retry_after_ms"] >= 1234
        closed = await client.message_type("closed")
        assert (closed["code"], closed["reason"]) == (1001, "server shutting down")
        assert await client.rest() == []


async def test_in_mode_all_too_slow_is_the_end_and_the_rest_comes_later() -> None:
    """4008 in the last event; who resumes is sent what it had not received."""
    async with running_server(max_outbound_bytes=100_000, flush_interval_ms=0) as server:
        async with streaming(server, "stock:A", query="&mode=all") as client:
            await subscribed(client)
            number = 0
            stream = the_stream(server)
            while not stream.is_ending:
                number += 1
                publish(server, "stock:A:price", price("A", number, pad="x" * 20_000))
                await trio.lowlevel.checkpoint()
            messages = await client.rest()
            cursor = client.last_id
        assert (messages[-1]["type"], messages[-1]["code"]) == ("closed", 4008)
        received = [message["price"] for message in messages[:-1]]
        async with streaming(server, "stock:A", query="&mode=all", cursor=cursor) as client:
            await subscribed(client)
            received += [(await client.message())["price"] for _ in range(number - len(received))]
        assert received == list(range(1, number + 1))


async def test_a_slow_client_in_mode_latest_gets_the_newest() -> None:
    """Merged while it does not read, in order, and up to date in the end."""
    async with (
        running_server(flush_interval_ms=0) as server,
        streaming(server, "stock:A") as client,
    ):
        await subscribed(client)
        published = 0
        while server.statistics().messages_conflated < 100:
            published += 1
            publish(server, "stock:A:price", price("A", published, pad="x" * 20_000))
            await trio.lowlevel.checkpoint()
        position = 0
        while position < published:
            message = await client.message()
            assert message.get("previous", message["sequence"] - 1) == position
            position = message["sequence"]


async def test_a_token_that_ends_is_the_end_of_the_stream(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    """A warning before it, a grace, an error, and 4001 in the last event."""
    settings = {"auth": "required", "auth_secret_file": secret_file(tmp_path)}
    token = signed(exp=int(time.time()) + 300)
    async with running_server(**settings, heartbeat_interval_seconds=3600) as server:
        headers = {"Authorization": f"Bearer {token}"}
        async with streaming(server, "stock:A", headers=headers) as client:
            await subscribed(client, "stock", "user")
            mock_clock.jump(200)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(75)
            expiring = await client.message_type("token_expiring")
            assert 20 < expiring["expires_in"] <= 101
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(60)
            error = await client.message_type("error")
            assert error["code"] == "TOKEN_EXPIRED"
            assert (await client.message_type("closed"))["code"] == 4001
            assert await client.rest() == []


async def test_a_client_that_sends_on_and_on_is_cut() -> None:
    """There is nothing to be said after a request."""
    async with running_server() as server, streaming(server, "stock:A") as client:
        await subscribed(client)
        assert isinstance(client.stream, trio.SocketStream)
        with suppress(trio.BrokenResourceError):
            for _ in range(100):
                await client.stream.send_all(b"x" * 10_000)
        await eventually(lambda: server.statistics().active_connections == 0)


async def test_an_old_http_version_is_served_too() -> None:
    """A default nginx speaks 1.0 to its upstreams: so nothing is chunked."""
    async with running_server() as server:
        async with requested(server, "/v1/stream?topics=stock:A", version="1.0") as client:
            response = await client.head()
            assert response.status == 200
            assert "transfer-encoding" not in response.headers
            await subscribed(client)
        assert (await fetched(server, "/v1/snapshot?topics=stock:A", version="1.0")).status == 200


async def test_streams_are_served_over_tls(tmp_path: Path) -> None:
    """With its end, and resumption, as over TCP alone."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(key)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    options: dict[str, Any] = {"ssl_context": trusting}
    async with running_server(tls_certificate=chain, tls_key=key) as server:
        async with streaming(server, "stock:A", **options) as client:
            await subscribed(client)
            publish(server, "stock:A:price", price("A", 1))
            await client.message()
            cursor = client.last_id
        publish(server, "stock:A:price", price("A", 2))
        async with streaming(server, "stock:A", cursor=cursor, **options) as client:
            await subscribed(client)
            assert (await client.message())["price"] == 2
            server.shutdown()
            assert [one["type"] for one in await client.rest()] == ["server_shutdown", "closed"]
