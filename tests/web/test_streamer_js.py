"""streamer.js in Node, against real servers and a real Redis."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis as redis_py
import trio

from docs.typescript import CLIENT_GAP_REASONS
from streamer.broker.keys import history_key
from streamer.protocol.errors import CLOSE_REASONS
from streamer.protocol.messages import DATA_MESSAGES, DELTA_MESSAGES
from streamer.protocol.topics import KINDS
from streamer.publisher.publisher import open_publisher
from streamer.wire.frames import text_frame
from tests.helpers.proxy import Proxy
from tests.helpers.publications import market_status, orderbook, price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually
from tests.web.driver import node
from tests.web.nodejs import HERE, MODULE, WEB, remote

MAX_GZIPPED_BYTES = 12 * 1024


@pytest.mark.parametrize("script", sorted(HERE.glob("*.test.mjs")), ids=lambda path: path.name)
async def test_the_parts_that_need_no_server(script: Path) -> None:
    """The tests that Node's own runner runs."""
    done = await trio.run_process(
        [str(node()), "--test", "--test-reporter=spec", str(script)],
        capture_stdout=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode()


def test_the_module_is_small() -> None:
    """A page that loads it pays for at most 12 KB."""
    assert len(gzip.compress(MODULE.read_bytes())) <= MAX_GZIPPED_BYTES


def test_the_module_knows_the_topics() -> None:
    """Its tables of kinds and of close codes are the protocol's."""
    source = MODULE.read_text(encoding="utf-8")
    for subscription_type, kinds in KINDS.items():
        assert f"{subscription_type}: {json.dumps(list(kinds))}," in source
    for messages in (DATA_MESSAGES, DELTA_MESSAGES):
        for kind, message in messages.items():
            assert f'{message.type}: "{kind}",' in source
    final = {reason.code for reason in CLOSE_REASONS if reason.client_should == "not reconnect"}
    (listed,) = re.findall(r"FINAL_CODES = new Set\(\[([\d, ]+)\]", source)
    assert {int(code) for code in listed.split(",")} == final


def test_the_types_know_the_gaps_that_the_client_itself_announces() -> None:
    """The client announces gaps of its own where only it knows of them."""
    announced = set(re.findall(r'const reason = "(\w+)"', MODULE.read_text(encoding="utf-8")))
    assert announced == {*CLIENT_GAP_REASONS}
    for reason in announced:
        assert f'| "{reason}"' in (WEB / "streamer.d.ts").read_text(encoding="utf-8")


async def test_every_message_comes_once_with_its_topic_and_batches_unpacked() -> None:
    """First the last known values, then each publication; the account has no violation."""
    async with running_server() as server, remote(server.websocket_url) as client:
        number = await client.subscribe("stock:A", "stock:B", "market:KOSPI", "sector:chips")
        assert await client.ready(number) == []
        for value in range(1, 51):
            publish(server, "stock:A:price", price("A", value))
            publish(server, "stock:A:orderbook", orderbook("A", value))
            publish(server, "stock:B:price", price("B", value))
            publish(server, "sector:chips:price", price("B", value))
            publish(server, "market:KOSPI:status", market_status("KOSPI", "open"))
        received: Counter[tuple[str, str]] = Counter()
        while received.total() < 250:
            message = await client.update()
            assert message["type"] != "batch"
            received[message["topic"], message["type"]] += 1
        assert received == {
            ("stock:A", "price_update"): 50,
            ("stock:A", "orderbook_update"): 50,
            ("stock:B", "price_update"): 50,
            ("sector:chips", "price_update"): 50,
            ("market:KOSPI", "market_status"): 50,
        }
        account = await client.ask("account")
        assert (account["received"], account["violations"]) == (250, 0)
        position = await client.ask("position", topic="stock:A")
        assert position["sequence"] == 100


async def test_nothing_is_missed_over_a_restart(redis_url: str) -> None:
    """The next server sends once the publications of the time without a server."""
    async with running_server(redis=redis_url, drain_min_retry_ms=0) as server:
        port = urlsplit(server.websocket_url).port
        async with (
            remote(server.websocket_url) as client,
            open_publisher(redis_url) as publisher,
        ):
            await publisher.publish("stock:A:price", price("A", 1))
            await client.ready(await client.subscribe("stock:A"))
            assert (await client.update())["price"] == 1
            server.shutdown()
            lost = await client.event("state", lambda value: value.get("code") == 1001)
            assert lost["state"] == "connecting"
            await publisher.publish("stock:A:price", price("A", 2))
            async with running_server(redis=redis_url, port=port):
                message = await client.update()
                assert (message["price"], message["sequence"]) == (2, 2)
                await publisher.publish("stock:A:price", price("A", 3))
                assert (await client.update())["sequence"] == 3
                account = await client.ask("account")
                assert (account["violations"], account["gaps"], account["outstanding"]) == (
                    0,
                    {},
                    0,
                )


async def test_a_client_moves_to_another_instance(redis_url: str) -> None:
    """The session is restored there, with the position that this client names."""
    network = Proxy()
    async with (
        running_server(redis=redis_url) as first,
        running_server(redis=redis_url) as second,
        network.run(),
        open_publisher(redis_url) as publisher,
    ):
        network.server_port = urlsplit(first.websocket_url).port or 0
        async with remote(f"ws://127.0.0.1:{network.port}/v1/ws") as client:
            await client.ready(await client.subscribe("stock:A"))
            await publisher.publish("stock:A:price", price("A", 1))
            assert (await client.update())["sequence"] == 1
            session_id = (await client.ask("look"))["sessionId"]
            network.server_port = urlsplit(second.websocket_url).port or 0
            network.break_off(1)
            await client.event("state", lambda value: value.get("code") == 1006)
            await publisher.publish("stock:A:price", price("A", 2))
            assert (await client.update())["sequence"] == 2
            assert (await client.ask("look"))["sessionId"] != session_id
            assert (await client.ask("account"))["violations"] == 0
            assert second.statistics().subscriptions == 1


async def test_a_gap_is_given_to_the_subscription(redis_url: str, redis: redis_py.Redis) -> None:
    """Where the history does not reach back, the gap comes first, with its topic."""
    async with (
        running_server(redis=redis_url) as server,
        remote(server.websocket_url) as client,
        open_publisher(redis_url) as publisher,
    ):
        port = urlsplit(server.websocket_url).port
        await client.ready(await client.subscribe("stock:A"))
        await publisher.publish("stock:A:price", price("A", 1))
        assert (await client.update())["sequence"] == 1
        await client.do("close")
        assert (await client.state("disconnected"))["code"] == 1000
        server.shutdown()
        for value in range(2, 10):
            await publisher.publish("stock:A:price", price("A", value))
        redis.xtrim(history_key("stock:A"), maxlen=2, approximate=False)
        async with running_server(redis=redis_url, port=port):
            await client.do("connect")
            gap = await client.update()
            assert (gap["type"], gap["topic"]) == ("gap", "stock:A")
            assert gap["reason"] == "history_expired"
            assert (await client.update())["price"] == 9
            account = await client.ask("account")
            assert (account["gaps"], account["violations"]) == ({"history_expired": 1}, 0)


async def test_a_refused_topic_does_not_keep_the_others() -> None:
    """`ready` rejects with it, the error has its topic, and the others flow."""
    async with running_server() as server, remote(server.websocket_url) as client:
        number = await client.subscribe("stock:A", "stock:*")
        assert await client.ready(number) == [["stock:*", "INVALID_TARGET"]]
        error = await client.event("error")
        assert (error["code"], error["topic"]) == ("INVALID_TARGET", "stock:*")
        publish(server, "stock:A:price", price("A", 1))
        assert (await client.update(number))["topic"] == "stock:A"


async def test_a_refused_topic_is_asked_for_again() -> None:
    """Another subscription to it gets an answer, too: what stood in its way may have ended."""
    async with (
        running_server(max_subscriptions=1) as server,
        remote(server.websocket_url) as client,
    ):
        first = await client.subscribe("stock:A")
        assert await client.ready(first) == []
        assert await client.ready(await client.subscribe("stock:B")) != []
        assert await client.ready(await client.subscribe("stock:B")) != []
        await client.do("unsubscribe", id=first)
        last = await client.subscribe("stock:B")
        assert await client.ready(last) == []
        publish(server, "stock:B:price", price("B", 1))
        assert (await client.update(last))["price"] == 1


async def test_numbers_keep_their_digits_on_request() -> None:
    """Beyond 2**53 and with zeros at the end; what the client counts with are numbers."""
    async with running_server() as server, remote(server.websocket_url, numbers="text") as client:
        await client.ready(await client.subscribe("stock:A"))
        text = (
            b'{"type":"price_update","stock_code":"A","price":72500.10,"change":-0.0,'
            b'"change_percent":1e-3,"volume":9007199254740993,"more":{"deep":[1.50]}}'
        )
        publish(server, "stock:A:price", text)
        message = await client.update()
        assert message["price"] == "72500.10"
        assert message["volume"] == "9007199254740993"
        assert (message["change"], message["change_percent"]) == ("-0.0", "1e-3")
        assert message["more"] == {"deep": ["1.50"]}
        assert message["sequence"] == 1


async def test_subscriptions_share_a_topic() -> None:
    """The server gets the widest options; each gets its own kinds, and what came before it."""
    async with running_server() as server, remote(server.websocket_url) as client:
        prices = await client.subscribe("stock:A", kinds=["price"])
        await client.ready(prices)
        publish(server, "stock:A:orderbook", orderbook("A", 1))
        publish(server, "stock:A:price", price("A", 2))
        assert (await client.update(prices))["price"] == 2
        both = await client.subscribe("stock:A")
        await client.ready(both)
        first, second = await client.update(both), await client.update(both)
        assert {first["type"], second["type"]} == {"price_update", "orderbook_update"}
        assert first["snapshot"] is second["snapshot"] is True
        third = await client.subscribe("stock:A")
        await client.ready(third)
        assert (await client.update(third))["snapshot"] is True
        assert (await client.update(third))["snapshot"] is True
        publish(server, "stock:A:orderbook", orderbook("A", 3))
        for number in (both, third):
            assert (await client.update(number))["bids"] == [{"price": 3, "quantity": 1}]
        await client.do("unsubscribe", id=both)
        await client.do("unsubscribe", id=third)
        await client.do("unsubscribe", id=prices)
        await eventually(lambda: server.statistics().subscriptions == 0)
        assert (await client.ask("account"))["violations"] == 0


async def test_merged_messages_are_counted() -> None:
    """With `max_rate` the newest comes, and says what it follows."""
    async with running_server() as server, remote(server.websocket_url) as client:
        await client.ready(await client.subscribe("stock:A", max_rate=5))
        for value in range(1, 11):
            publish(server, "stock:A:price", price("A", value))
        while (message := await client.update())["price"] != 10:
            pass
        assert message["sequence"] == 10
        account = await client.ask("account")
        assert account["received"] + account["merged"] == 10
        assert account["merged"] > 0
        assert account["violations"] == 0


async def test_server_sent_events_where_no_websocket_can_be_opened() -> None:
    """The client gets the same, and a change of topics opens another stream without a hole."""
    async with (
        running_server() as server,
        remote(server.websocket_url, is_blocked=True) as client,
    ):
        prices = await client.subscribe("stock:A", kinds=["price"])
        assert await client.ready(prices) == []
        assert (await client.state("connected"))["transport"] == "sse"
        publish(server, "stock:A:price", price("A", 1))
        assert (await client.update(prices))["price"] == 1
        more = await client.subscribe("market:KOSPI", "stock:B", "stock:*")
        assert await client.ready(more) == [["stock:*", "INVALID_TARGET"]]
        for value in range(2, 102):
            publish(server, "stock:A:price", price("A", value))
            publish(server, "stock:B:price", price("B", value))
        while (await client.update(prices))["price"] != 101:
            pass
        await client.do("unsubscribe", id=more)
        await eventually(lambda: server.statistics().subscriptions == 1)
        publish(server, "stock:A:price", price("A", 102))
        while (await client.update(prices))["price"] != 102:
            pass
        account = await client.ask("account")
        assert (account["violations"], account["gaps"]) == (0, {})


async def test_a_stream_of_events_refuses_what_it_cannot_have() -> None:
    """More topics than a stream has, or an option that the server does not take; the rest flow."""
    topics = [f"stock:{number}" for number in range(500)]
    async with (
        running_server(max_book_levels=50) as server,
        remote(server.websocket_url, is_blocked=True) as client,
    ):
        refusals = await client.ready(await client.subscribe(*topics))
        assert refusals == [[topic, "TOO_MANY_TARGETS"] for topic in topics[100:]]
        await client.do("unsubscribe", id=1)
        some = await client.subscribe("stock:A", depth=20)
        assert await client.ready(some) == []
        refused = await client.subscribe("stock:B", depth=51)
        assert await client.ready(refused) == [["stock:B", "INVALID_MESSAGE"]]
        publish(server, "stock:A:price", price("A", 1))
        assert (await client.update(some))["price"] == 1
        assert (await client.ask("account"))["violations"] == 0


async def test_an_answer_that_is_no_stream_does_not_keep_it_from_websockets() -> None:
    """A site may answer with its own page where only the WebSocket is passed on."""
    requests: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            path = (await stream.receive_some()).split()[1].partition(b"?")[0]
            requests.append(path)
            if path == b"/v1/stream":
                head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n"
                await stream.send_all(head + b"\r\n<p>\n")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        async with remote(f"ws://127.0.0.1:{port}/v1/ws") as client:
            await client.subscribe("stock:A")
            await eventually(lambda: requests.count(b"/v1/stream") >= 3)
        nursery.cancel_scope.cancel()
    last = len(requests) - 1 - requests[::-1].index(b"/v1/stream")
    first = requests.index(b"/v1/stream")
    assert b"/v1/ws" in requests[first:last]


async def test_a_new_token_is_asked_for_after_it_was_closed() -> None:
    """Another user may have logged in, as in a worker that tabs share."""
    async with (
        running_server() as server,
        remote(server.websocket_url, asks_for_token=True) as client,
    ):
        for _ in range(2):
            assert await client.event("token") == "connect"
            await client.do("token", token="a")
            await client.state("connected")
            await client.do("close")
            await client.state("disconnected")
            await client.do("connect")


async def test_a_token_that_was_on_its_way_when_it_was_closed_is_not_used() -> None:
    """It is the one of the user who has left."""
    async with (
        running_server() as server,
        remote(server.websocket_url, asks_for_token=True) as client,
    ):
        await client.event("token")
        await client.do("close")
        await client.do("connect")
        assert await client.event("token") == "connect"
        await client.do("token", token="a")
        await client.ask("look")
        assert client.waiting("state")[-1]["state"] == "connecting"
        await client.do("token", token="b")
        await client.state("connected")


async def test_a_target_may_have_a_name_that_all_objects_have() -> None:
    """A topic that is new is asked for from no position, whatever its name."""
    async with running_server() as server, remote(server.websocket_url) as client:
        number = await client.subscribe("stock:constructor")
        assert await client.ready(number) == []
        publish(server, "stock:constructor:price", price("constructor", 1))
        assert (await client.update(number))["price"] == 1
        assert (await client.ask("account"))["violations"] == 0


async def test_a_subscription_of_an_outage_gets_the_last_value() -> None:
    """Though another one of the topic resumes from its position, and misses nothing."""
    network = Proxy()
    async with running_server() as server, network.run():
        network.server_port = urlsplit(server.websocket_url).port or 0
        url = f"ws://127.0.0.1:{network.port}/v1/ws"
        async with remote(url, is_blocked=True, firstDelayMs=500) as client:
            first = await client.subscribe("stock:A")
            await client.ready(first)
            publish(server, "stock:A:price", price("A", 1))
            await client.update(first)
            network.break_off(1)
            await client.event("state", lambda state: state.get("code") == 1006)
            second = await client.subscribe("stock:A")
            assert await client.ready(second) == []
            message = await client.update(second)
            assert (message["price"], message["snapshot"]) == (1, True)
            publish(server, "stock:A:price", price("A", 2))
            assert (await client.update(first))["price"] == 2
            assert (await client.update(second))["price"] == 2
            assert (await client.ask("account"))["violations"] == 0


async def test_a_websocket_is_tried_again_after_some_time() -> None:
    """Each time once; when it can be opened, the client stays there and has missed nothing."""
    async with (
        running_server() as server,
        remote(server.websocket_url, is_blocked=True, fallbackMs=500) as client,
    ):
        assert await client.ready(await client.subscribe("stock:A")) == []
        publish(server, "stock:A:price", price("A", 1))
        assert (await client.update())["price"] == 1
        for _ in range(2):
            await client.event("state", lambda value: value.get("code") == 1012)
            await client.event("state", lambda value: value.get("code") == 1006)
            await client.event("state", lambda value: value.get("transport") == "sse")
        await client.do("unblock")
        await client.event("state", lambda value: value.get("transport") == "websocket")
        publish(server, "stock:A:price", price("A", 2))
        while (await client.update())["price"] != 2:
            pass
        account = await client.ask("account")
        assert (account["violations"], account["gaps"]) == (0, {})


async def test_a_client_comes_back_to_a_websocket_after_a_long_outage() -> None:
    """While there is no server, streams of events fail as WebSockets do, and prove nothing."""
    async with running_server() as server:
        port = urlsplit(server.websocket_url).port
        async with remote(
            server.websocket_url, firstDelayMs=1, maxDelayMs=2, fallbackMs=600
        ) as client:
            assert await client.ready(await client.subscribe("stock:A")) == []
            server.shutdown()
            await client.event("state", lambda value: value.get("code") == 1001)
            reasons: Counter[str] = Counter()
            while reasons.total() < 40:
                lost = await client.event("state", lambda value: value.get("code") == 1006)
                reasons[lost["reason"]] += 1
            assert reasons["the connection was cut"] >= 20
            async with running_server(port=port) as second:
                await client.event("state", lambda value: value.get("transport") == "websocket")
                await client.event("state", lambda value: value.get("transport") == "websocket")
                await eventually(lambda: second.statistics().subscriptions == 1)


async def test_a_quiet_stream_of_events_is_kept() -> None:
    """It answers no ping, so a page that becomes visible does not wait for an answer."""
    async with (
        running_server() as server,
        remote(server.websocket_url, is_blocked=True, pongTimeoutMs=10) as client,
    ):
        await client.ready(await client.subscribe("stock:A"))
        before = client.waiting("state")
        await client.do("probe")
        await client.ask("timer", milliseconds=50)
        assert client.waiting("state") == before
        publish(server, "stock:A:price", price("A", 1))
        assert (await client.update())["price"] == 1


async def test_a_stream_of_events_that_died_in_silence_is_found() -> None:
    """A stream has no pings to answer; the server says how often its comments come."""
    network = Proxy()
    async with running_server(heartbeat_interval_seconds=0.05) as server, network.run():
        network.server_port = urlsplit(server.websocket_url).port or 0
        url = f"ws://127.0.0.1:{network.port}/v1/ws"
        async with remote(url, is_blocked=True, pongTimeoutMs=500) as client:
            await client.ready(await client.subscribe("stock:A"))
            # Longer than all that the client waits for, and shorter than the default interval.
            await client.do("timer", milliseconds=20_000)
            network.silence(1)
            lost = await client.event("state", lambda value: value.get("code") == 1006)
            while lost["reason"] != "no answer to a ping":
                lost = await client.event("state", lambda value: value.get("code") == 1006)
            assert client.waiting("timer") == []


async def test_server_sent_events_resume_after_a_restart(redis_url: str) -> None:
    """The cursor of the last event brings what was missed, once."""
    async with running_server(redis=redis_url, drain_min_retry_ms=0) as server:
        port = urlsplit(server.websocket_url).port
        async with (
            remote(server.websocket_url, is_blocked=True) as client,
            open_publisher(redis_url) as publisher,
        ):
            await publisher.publish("stock:A:price", price("A", 1))
            await client.ready(await client.subscribe("stock:A"))
            assert (await client.update())["price"] == 1
            await publisher.publish("stock:A:price", price("A", 2))
            assert (await client.update())["price"] == 2
            server.shutdown()
            await client.event("state", lambda value: value.get("code") == 1001)
            await publisher.publish("stock:A:price", price("A", 3))
            async with running_server(redis=redis_url, port=port):
                message = await client.update()
                assert (message["price"], message["sequence"]) == (3, 3)
                account = await client.ask("account")
                assert (account["violations"], account["gaps"]) == (0, {})


def random_book(chance: random.Random, levels: dict[str, list[int]]) -> bytes:
    """Change some levels of a book, and return it as a producer writes it, digits and all."""
    for side in levels.values():
        for price_ in chance.sample(range(100), 4):
            if price_ in side:
                side.remove(price_)
            else:
                side.append(price_)

    def text(side: str, sign: str) -> str:
        return ",".join(
            f'{{"price":{sign}{price_ // 4 + 1}.{price_ % 4 * 25}0,'
            f'"quantity":{chance.randint(1, 3)}.50,"orders":2}}'
            for price_ in sorted(levels[side], reverse=side == "bids")
        )

    return (
        f'{{"type":"orderbook_update","stock_code":"A","bids":[{text("bids", "")}],'
        f'"asks":[{text("asks", "1")}],"timestamp":"2026-01-02T03:04:05.678Z"}}'
    ).encode()


@pytest.mark.parametrize("is_blocked", [False, True])
@pytest.mark.parametrize("numbers", ["number", "text"])
async def test_deltas_become_whole_messages(numbers: str, is_blocked: bool) -> None:
    """Books and prices are what the producer published, over server-sent events as well."""
    chance = random.Random(1)
    levels: dict[str, list[int]] = {
        "bids": [*range(0, 100, 5)],
        "asks": [*range(0, 100, 5)],
    }
    async with (
        running_server() as server,
        remote(server.websocket_url, numbers=numbers, is_blocked=is_blocked) as client,
    ):
        number = await client.subscribe("stock:A", delta=True)
        await client.ready(number)
        changed = 0
        for value in range(60):
            book = random_book(chance, levels)
            publish(server, "stock:A:orderbook", book)
            publish(server, "stock:A:price", price("A", value, change=1.5))
            received = await client.update(number)
            as_text = json.loads(book, parse_float=str, parse_int=str)
            expected = as_text if numbers == "text" else json.loads(book)
            assert received["type"] == "orderbook_update"
            assert (received["bids"], received["asks"]) == (expected["bids"], expected["asks"])
            changed += "changed" in received
            update = await client.update(number)
            assert (update["type"], update["volume"]) in {
                ("price_update", 1),
                ("price_update", "1"),
            }
            assert update["price"] in {value, str(value)}
            assert update["change"] in {1.5, "1.5"}
        assert changed > 50  # most of them came as deltas
        account = await client.ask("account")
        assert (account["violations"], account["resyncs"]) == (0, 0)


async def test_a_delta_on_its_way_when_its_subscription_is_closed() -> None:
    """The messages that come with it, and after it, are given to the others."""
    network = Proxy()
    async with running_server() as server, network.run():
        network.server_port = urlsplit(server.websocket_url).port or 0
        async with remote(f"ws://127.0.0.1:{network.port}/v1/ws") as client:
            books = await client.subscribe("stock:A", delta=True)
            prices = await client.subscribe("stock:B")
            await client.ready(books)
            await client.ready(prices)
            publish(server, "stock:A:orderbook", orderbook("A", 7))
            await client.update(books)
            network.deafen()  # the end of the subscription is never acknowledged
            await client.do("unsubscribe", id=books)
            await client.ask("account")
            delta = (
                '{"type":"orderbook_delta","timestamp":"2026-01-02T03:04:05Z","stock_code":"A",'
                '"bids":[{"price":7,"quantity":2}],"asks":[],"checksum":857449982,"sequence":2}'
            )
            update = price("B", 5, sequence=1).decode()
            batch = f'{{"type":"batch","messages":[{delta},{update}]}}'
            await network.inject(text_frame(batch.encode()))
            assert (await client.update(prices))["price"] == 5
            account = await client.ask("account")
            assert (account["received"], account["violations"]) == (3, 0)


async def test_a_wrong_checksum_is_answered_with_the_whole_book() -> None:
    """A book that cannot be right is not given to the page; the server is asked for a whole one."""
    network = Proxy()
    async with running_server() as server, network.run():
        network.server_port = urlsplit(server.websocket_url).port or 0
        url = f"ws://127.0.0.1:{network.port}/v1/ws"
        async with remote(url, numbers="text") as client:
            await client.ready(await client.subscribe("stock:A", delta=True))
            publish(server, "stock:A:orderbook", orderbook("A", 7))
            assert (await client.update())["bids"] == [{"price": "7", "quantity": "1"}]
            wrong = (
                b'{"type":"orderbook_delta","timestamp":"2026-01-02T03:04:05Z","stock_code":"A",'
                b'"bids":[{"price":7,"quantity":2}],"asks":[],"checksum":1,"sequence":2}'
            )
            # What is on its way already, when the server is asked, causes no further request.
            following = wrong.replace(b'"sequence":2', b'"sequence":3')
            await network.inject(text_frame(wrong) + text_frame(following))
            violation = await client.event("violation")
            assert violation["fault"] == "delta without its base"
            whole = await client.update()
            assert (whole["bids"], whole["snapshot"]) == ([{"price": "7", "quantity": "1"}], True)
            account = await client.ask("account")
            assert (account["resyncs"], account["violations"]) == (1, 1)


async def test_a_wrong_checksum_of_a_stream_over_http_begins_another_one() -> None:
    """There is no request for whole messages: the new stream has the last known values."""
    network = Proxy()
    async with running_server() as server, network.run():
        network.server_port = urlsplit(server.websocket_url).port or 0
        url = f"ws://127.0.0.1:{network.port}/v1/ws"
        async with remote(url, is_blocked=True) as client:
            await client.ready(await client.subscribe("stock:A", delta=True))
            publish(server, "stock:A:orderbook", orderbook("A", 7))
            assert (await client.update())["bids"] == [{"price": 7, "quantity": 1}]
            wrong = (
                b'data: {"type":"orderbook_delta","timestamp":"2026-01-02T03:04:05Z",'
                b'"stock_code":"A","bids":[{"price":7,"quantity":2}],"asks":[],"checksum":1,'
                b'"sequence":2}\n\n'
            )
            await network.inject(wrong)
            assert (await client.event("violation"))["fault"] == "delta without its base"
            assert (await client.event("gap"))["reason"] == "transport_changed"
            assert (await client.update())["type"] == "gap"
            whole = await client.update()
            assert (whole["bids"], whole["snapshot"]) == ([{"price": 7, "quantity": 1}], True)
            publish(server, "stock:A:orderbook", orderbook("A", 8))
            assert (await client.update())["bids"] == [{"price": 8, "quantity": 1}]
            faults = (await client.ask("account"))["faults"]
            # To the server, the forged message never was.
            assert faults == {"delta without its base": 1, "gap that goes back": 1}


async def test_a_subscription_gets_its_depth() -> None:
    """The server sends the deepest that is wanted, and each subscription gets its own levels."""
    levels = [{"price": 10 - level, "quantity": 1} for level in range(5)]
    book = json.loads(orderbook("A", 1)) | {"bids": levels}
    async with running_server() as server, remote(server.websocket_url) as client:
        one = await client.subscribe("stock:A", depth=1)
        three = await client.subscribe("stock:A", depth=3)
        assert await client.ready(one) == await client.ready(three) == []
        publish(server, "stock:A:orderbook", json.dumps(book).encode())
        assert (await client.update(one))["bids"] == levels[:1]
        assert (await client.update(three))["bids"] == levels[:3]
