"""The client over real sockets: its messages, its requests and its end.

Covers streamer.client.connection, streamer.client.endings, streamer.client.errors and
streamer.client.requests.
"""

from decimal import Decimal
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from streamer.client import (
    Client,
    ClosedError,
    ConnectError,
    DecodeError,
    Error,
    Event,
    Fault,
    Kind,
    MarketStatus,
    OrderbookUpdate,
    PriceUpdate,
    RequestError,
    SubscriptionRejectedError,
    Topic,
    Violation,
    open_client,
)
from streamer.protocol.errors import ErrorCode
from streamer.protocol.messages import MarketPhase
from streamer.server import Server
from tests.client.conftest import Line, Peer, Serve
from tests.helpers.timing import eventually

STOCK = Topic.parse("stock:005930")


def publish_price(server: Server, price: object, code: str = "005930", **members: Any) -> None:
    """Publish a price of a stock, with the number as it is written."""
    assert server.bus is not None
    extra = "".join(f',"{name}":{value}' for name, value in members.items())
    text = f'{{"stock_code":"{code}","price":{price},"change":-1.50,"change_percent":0,"volume":1'
    server.bus.publish(f"stock:{code}:price", f"{text}{extra}}}".encode())


def publish_orderbook(server: Server) -> None:
    """Publish an order book of stock 005930."""
    assert server.bus is not None
    book = b'{"stock_code":"005930","bids":[{"price":9.90,"quantity":2,"orders":1}],"asks":[]}'
    server.bus.publish("stock:005930:orderbook", book)


async def receive(client: Client, count: int) -> list[Event]:
    """Receive a number of messages."""
    return [await client.receive() for _ in range(count)]


async def test_messages_arrive_typed_with_every_digit_and_in_order(server: Server) -> None:
    """Numbers are Decimal with the producer's digits; other members and the text are kept."""
    async with open_client(server.websocket_url) as client:
        await client.subscribe([STOCK, "market:KOSPI"])
        publish_price(server, "72500.10", currency='"KRW"', ratio="1.50")
        publish_orderbook(server)
        assert server.bus is not None
        server.bus.publish("market:KOSPI:status", b'{"market":"KOSPI","status":"open"}')
        price, book, status = await receive(client, 3)
        assert isinstance(price, PriceUpdate)
        assert (price.topic, price.sequence, price.snapshot) == (STOCK, 1, False)
        assert str(price.price) == "72500.10"
        assert str(price.change) == "-1.50"
        assert price.extra == {"currency": "KRW", "ratio": Decimal("1.50")}
        assert str(price.extra["ratio"]) == "1.50"
        assert '"price":72500.10,' in price.text
        assert isinstance(book, OrderbookUpdate)
        assert (str(book.bids[0].price), book.bids[0].orders, book.asks) == ("9.90", 1, ())
        assert isinstance(status, MarketStatus)
        assert (status.topic, status.status) == (Topic.parse("market:KOSPI"), MarketPhase.OPEN)
        assert client.account().violations == 0


async def test_batches_are_unpacked(start_server: Serve) -> None:
    """The messages of a batch are received one by one, each with its own text."""
    server = await start_server(flush_interval_ms=10.0)
    async with open_client(server.websocket_url) as client:
        await client.subscribe([STOCK])
        for number in range(50):
            publish_price(server, number)
        prices = []
        async for message in client:
            assert isinstance(message, PriceUpdate)
            assert f'"price":{message.price},' in message.text
            prices.append(int(message.price))
            if len(prices) == 50:
                break
    assert prices == list(range(50))
    assert server.statistics().batching.batches > 0


async def test_the_last_known_value_comes_as_a_snapshot_unless_unwanted(server: Server) -> None:
    """It is marked as a snapshot."""
    async with open_client(server.websocket_url) as first:
        await first.subscribe([STOCK])
        publish_price(server, 1)
        await first.receive()
        async with open_client(server.websocket_url) as second:
            await second.subscribe([STOCK])
            message = await second.receive()
            assert isinstance(message, PriceUpdate)
            assert message.snapshot
            assert second.account().snapshots == 1
            assert second.position(STOCK) == first.position("stock:005930")
        async with open_client(server.websocket_url) as third:
            await third.subscribe([STOCK], snapshot=False)
            publish_price(server, 2)
            message = await third.receive()
            assert isinstance(message, PriceUpdate)
            assert not message.snapshot


async def test_only_the_kinds_wanted_arrive_and_that_is_no_hole(server: Server) -> None:
    """`previous` names the message that it follows; the account counts the ones left out."""
    async with open_client(server.websocket_url) as client:
        await client.subscribe([STOCK], kinds=[Kind.PRICE], mode="all")
        for number in range(3):
            publish_orderbook(server)
            publish_price(server, number)
        messages = await receive(client, 3)
        assert all(isinstance(message, PriceUpdate) for message in messages)
        account = client.account()
        assert (account.violations, account.merged) == (0, 3)


async def test_max_rate_merges_and_says_so(server: Server) -> None:
    """The newest message arrives, and `previous` says which one it follows."""
    async with open_client(server.websocket_url) as client:
        await client.subscribe([STOCK], max_rate=20.0)
        publish_price(server, 0)
        await client.receive()
        for number in range(1, 5):
            publish_price(server, number)
        message = await client.receive()
        assert isinstance(message, PriceUpdate)
        assert (int(message.price), message.previous) == (4, 1)
        assert client.account().merged == 3


async def test_unsubscribing_ends_the_stream(server: Server) -> None:
    """The server ends the subscription, and no message of the topic arrives any more."""
    async with open_client(server.websocket_url) as client:
        await client.subscribe([STOCK, "stock:000660"])
        await client.unsubscribe([STOCK])
        publish_price(server, 1)
        publish_price(server, 2, code="000660")
        message = await client.receive()
        assert isinstance(message, PriceUpdate)
        assert message.stock_code == "000660"
        assert server.statistics().subscriptions == 1
        assert client.statistics().subscriptions == 1


async def test_requests_keep_to_the_servers_limits(start_server: Serve) -> None:
    """Topics beyond the limit of one request take several requests."""
    server = await start_server(max_targets_per_request=2)
    async with open_client(server.websocket_url) as client:
        topics = [f"stock:{number}" for number in range(5)]
        await client.subscribe([*topics, "market:KOSPI"])
        assert server.statistics().subscriptions == 6
        await client.unsubscribe(topics)
        assert server.statistics().subscriptions == 1


async def test_rejected_targets_are_named_and_the_others_held(start_server: Serve) -> None:
    """The error has the rejected topics and the reasons."""
    server = await start_server(max_subscriptions=2)
    async with open_client(server.websocket_url) as client:
        with pytest.raises(
            SubscriptionRejectedError, match=r"stock:3 rejected: .* at most 2"
        ) as info:
            await client.subscribe(["stock:1", "stock:2", "stock:3"])
        ((_, rejected),) = info.value.rejected
        assert rejected.code is ErrorCode.SUBSCRIPTION_LIMIT_EXCEEDED
        assert client.statistics().subscriptions == 2


async def test_a_refused_request_is_an_error_of_its_own(start_server: Serve) -> None:
    """An error without request_id, as over the rate limit, belongs to the first open request."""
    server = await start_server(rate_limit=0.001, rate_limit_burst=1)
    async with open_client(server.websocket_url) as client:
        await client.subscribe([STOCK])
        with pytest.raises(RequestError, match="RATE_LIMIT_EXCEEDED") as info:
            await client.subscribe(["stock:000660"])
        assert info.value.code is ErrorCode.RATE_LIMIT_EXCEEDED
        assert info.value.details is not None


async def test_what_no_server_would_take_is_not_sent(server: Server) -> None:
    """An invalid topic, an unknown kind and contradicting options are a ValueError."""
    async with open_client(server.websocket_url) as client:
        with pytest.raises(ValueError, match="not TYPE:TARGET"):
            await client.subscribe(["005930"])
        with pytest.raises(ValueError, match="kinds of market are status"):
            await client.subscribe([STOCK, "market:KOSPI"], kinds=["price"])
        with pytest.raises(ValueError, match="mode all forbids"):
            await client.subscribe([STOCK], max_rate=1.0, mode="all")
        assert server.statistics().messages_received == 0


async def test_a_client_that_is_not_consumed_is_not_read_for(server: Server) -> None:
    """Its buffer is bounded, so the server merges; the newest message arrives without a hole."""
    async with open_client(server.websocket_url, buffer_messages=10) as client:
        await client.subscribe([STOCK])
        filler = '"' + "x" * 100_000 + '"'
        number = 0
        while not server.statistics().messages_conflated:
            number += 1
            publish_price(server, number, filler=filler)
            await trio.lowlevel.checkpoint()
        assert client.statistics().buffered_messages <= 10 + 1
        newest = 0
        while newest < number:
            message = await client.receive()
            assert isinstance(message, PriceUpdate)
            newest = int(message.price)
        account = client.account()
        assert account.violations == 0
        assert account.received + account.merged == number
        assert account.merged > 0


async def test_an_answer_is_read_though_the_buffer_is_full(server: Server) -> None:
    """Otherwise a request made between two messages would wait for ever."""
    async with open_client(server.websocket_url, buffer_messages=1) as client:
        await client.subscribe([STOCK])
        for number in range(20):
            publish_price(server, number)
        await client.receive()
        await client.subscribe(["market:KOSPI"])
        assert len(await receive(client, 19)) == 19


async def test_giving_up_a_request_leaves_the_client_whole(server: Server) -> None:
    """The answer to a cancelled request is dropped; the next request gets its own answer."""
    async with open_client(server.websocket_url) as client:
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.subscribe([STOCK])
        await client.subscribe(["market:KOSPI"])
        await client.unsubscribe([STOCK])
        assert server.statistics().subscriptions == 1


async def test_nothing_remains_when_the_block_ends(peer: Peer) -> None:
    """The connection is closed with 1000."""
    codes: list[int] = []

    async def script(line: Line) -> None:
        await line.greet()
        codes.append(await line.wait_closed())

    async with open_client(await peer(script)) as client:
        with pytest.raises(trio.WouldBlock):
            client.receive_nowait()
        assert client.statistics().connected
    await eventually(lambda: codes == [1000])


async def test_an_error_leaves_the_block_as_it_is(server: Server) -> None:
    """It is not in a group, and has its cause."""
    cause = ZeroDivisionError()

    async def use() -> None:
        async with open_client(server.websocket_url):
            raise KeyError from cause

    with pytest.raises(KeyError) as info:
        await use()
    assert info.value.__cause__ is cause


async def test_breaches_are_told_as_they_are_found(peer: Peer) -> None:
    """They are in the account too."""

    async def script(line: Line) -> None:
        await line.greet()
        await line.accept_subscription(sequence=5)
        await line.price(7)
        await line.wait_closed()

    told: list[Violation] = []
    async with open_client(await peer(script), on_violation=told.append) as client:
        await client.subscribe([STOCK])
        await client.receive()
        assert [violation.fault for violation in told] == [Fault.HOLE]
        assert client.account().violations == 1


async def test_errors_that_answer_nothing_are_handed_out(peer: Peer) -> None:
    """Unknown messages and answers to no open request are ignored."""

    async def script(line: Line) -> None:
        await line.greet()
        await line.say("of a later version")
        await line.say("pong")
        await line.say("error", code="INTERNAL_ERROR", message="late", request_id=77)
        await line.say("error", code="INTERNAL_ERROR", message="ours")
        await line.wait_closed()

    async with open_client(await peer(script)) as client:
        message = await client.receive()
        assert isinstance(message, Error)
        assert message.message == "ours"
        assert '"ours"' in message.text


@pytest.mark.parametrize("garbage", ["{", b"{}", '{"messages":1}'])
async def test_text_that_is_no_message_is_skipped_and_counted(
    garbage: str | bytes, peer: Peer
) -> None:
    """The client continues; the violation is in the account."""

    async def script(line: Line) -> None:
        await line.greet()
        await line.accept_subscription()
        await line.price(1)
        await line.send(garbage)
        await line.price(2)
        await line.wait_closed()

    async with open_client(await peer(script)) as client:
        await client.subscribe([STOCK])
        assert [message.sequence for message in await receive(client, 2)] == [1, 2]  # type: ignore[union-attr]
        account = client.account()
        assert (account.unreadable, account.faults) == (1, {Fault.NO_MESSAGE: 1})
        assert "skipped as unreadable 1 (last: " in str(account)


UNREADABLE_VALUES = ["1E-99999999999999999999", "1E-30000000", "[" * 1000 + "]" * 1000]


@pytest.mark.parametrize("value", UNREADABLE_VALUES)
async def test_a_publication_that_cannot_be_read_is_skipped_with_its_position(
    value: str, peer: Peer
) -> None:
    """The stream continues after it, live and as a snapshot, without a hole."""

    async def script(line: Line) -> None:
        await line.greet()
        await line.accept_subscription(sequence=1)
        price = '{"type":"price_update","stock_code":"005930","sequence":%d,"more":%s%s}'
        await line.send(price % (1, value, ',"snapshot":true'))
        await line.send(price % (2, value, ""))
        await line.price(3)
        await line.wait_closed()

    async with open_client(await peer(script)) as client:
        await client.subscribe([STOCK])
        message = await client.receive()
        assert isinstance(message, PriceUpdate)
        assert message.sequence == 3
        account = client.account()
        assert (account.received, account.unreadable, account.violations) == (1, 2, 0)


async def test_an_answer_that_cannot_be_read_is_an_error_of_its_request(peer: Peer) -> None:
    """The request raises DecodeError; the client continues."""

    async def script(line: Line) -> None:
        await line.greet()
        request = await line.hear()
        await line.say("subscribed", targets=1, request_id=request["request_id"])
        await line.accept_subscription()
        request = await line.hear()
        await line.say("pong", request_id=request["request_id"])
        await line.wait_closed()

    async with open_client(await peer(script)) as client:
        with pytest.raises(DecodeError, match="the answer to subscribe cannot be read: "):
            await client.subscribe([STOCK])
        await client.subscribe([STOCK])
        with pytest.raises(DecodeError, match="the answer to unsubscribe cannot be read: it is po"):
            await client.unsubscribe([STOCK])
        assert client.statistics().connected


async def test_limits_and_intervals_without_sense_do_no_harm(peer: Peer) -> None:
    """The client uses the defaults instead."""

    async def script(line: Line) -> None:
        await line.greet(heartbeat_interval=-1, limits={"max_targets_per_request": 0})
        await line.accept_subscription()
        await line.wait_closed()

    async with open_client(await peer(script)) as client:
        await client.subscribe([STOCK])
        assert client.statistics().subscriptions == 1


async def test_a_request_under_way_when_the_client_ends_ends_with_it(peer: Peer) -> None:
    """The request raises the error that ends the client."""

    async def script(line: Line) -> None:
        await line.greet()
        await line.hear()
        await line.close(1008, "abuse")

    async with open_client(await peer(script)) as client:
        with pytest.raises(ClosedError, match=r"abuse \(1008\)"):
            await client.subscribe([STOCK])


# How the first connection can fail


async def fails(url: str, error: type[Exception], match: str, **options: Any) -> None:
    """Expect that no client can be opened."""
    with pytest.raises(error, match=match):
        async with open_client(url, **options):
            pytest.fail("connected")


async def test_a_server_that_is_not_there_is_an_error() -> None:
    """It is an error for the first connection; later the client waits for the server."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    url = f"ws://127.0.0.1:{port}/v1/ws"
    await fails(url, ConnectError, f"cannot connect to {url}: Connection refused")


async def test_what_is_no_streamer_is_an_error(server: Server, peer: Peer) -> None:
    """Another path, a refusal, another protocol and an unknown close code raise an error."""
    await fails(server.websocket_url + "/x", ConnectError, "HTTP status 404")
    await fails(await peer(lambda line: line.reject(503)), ConnectError, "HTTP status 503")
    await fails(await peer(lambda line: line.say("hello")), DecodeError, "no `connected`")
    await fails(await peer(lambda line: line.close(4000, "why")), ConnectError, "why")
    await fails("http://127.0.0.1", ValueError, "ws")


async def test_a_server_that_says_nothing_is_given_up(
    mock_clock: MockClock, nursery: trio.Nursery, peer: Peer
) -> None:
    """The handshake and the greeting have a deadline."""

    async def keep_silent(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        mock_clock.jump(10)
        await trio.sleep_forever()

    (listener,) = await nursery.start(partial(trio.serve_tcp, keep_silent, 0, host="127.0.0.1"))
    silent = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
    await fails(silent, ConnectError, "no answer within 10 s", connect_timeout_seconds=10)

    async def accept_only(line: Line) -> None:
        await line.socket()
        await wait_all_tasks_blocked()
        mock_clock.jump(10)
        await line.wait_closed()

    url = await peer(accept_only)
    await fails(url, ConnectError, "no greeting within 10 s", connect_timeout_seconds=10)


async def test_a_server_that_takes_no_more_clients_is_an_error(start_server: Serve) -> None:
    """1013, whose reason says whether the server or the address is full."""
    server = await start_server(max_connections_per_address=1)
    async with open_client(server.websocket_url):
        await fails(server.websocket_url, ConnectError, "from this address")
    server = await start_server(max_connections=1)
    async with open_client(server.websocket_url):
        await fails(server.websocket_url, ConnectError, "too many connections")
