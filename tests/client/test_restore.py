"""Reconnecting: missed messages are restored, or a gap is announced."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from streamer.client import (
    Backoff,
    Client,
    ClientError,
    ClosedError,
    ConnectError,
    Error,
    Gap,
    PriceUpdate,
    RequestError,
    SubscriptionRejectedError,
    Topic,
    open_client,
)
from streamer.client.endings import Ending
from streamer.edge.session import Session
from streamer.hub.sessions import record_session
from streamer.protocol import errors
from streamer.protocol.messages import GapReason, Position
from streamer.server import Server
from tests.client.conftest import Line, Peer, Serve
from tests.helpers.timing import eventually

STOCK = Topic.parse("stock:005930")
START = Position("e", 0)
TOPICS = ["stock:005930", "stock:000660", "market:KOSPI"]


def at_once() -> Backoff:
    """Return a backoff without delays."""
    return Backoff(first_seconds=0.0)


def publish(server: Server, price: int, code: str = "005930") -> None:
    """Publish a price of a stock."""
    assert server.bus is not None
    text = f'{{"stock_code":"{code}","price":{price},"change":0,"change_percent":0,"volume":1}}'
    server.bus.publish(f"stock:{code}:price", text.encode())


def cut(server: Server) -> None:
    """Cut all connections without a close frame."""
    for session in list(server._acceptor.sessions.values()):
        session.give_up()


def close(server: Server, reason: errors.CloseReason) -> None:
    """Close all connections with a code."""
    for session in list(server._acceptor.sessions.values()):
        session.end(reason)


async def prices(client: Client, count: int) -> list[int]:
    """Return the next prices; no other message may come between them."""
    received = []
    for _ in range(count):
        message = await client.receive()
        assert isinstance(message, PriceUpdate), message
        assert not message.snapshot
        received.append(int(message.price))
    return received


def only_session(server: Server) -> Session:
    """Return the one WebSocket session of a server."""
    (session,) = server._acceptor.sessions.values()
    assert isinstance(session, Session)
    return session


async def lose_and_miss(
    server: Server, client: Client, count: int, *, connections: int = 2
) -> None:
    """Cut the connection of an up-to-date client, and publish before it is back."""
    cut(server)
    await eventually(lambda: not server._acceptor.sessions)
    for number in range(count):
        publish(server, 100 + number)
    await eventually(lambda: client.statistics().connections == connections)


@pytest.mark.parametrize("lifetime_seconds", [300.0, 0.0])
async def test_what_was_missed_follows_in_order(
    lifetime_seconds: float, start_server: Serve
) -> None:
    """They follow from the session, and where that has expired from the client's positions."""
    server = await start_server(session_lifetime_seconds=lifetime_seconds)
    async with open_client(server.websocket_url, backoff=at_once()) as client:
        await client.subscribe(TOPICS)
        first_session_id = client.statistics().session_id
        publish(server, 1)
        assert await prices(client, 1) == [1]
        await lose_and_miss(server, client, 3)
        assert await prices(client, 3) == [100, 101, 102]
        publish(server, 2)
        assert await prices(client, 1) == [2]
        account = client.account()
        assert (account.violations, account.gaps, account.outstanding) == (0, {}, 0)
        await eventually(lambda: server.statistics().subscriptions == len(TOPICS))
        assert client.statistics().session_id != first_session_id


async def test_options_are_restored_too(start_server: Serve) -> None:
    """Without a session, the client sends the options again."""
    server = await start_server(session_lifetime_seconds=0.0)
    async with open_client(server.websocket_url, backoff=at_once()) as client:
        await client.subscribe([STOCK], kinds=["price"])
        await client.subscribe(["market:KOSPI"])
        await lose_and_miss(server, client, 1)
        assert await prices(client, 1) == [100]
        assert server.bus is not None
        server.bus.publish("stock:005930:orderbook", b'{"stock_code":"005930","bids":[],"asks":[]}')
        publish(server, 2)
        assert await prices(client, 1) == [2]
        assert client.account().violations == 0


@pytest.mark.parametrize("lifetime_seconds", [300.0, 0.0])
async def test_everything_that_a_client_asked_for_holds_after_a_reconnect(
    lifetime_seconds: float, start_server: Serve
) -> None:
    """From the session, and without one: options of subscriptions, and of the connection."""
    server = await start_server(session_lifetime_seconds=lifetime_seconds)
    async with open_client(server.websocket_url, backoff=at_once(), max_bandwidth=2000) as client:
        await client.limit_bandwidth(1_000_000)
        await client.subscribe([STOCK], kinds=["orderbook"], max_rate=50.0, delta=True, depth=5)
        await client.subscribe(["stock:000660"], mode="all")
        before = record_session(only_session(server).outbox)
        for connections in (2, 3):
            await lose_and_miss(server, client, 1, connections=connections)
            await eventually(lambda: only_session(server).outbox.bandwidth is not None)
            await client.subscribe(["market:KOSPI"])  # answered after everything is restored
            await client.unsubscribe(["market:KOSPI"])
            after = record_session(only_session(server).outbox)
            assert after.max_bandwidth == before.max_bandwidth == 1_000_000
            assert [attrs.evolve(held, confirmed=START) for held in after.subscriptions] == [
                attrs.evolve(held, confirmed=START) for held in before.subscriptions
            ]
        assert client.account().violations == 0
        await client.limit_bandwidth(0)
        await lose_and_miss(server, client, 1, connections=4)
        await client.subscribe(["market:KOSPI"])
        assert only_session(server).outbox.bandwidth is None


def test_a_bandwidth_that_no_server_accepts_is_refused() -> None:
    """Before any connection is made."""

    async def connect() -> None:
        async with open_client("ws://127.0.0.1:1/v1/ws", max_bandwidth=1):
            pass

    with pytest.raises(ValueError, match="max_bandwidth"):
        trio.run(connect)


async def test_what_cannot_be_restored_is_a_gap(start_server: Serve) -> None:
    """A gap is announced where more was missed than the server keeps; a snapshot follows."""
    server = await start_server(history_length=2)
    async with open_client(server.websocket_url, backoff=at_once()) as client:
        await client.subscribe([STOCK])
        publish(server, 1)
        assert await prices(client, 1) == [1]
        await lose_and_miss(server, client, 5)
        gap = await client.receive()
        assert isinstance(gap, Gap)
        assert (gap.topic, gap.reason, gap.sequence) == (STOCK, GapReason.HISTORY_EXPIRED, 6)
        assert '"type":"gap"' in gap.text
        snapshot = await client.receive()
        assert isinstance(snapshot, PriceUpdate)
        assert snapshot.snapshot
        publish(server, 2)
        assert await prices(client, 1) == [2]
        account = client.account()
        assert (account.violations, account.gaps) == (0, {GapReason.HISTORY_EXPIRED: 1})


async def test_a_server_that_begins_anew_is_a_gap(
    nursery: trio.Nursery, start_server: Serve
) -> None:
    """The client waits until there is a server again; its history is lost, which is a gap."""
    server = await start_server(drain_min_retry_ms=0, drain_spread_ms_per_client=0.0)
    port = int(server.websocket_url.rsplit(":", 1)[1].split("/")[0])
    async with open_client(server.websocket_url, backoff=at_once()) as client:
        await client.subscribe([STOCK])
        publish(server, 1)
        assert await prices(client, 1) == [1]
        server.shutdown()
        await eventually(lambda: "refused" in (client.statistics().last_problem or ""))
        assert not client.statistics().connected
        server = await start_server(port=port)
        gap = await client.receive()
        assert isinstance(gap, Gap)
        publish(server, 2)
        assert await prices(client, 1) == [2]
        assert client.account().violations == 0


async def test_requests_wait_for_the_connection(server: Server) -> None:
    """A request that was cut off is sent again; unsubscribed topics stay unsubscribed."""
    async with open_client(server.websocket_url, backoff=at_once()) as client:
        await client.subscribe(TOPICS)
        cut(server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.unsubscribe, ["stock:000660"])
            nursery.start_soon(client.subscribe, ["sector:chips"])
        assert client.statistics().subscriptions == len(TOPICS)
        assert client.statistics().connections == 2
        (connection,) = server.connections()
        assert connection.subscriptions == ["market:KOSPI", "sector:chips", "stock:005930"]


async def test_a_connection_that_has_just_ended_is_not_asked(server: Server) -> None:
    """A request in that moment waits for the next connection."""
    async with open_client(server.websocket_url, backoff=at_once()) as client:
        assert client._connection is not None
        client._connection.end(Ending(1013, "overloaded"))
        await client.subscribe([STOCK])
        assert client.statistics().connections == 2


async def test_a_client_that_was_closed_says_so(server: Server) -> None:
    """Pending and later calls raise the error."""
    told: list[str] = []

    async def use(action: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(ClientError, match="has been closed") as info:
            await action()
        told.append(str(info.value))

    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_client(server.websocket_url))
        nursery.start_soon(use, client.receive)
        await trio.testing.wait_all_tasks_blocked()
        cut(server)
        await eventually(lambda: not client.statistics().connected)
        nursery.start_soon(use, partial(client.subscribe, [STOCK]))
        await trio.lowlevel.checkpoint()
    await use(client.receive)
    assert len(told) == 3


async def test_what_a_restored_session_has_too_much_is_given_up(peer: Peer) -> None:
    """A subscription whose answer was lost is unsubscribed from."""
    asked: list[dict[str, Any]] = []

    async def first(line: Line) -> None:
        await line.greet(session_id="s1")
        await line.accept_subscription(sequence=3)
        await line.close(4008)

    async def second(line: Line) -> None:
        await line.greet(session_id="s2")
        asked.append(await line.hear())
        await line.say(
            "reconnected",
            session_id="s2",
            restored_subscriptions={"stock": ["005930", "000660"]},
            missed_messages_count=0,
            recovered=True,
            request_id=asked[-1]["request_id"],
        )
        asked.append(await line.hear())
        await line.say(
            "unsubscribed",
            subscription_type="stock",
            targets=["000660"],
            rejected=[],
            request_id=asked[-1]["request_id"],
        )
        await line.price(4)
        await line.wait_closed()

    async with open_client(await peer(first, second), backoff=at_once()) as client:
        await client.subscribe([STOCK])
        assert await prices(client, 1) == [1]
    reconnect, unsubscribe = asked
    assert (reconnect["type"], reconnect["session_id"]) == ("reconnect", "s1")
    assert reconnect["positions"] == {"stock:005930": {"epoch": "a", "sequence": 3}}
    assert (unsubscribe["type"], unsubscribe["targets"]) == ("unsubscribe", ["000660"])


async def test_more_positions_than_a_message_holds_are_sent_with_the_subscriptions(
    start_server: Serve,
) -> None:
    """The server would close the connection for good on a `reconnect` that is too large."""
    server = await start_server(max_message_bytes=1000, max_targets_per_request=5)
    async with open_client(server.websocket_url, backoff=at_once()) as client:
        await client.subscribe([f"stock:{number:06}" for number in range(20)])
        publish(server, 1, code="000007")
        assert await prices(client, 1) == [1]
        cut(server)
        await eventually(lambda: client.statistics().connections == 2)
        publish(server, 2, code="000007")
        assert await prices(client, 1) == [2]
        assert client.account().violations == 0


async def test_a_subscription_that_is_refused_on_return_ends_the_client(
    nursery: trio.Nursery, start_server: Serve
) -> None:
    """Going on without it would lose its messages unannounced."""
    server = await start_server(drain_min_retry_ms=0, drain_spread_ms_per_client=0.0)
    port = int(server.websocket_url.rsplit(":", 1)[1].split("/")[0])
    async with open_client(server.websocket_url, backoff=at_once()) as client:
        await client.subscribe(TOPICS)
        server.shutdown()
        await eventually(lambda: "refused" in (client.statistics().last_problem or ""))
        await start_server(port=port, max_subscriptions=2)
        gaps = [await client.receive(), await client.receive()]
        assert all(isinstance(gap, Gap) for gap in gaps)
        with pytest.raises(SubscriptionRejectedError, match="market:KOSPI rejected"):
            await client.receive()


@pytest.mark.parametrize("reason", [errors.OVERLOADED, errors.TOO_SLOW, errors.SHUTTING_DOWN])
async def test_codes_that_say_so_are_come_back_from(
    reason: errors.CloseReason, server: Server
) -> None:
    """All subscriptions are restored."""
    async with open_client(server.websocket_url, backoff=at_once()) as client:
        await client.subscribe([STOCK])
        close(server, reason)
        await eventually(lambda: client.statistics().connections == 2)
        assert client.statistics().last_problem == f"{reason.reason} ({reason.code})"
        publish(server, 1)
        assert await prices(client, 1) == [1]


@pytest.mark.parametrize(
    "reason",
    [
        errors.ABUSE,
        errors.TOO_LARGE,
        errors.PROTOCOL_VIOLATION,
        errors.INVALID_UTF8,
        errors.UNAUTHENTICATED,
    ],
)
async def test_codes_that_forbid_it_are_not_come_back_from(
    reason: errors.CloseReason, server: Server
) -> None:
    """Messages that have arrived are received first; with 4001, the client has no new token."""
    async with open_client(server.websocket_url, backoff=at_once()) as client:
        await client.subscribe([STOCK])
        publish(server, 1)
        await eventually(lambda: client.statistics().buffered_messages == 1)
        close(server, reason)
        assert await prices(client, 1) == [1]
        with pytest.raises(ClosedError) as info:
            await client.receive()
        assert (info.value.code, info.value.reason) == (reason.code, reason.reason)
        assert client.statistics().connections == 1


async def test_a_code_for_an_invalid_token_is_final_with_any_token(peer: Peer) -> None:
    """4500 ends a client that could get a new token; the error before it is received."""

    async def script(line: Line) -> None:
        await line.greet()
        await line.say("error", code="INVALID_TOKEN", message="not signed here")
        await line.close(4500, "token invalid")

    async def token() -> str:
        await trio.lowlevel.checkpoint()
        return "t"

    async with open_client(await peer(script), token=token, backoff=at_once()) as client:
        error = await client.receive()
        assert isinstance(error, Error)
        with pytest.raises(ClosedError, match=r"token invalid \(4500\)"):
            await client.receive()


async def test_a_refusal_instead_of_a_greeting_is_told_by_its_code(peer: Peer) -> None:
    """A server may send `error` and close, instead of `connected`."""

    async def refuse(line: Line) -> None:
        await line.say("error", code="INVALID_TOKEN", message="not signed here")
        await line.close(4500, "token invalid")

    url = await peer(refuse)
    with pytest.raises(ClosedError, match="token invalid"):
        async with open_client(url):
            pytest.fail("connected")


async def test_an_operator_who_says_so_is_obeyed(peer: Peer) -> None:
    """`disconnected` decides whether and when to reconnect after 4003."""

    async def come_back(line: Line) -> None:
        await line.greet()
        await line.say("disconnected", reason="moved", reconnect=True, retry_after_ms=-5)
        await line.close(4003)

    async def unannounced(line: Line) -> None:
        await line.greet()
        await line.close(4003)

    async def stay_away(line: Line) -> None:
        await line.greet()
        await line.say("disconnected", reason="banned", reconnect=False)
        await line.close(4003)

    url = await peer(come_back, unannounced, stay_away)
    async with open_client(url, backoff=at_once()) as client:
        with pytest.raises(ClosedError, match=r"banned \(4003\)"):
            await client.receive()
        assert client.statistics().connections == 3


async def test_a_rate_limit_while_restoring_passes(
    start_server: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests over the limit are repeated until the server accepts them."""
    monkeypatch.setattr("streamer.client.restore._FIRST_RETRY_SECONDS", 0.05)
    server = await start_server(
        rate_limit=4.0,  # so low that even a busy machine asks for more
        rate_limit_burst=3,
        rate_limit_max_violations=1_000_000,
        max_targets_per_request=1,
        session_lifetime_seconds=0.0,
    )
    topics = [f"stock:{number}" for number in range(9)]
    async with open_client(server.websocket_url, backoff=at_once()) as client:
        while client.statistics().subscriptions < len(topics):
            with suppress(RequestError):
                await client.subscribe([topics[client.statistics().subscriptions]])
        publish(server, 1, code="8")
        assert await prices(client, 1) == [1]
        cut(server)
        await eventually(lambda: not server._acceptor.sessions)
        for number in range(3):
            publish(server, 100 + number, code="8")
        assert await prices(client, 3) == [100, 101, 102]
        assert client.statistics().connections == 2
        assert server.statistics().rate_limiting.messages_refused > 0


async def test_other_passing_errors_while_restoring_pass_too(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session and the subscription are asked for again; an unreadable answer is retried too."""
    monkeypatch.setattr("streamer.client.restore._FIRST_RETRY_SECONDS", 0.0)
    asked: list[str] = []

    async def first(line: Line) -> None:
        await line.greet()
        await line.accept_subscription(sequence=3)
        await line.close(1013)

    async def unreadable(line: Line) -> None:
        await line.greet()
        request = await line.hear()
        await line.say("reconnected", recovered="?", request_id=request["request_id"])
        await line.wait_closed()

    async def nonsense(line: Line) -> None:
        await line.say("welcome")
        await line.wait_closed()

    async def last(line: Line) -> None:
        await line.greet()
        for code in ("INTERNAL_ERROR", "SESSION_RESTORATION_FAILED", "RATE_LIMIT_EXCEEDED"):
            request = await line.hear()
            asked.append(request["type"])
            answer = {"code": code, "message": "m"}
            await line.say("error", **answer, request_id=request["request_id"])
        await line.accept_subscription(sequence=3)
        await line.price(4)
        await line.wait_closed()

    url = await peer(first, unreadable, nonsense, last)
    async with open_client(url, backoff=at_once()) as client:
        await client.subscribe([STOCK])
        assert await prices(client, 1) == [1]
        assert client.account().violations == 0
    assert asked == ["reconnect", "reconnect", "subscribe"]


async def test_an_expired_token_is_replaced(peer: Peer) -> None:
    """The token function is called for each connection; no token is in a URL."""
    seen = []

    async def first(line: Line) -> None:
        seen.append((line.path, line.headers[b"authorization"]))
        await line.greet()
        await line.close(4001)

    async def second(line: Line) -> None:
        seen.append((line.path, line.headers[b"authorization"]))
        await line.greet()
        await line.wait_closed()

    tokens = iter(["one", "two"])

    async def next_token() -> str:
        await trio.lowlevel.checkpoint()
        return next(tokens)

    url = await peer(first, second)
    async with open_client(url + "?a=b", token=next_token, backoff=at_once()) as client:
        await eventually(lambda: client.statistics().connections == 2)
    assert seen == [("/v1/ws?a=b", b"Bearer one"), ("/v1/ws?a=b", b"Bearer two")]


async def test_the_servers_delay_goes_before_ones_own(peer: Peer) -> None:
    """The delay of `server_shutdown` is used rather than that of the backoff, which is hours."""

    async def first(line: Line) -> None:
        await line.greet()
        await line.say("server_shutdown", retry_after_ms=1)
        await line.close(1001)

    async def second(line: Line) -> None:
        await line.greet()
        await line.wait_closed()

    slowly = Backoff(first_seconds=1e6, max_seconds=1e6)
    async with open_client(await peer(first, second), backoff=slowly) as client:
        await eventually(lambda: client.statistics().connections == 2)


async def test_leaving_while_away_takes_no_time(peer: Peer) -> None:
    """The block ends at once, though the next attempt is hours away."""

    async def script(line: Line) -> None:
        await line.greet()
        await line.close(1013)

    slowly = Backoff(first_seconds=1e6, max_seconds=1e6)
    async with open_client(await peer(script), backoff=slowly) as client:
        await eventually(lambda: client.statistics().last_problem is not None)


async def test_http_refusals_are_told_apart(peer: Peer) -> None:
    """5xx is retried, 4xx ends the client."""

    async def first(line: Line) -> None:
        await line.greet()
        await line.close(1013)

    url = await peer(first, lambda line: line.reject(503), lambda line: line.reject(403))
    async with open_client(url, backoff=at_once()) as client:
        with pytest.raises(ConnectError, match="HTTP status 403"):
            await client.receive()


async def test_a_server_that_does_not_answer_pings_is_left(peer: Peer) -> None:
    """The server reads nothing, so it answers no ping: the client makes another connection."""

    async def first(line: Line) -> None:
        await line.greet(heartbeat_interval=0.01)
        await trio.sleep_forever()

    async def second(line: Line) -> None:
        await line.greet()
        await line.wait_closed()

    async with open_client(
        await peer(first, second),
        backoff=at_once(),
        pong_timeout_seconds=0.01,
        close_timeout_seconds=0.01,
    ) as client:
        async with trio.open_nursery() as nursery:
            # The message that the peer does not read stops its reader, and so its pongs.
            nursery.start_soon(client.subscribe, [STOCK])
            await eventually(lambda: client.statistics().connections == 2)
            nursery.cancel_scope.cancel()
        assert client.statistics().last_problem == "the server did not answer a ping (1006)"


async def test_a_connection_that_lasted_resets_the_backoff(server: Server) -> None:
    """A connection that ended soon counts as a failure, so the delay grows."""
    backoff = Backoff(first_seconds=0.0, max_seconds=1e6)
    async with open_client(server.websocket_url, backoff=backoff) as client:
        cut(server)
        await eventually(lambda: client.statistics().connections == 2)
        cut(server)
        await eventually(lambda: client.statistics().connections == 3)
        assert backoff.failures == 2
        backoff.max_seconds = 0.0
        cut(server)
        await eventually(lambda: client.statistics().connections == 4)
        assert backoff.failures == 1


async def test_a_client_that_holds_itself_up_does_not_blame_the_server(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    """Pongs are behind messages that it does not read while its buffer is full."""
    caplog.set_level(logging.DEBUG, "trio-websocket")

    async def script(line: Line) -> None:
        await line.greet(heartbeat_interval=0.01)
        await line.accept_subscription()
        for number in range(1, 6):
            await line.price(number)
        await line.wait_closed()

    url = await peer(script)
    async with open_client(url, buffer_messages=1, pong_timeout_seconds=0.5) as client:
        await client.subscribe([STOCK])
        await eventually(
            lambda: caplog.text.count("received event: <class 'wsproto.events.Ping'>") > 3
        )
        assert await prices(client, 5) == [1] * 5
        assert client.statistics().connections == 1
