"""Requests of a client and their answers, over a real socket; time is virtual and set by the tests.

Covers streamer.edge.ended_sessions, streamer.edge.limits and streamer.edge.session_ids.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Any

import pytest
import structlog
import trio
from trio.testing import MockClock
from wsproto.frame_protocol import Opcode

from streamer.config import Settings
from streamer.edge.limits import VIOLATION_WINDOW_SECONDS
from streamer.edge.session import Session
from streamer.protocol.errors import SHUTTING_DOWN
from streamer.protocol.messages import ServerShutdown
from streamer.source.topics import TopicSource
from tests.helpers.clients import Client, client_frame, connected, open_client, raw_client
from tests.helpers.publications import market_status, orderbook, price
from tests.helpers.server import first_session, publish, running_server
from tests.helpers.timing import eventually


async def test_the_greeting_says_who_one_is_and_what_one_may_do() -> None:
    """`connected` comes first, with the settings as limits."""
    async with (
        running_server(max_targets_per_request=7) as server,
        open_client(server) as client,
        connected(server) as other,
    ):
        greeting = await client.receive_type("connected")
        assert greeting["protocol"] == 1
        assert greeting["heartbeat_interval"] == 25
        assert greeting["limits"]["max_targets_per_request"] == 7
        assert greeting["limits"]["max_message_bytes"] == Settings().max_message_bytes
        assert greeting["session_id"] != other.session_id
        assert greeting["timestamp"].endswith("Z")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "INVALID_JSON"),
        ("", "INVALID_JSON"),
        ("[" * 10_000, "INVALID_JSON"),
        ("NaN", "INVALID_JSON"),
        ("[]", "INVALID_MESSAGE"),
        ("null", "INVALID_MESSAGE"),
        ("{}", "MISSING_TYPE"),
        ('{"type": "nonsense"}', "UNKNOWN_MESSAGE_TYPE"),
        ('{"type": "price_update"}', "UNKNOWN_MESSAGE_TYPE"),
        ('{"type": ["subscribe"]}', "UNKNOWN_MESSAGE_TYPE"),
        ('{"type": "subscribe"}', "INVALID_MESSAGE"),
        ('{"type": "subscribe", "subscription_type": "stock", "targets": "A"}', "INVALID_MESSAGE"),
        ('{"type": "subscribe", "subscription_type": "bond", "targets": []}', "INVALID_MESSAGE"),
        ('{"type": "subscribe", "subscription_type": "stock", "targets": {}}', "INVALID_MESSAGE"),
        ('{"type": "unsubscribe", "subscription_type": 1, "targets": []}', "INVALID_MESSAGE"),
        ('{"type": "ping", "request_id": []}', "INVALID_MESSAGE"),
        ('{"type": "refresh_token", "refresh_token": "x"}', "INVALID_TOKEN"),
        ('{"type": "authenticate", "token": "x"}', "INVALID_TOKEN"),
        (b'{"type": "ping"}', "INVALID_MESSAGE"),
        (b"\xff\xfe", "INVALID_MESSAGE"),
    ],
)
async def test_what_is_no_request_is_answered_with_its_error_and_nothing_else(
    text: str | bytes, code: str
) -> None:
    """The connection continues, and so does its neighbour's stream."""
    async with (
        running_server() as server,
        connected(server) as client,
        connected(server) as neighbour,
    ):
        await neighbour.subscribe("stock:A")
        await client.send_text(text)
        error = await client.receive_type("error")
        assert error["code"] == code
        assert "Traceback" not in str(error)
        await client.ping_pong()
        publish(server, "stock:A:price", price("A", 1))
        assert (await neighbour.data())["price"] == 1
        assert server.statistics().active_connections == 2


@pytest.mark.parametrize(
    "options",
    [
        {"kinds": ["status"]},
        {"kinds": []},
        {"kinds": "price"},
        {"mode": "none"},
        {"max_rate": 0},
        {"max_rate": -1},
        {"max_rate": "1"},
        {"max_rate": 1, "mode": "all"},
        {"snapshot": "yes"},
        {"since": []},
    ],
)
async def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    """A subscribe with one is answered with INVALID_MESSAGE, and nothing is subscribed."""
    async with running_server() as server, connected(server) as client:
        answer = await client.subscribe("stock:A", **options)
        assert (answer["type"], answer["code"]) == ("error", "INVALID_MESSAGE")
        assert server.statistics().subscriptions == 0


HOSTILE_TARGETS: list[Any] = [
    "*",
    "A*",
    "A?",
    "[A]",
    "",
    " ",
    "A  B",
    "A\r\nPUBLISH x y",
    "A{B}",
    "A\x00",
    "\u202eA",
    "A" * 65,
    "e\u0301",
    None,
    1,
    True,
    ["A"],
    {"A": 1},
    [[[[[]]]]],
]


async def test_a_hostile_target_is_rejected_by_itself() -> None:
    """It is named in the answer, the good ones are held, and none but them goes further."""
    async with running_server() as server, connected(server) as client:
        answer = await client.request(
            type="subscribe",
            subscription_type="stock",
            targets=["A", *HOSTILE_TARGETS, "005930", "A"],
        )
        assert answer["targets"] == ["A", "005930"]
        assert [rejected["code"] for rejected in answer["rejected"]] == [
            "INVALID_TARGET" for _ in HOSTILE_TARGETS
        ]
        assert {topic.target for topic in server.hub.streams} == {"A", "005930"}
        answer = await client.request(
            type="unsubscribe", subscription_type="stock", targets=["A", "*"]
        )
        assert answer["targets"] == ["A"]
        assert len(answer["rejected"]) == 1


async def test_what_was_sent_comes_back_exactly() -> None:
    """Targets that are odd but JSON, and a request_id of 64 digits, beside good targets."""
    odd = ["1e999", "123456789012345678901234567890", '[[1.50,"\\ud800"]]', '"\\ud800"', '"a*"']
    request_id = "1234567890" * 6 + "1234"
    async with running_server() as server, connected(server) as client:
        for kind, answer in (("subscribe", "subscribed"), ("unsubscribe", "unsubscribed")):
            await client.send_text(
                f'{{"type":"{kind}","subscription_type":"stock","request_id":{request_id},'
                f'"targets":["A",{",".join(odd)},"삼성전자"]}}'
            )
            text = await client.connection.get_message()
            assert f'"type":"{answer}"' in text
            assert '"targets":["A","삼성전자"]' in text
            assert f'"request_id":{request_id}' in text
            for target in odd:
                assert f'{{"target":{target},"code":"INVALID_TARGET"' in text
        await client.ping_pong()


async def test_a_target_that_is_not_normalized_is_rejected_with_that_reason() -> None:
    """An accent as a character of its own looks the same and would be another channel."""
    async with running_server() as server, connected(server) as client:
        answer = await client.subscribe("stock:Cafe\u0301", "stock:Café")
        assert answer["targets"] == ["Café"]
        (rejected,) = answer["rejected"]
        assert "NFC" in rejected["message"]


async def test_a_session_id_of_any_text_is_only_unknown() -> None:
    """An id that no server can have made is not looked up."""
    async with running_server() as server, connected(server) as client:
        for session_id in (r"\ud800", "é", ""):
            await client.send_text(f'{{"type":"reconnect","session_id":"{session_id}"}}')
            assert (await client.receive())["code"] == "SESSION_RESTORATION_FAILED"


async def test_a_rate_that_is_next_to_nothing_is_refused() -> None:
    """1 divided by it would be infinite, and end whoever waits for it."""
    async with running_server() as server, connected(server) as client:
        for rate in (1e-320, 1e-309, 0, -1, 1e300):
            answer = await client.subscribe("stock:A", max_rate=rate)
            assert (answer["type"], answer["code"]) == ("error", "INVALID_MESSAGE")
        answer = await client.subscribe("stock:A", max_rate=0.001)
        assert answer["targets"] == ["A"]


async def test_too_many_targets_are_refused_as_a_whole() -> None:
    """10,000 targets in one request: TOO_MANY_TARGETS, and not one of them is held."""
    async with (
        running_server(max_message_bytes=1 << 20) as server,
        connected(server) as client,
    ):
        for kind in ("subscribe", "unsubscribe"):
            answer = await client.request(
                type=kind, subscription_type="stock", targets=[f"T{n}" for n in range(10_000)]
            )
            assert answer["code"] == "TOO_MANY_TARGETS"
        assert server.statistics().subscriptions == 0


async def test_a_connection_holds_so_many_subscriptions_and_no_more() -> None:
    """The rest is rejected one by one; what is held may be asked for again, and given up."""
    async with running_server(max_subscriptions=3) as server, connected(server) as client:
        await client.subscribe("stock:A", "stock:B")
        answer = await client.subscribe("stock:A", "stock:C", "stock:D", "stock:E")
        assert answer["targets"] == ["A", "C"]
        assert [(r["target"], r["code"]) for r in answer["rejected"]] == [
            ("D", "SUBSCRIPTION_LIMIT_EXCEEDED"),
            ("E", "SUBSCRIPTION_LIMIT_EXCEEDED"),
        ]
        await client.unsubscribe("stock:A")
        assert (await client.subscribe("stock:D"))["targets"] == ["D"]


async def test_over_the_rate_limit_each_message_gets_exactly_the_error(
    mock_clock: MockClock,
) -> None:
    """Not carried out, answered once each, and the answers themselves count for nothing."""
    async with (
        running_server(rate_limit=10, rate_limit_burst=5) as server,
        connected(server) as client,
        connected(server) as neighbour,
    ):
        for _ in range(5):
            await client.ping_pong()
        for number in range(50):
            await client.send(type="ping" if number % 2 else "nonsense")
            await client.refused()
        await neighbour.ping_pong()
        mock_clock.jump(0.1)  # one more is allowed
        await client.ping_pong()
        await client.send(type="ping")
        await client.refused()
        assert server.statistics().rate_limiting.messages_refused == 51


async def test_abuse_is_closed_with_1008(mock_clock: MockClock) -> None:
    """One that keeps sending after so many refusals is closed; a pause resets their count."""
    settings = {"rate_limit": 0.001, "rate_limit_burst": 1, "rate_limit_max_violations": 10}
    async with running_server(**settings) as server, connected(server) as client:
        await client.ping_pong()
        for _ in range(10):
            await client.send(type="ping")
            await client.refused()
        mock_clock.jump(VIOLATION_WINDOW_SECONDS + 1)
        for _ in range(10):
            await client.send(type="ping")
            await client.refused()
        await client.send(type="ping")
        assert await client.closed() == 1008
        mock_clock.jump(server.settings.close_timeout_seconds)  # trio-websocket does not hang up
        await eventually(lambda: server.statistics().active_connections == 0)


async def test_without_a_rate_limit_nothing_is_refused(mock_clock: MockClock) -> None:
    """0 means no limit."""
    async with running_server(rate_limit=0) as server, connected(server) as client:
        for _ in range(300):
            await client.ping_pong()


async def _subscribed(client: Client, *topics: str, **options: Any) -> None:
    assert (await client.subscribe(*topics, **options))["type"] == "subscribed"


async def test_requests_that_are_read_together_leave_others_their_turns() -> None:
    """Between two of them, any other task that is ready runs."""
    count = 300
    async with running_server(rate_limit=0) as server, raw_client(server) as client:
        await eventually(lambda: server.statistics().active_connections == 1)
        session = first_session(server)
        largest = before = 0
        await client.stream.send_all(count * client_frame(0x81, b'{"type":"ping"}'))
        while before < count:
            await trio.lowlevel.checkpoint()
            largest = max(largest, session.messages_received - before)
            before = session.messages_received
        assert largest <= 2


async def test_only_what_is_subscribed_arrives_and_nothing_after_unsubscribed(
    mock_clock: MockClock,
) -> None:
    """Several topics of several types; what is given up stops with its answer."""
    async with running_server(flush_interval_ms=0) as server, connected(server) as client:
        await _subscribed(client, "stock:A", "stock:B")
        await _subscribed(client, "market:KOSPI")
        publish(server, "stock:C:price", price("C", 1))
        publish(server, "stock:A:price", price("A", 2))
        assert (await client.data())["stock_code"] == "A"
        publish(server, "market:KOSPI:status", market_status("KOSPI", "open"))
        assert (await client.data())["market"] == "KOSPI"
        assert server.hub.subscribers(next(iter(server.hub.streams))) == [client.session_id]
        answer = await client.unsubscribe("stock:A", "stock:never")
        assert answer["targets"] == ["A", "never"]
        publish(server, "stock:A:price", price("A", 3))
        publish(server, "stock:B:price", price("B", 4))
        assert (await client.data())["price"] == 4


async def test_the_last_known_value_follows_the_answer_and_joins_the_stream(
    mock_clock: MockClock,
) -> None:
    """With `snapshot`, at the position that the answer names; the next message follows it."""
    async with (
        running_server() as server,
        connected(server) as first,
        connected(server) as second,
        connected(server) as third,
    ):
        await _subscribed(first, "stock:A")
        publish(server, "stock:A:price", price("A", 1))
        publish(server, "stock:A:orderbook", orderbook("A", 2))
        publish(server, "stock:A:price", price("A", 3))
        # Sequence 3 still waits for its flush when the second client comes.
        answer = await second.subscribe("stock:A")
        assert answer["positions"]["A"]["sequence"] == 3
        snapshots = [await second.data(), await second.data()]
        assert [(m["sequence"], m["snapshot"]) for m in snapshots] == [(2, True), (3, True)]
        answer = await third.subscribe("stock:A", snapshot=False)
        mock_clock.jump(1)
        publish(server, "stock:A:price", price("A", 4))
        for client in (second, third):
            message = await client.data()
            assert (message["sequence"], message.get("previous")) == (4, None)
            assert "snapshot" not in message


async def test_kinds_are_left_out_and_previous_says_so(mock_clock: MockClock) -> None:
    """A client that asked for prices gets no order book; `previous` accounts for the rest."""
    async with running_server(flush_interval_ms=0) as server, connected(server) as client:
        await _subscribed(client, "stock:A", kinds=["price"])
        publish(server, "stock:A:price", price("A", 1))
        first = await client.data()
        publish(server, "stock:A:orderbook", orderbook("A", 2))
        publish(server, "stock:A:price", price("A", 3))
        second = await client.data()
        assert (first["sequence"], first.get("previous")) == (1, None)
        assert (second["sequence"], second["previous"]) == (3, 1)


async def test_subscribing_again_changes_the_options_without_a_hole(
    mock_clock: MockClock,
) -> None:
    """Messages under way come before the answer, and the stream continues from its position."""
    async with running_server() as server, connected(server) as client:
        await _subscribed(client, "stock:A")
        publish(server, "stock:A:price", price("A", 1))
        await client.data()
        publish(server, "stock:A:price", price("A", 2))  # waits for its flush
        await client.send(
            type="subscribe", subscription_type="stock", targets=["A"], kinds=["orderbook"]
        )
        assert (await client.data())["sequence"] == 2
        await client.receive_type("subscribed")
        publish(server, "stock:A:price", price("A", 3))
        publish(server, "stock:A:orderbook", orderbook("A", 4))
        mock_clock.jump(1)
        message = await client.data()
        assert message["sequence"] == 4
        answer = await client.subscribe("stock:A")
        assert answer["positions"]["A"]["sequence"] == 4
        assert server.statistics().subscriptions == 1


@pytest.mark.parametrize(
    ("first_byte", "payload", "answer"),
    [
        (0x81, '{{"type":"ping","request_id":{}}}', lambda got: got[1]["request_id"]),
        (0x89, "{:0100}", lambda got: int(got[1]) if got[0] is Opcode.PONG else got),
    ],
    ids=["requests", "pings"],
)
async def test_a_client_that_reads_no_answers_is_not_read_either(
    first_byte: int, payload: str, answer: Callable[[Any], object], mock_clock: MockClock
) -> None:
    """All that it asks waits in its own socket; when it reads on, each has its answer, in order."""
    requests = 20_000
    settings = {
        "rate_limit": 0,
        "max_unread_replies_bytes": 10_000,
        "heartbeat_interval_seconds": 1000,  # no ping among the answers
    }
    async with (
        running_server(**settings) as server,
        raw_client(server, receive_buffer_bytes=32_768) as client,
        connected(server) as neighbour,
        trio.open_nursery() as nursery,
    ):
        mock_clock.jump(100)
        asked_seconds = trio.current_time()

        async def ask() -> None:
            frames = (
                client_frame(first_byte, payload.format(number).encode())
                for number in range(requests)
            )
            await client.stream.send_all(b"".join(frames))

        nursery.start_soon(ask)
        await eventually(lambda: any(info.outbox.blocked for info in server.connections()))
        (session,) = (s for s in server._acceptor.sessions.values() if s.outbox.blocked)
        await eventually(lambda: session.outbox.control_bytes > 10_000)
        for _ in range(100):
            await neighbour.ping_pong()
            assert session.outbox.control_bytes < 10_200
        assert not session.is_silent_since(asked_seconds), "its socket has only just filled"
        async with aclosing(client.frames()) as frames:
            await anext(frames)  # the greeting
            for number in range(requests):
                assert answer(await anext(frames)) == number


async def test_a_fault_of_the_server_is_answered_with_its_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client knows by the request_id which one it was; the log has the traceback."""

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    async with running_server() as server, connected(server) as client:
        monkeypatch.setattr(server.hub, "resync", fail)
        monkeypatch.setattr(server.hub, "subscribe", fail)
        named = {"subscription_type": "stock", "targets": ["A"]}
        with structlog.testing.capture_logs() as logs:
            for message_type in ("resync", "subscribe"):
                await client.send(type=message_type, request_id=message_type, **named)
                answer = await client.receive()
                assert (answer["code"], answer["request_id"]) == ("INTERNAL_ERROR", message_type)
        assert [entry["event"] for entry in logs] == 2 * ["a request failed"]


async def test_a_client_that_pings_and_reads_nothing_is_given_up(mock_clock: MockClock) -> None:
    """It is not read, so that more from it is no sign of life; its socket takes nothing."""
    settings = {"rate_limit": 0, "max_unread_replies_bytes": 10_000}
    async with (
        running_server(**settings) as server,
        raw_client(server, receive_buffer_bytes=32_768) as client,
        trio.open_nursery() as nursery,
    ):

        async def ask() -> None:
            with suppress(trio.BrokenResourceError):
                while True:
                    await client.stream.send_all(client_frame(0x89, b"x" * 100) * 100)

        nursery.start_soon(ask)
        await eventually(lambda: any(info.outbox.blocked for info in server.connections()))
        while server.connections():
            mock_clock.jump(5)
            await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()


@pytest.fixture
def redis_answers(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """Each subscribe waits for this event, as it does for a Redis that does not answer."""
    answers = trio.Event()
    prepare = TopicSource.prepare

    async def wait_and_prepare(*arguments: Any) -> Any:
        await answers.wait()
        return await prepare(*arguments)

    monkeypatch.setattr(TopicSource, "prepare", wait_and_prepare)
    monkeypatch.setattr(TopicSource, "prepare_nowait", lambda *_arguments: None)
    return answers


async def test_a_client_is_read_from_while_its_request_waits(
    redis_answers: trio.Event, mock_clock: MockClock
) -> None:
    """Its pings are answered and its pongs count; the requests behind keep their order."""
    async with (
        running_server() as server,
        raw_client(server) as client,
        aclosing(client.frames()) as frames,
    ):
        assert (await anext(frames))[1]["type"] == "connected"
        await client.send(type="subscribe", subscription_type="stock", targets=["A"])
        for number in range(3):
            await client.send(type="ping", request_id=number)
        mock_clock.jump(25)
        opcode, payload = await anext(frames)
        assert opcode is Opcode.PING
        await client.send_frame(0x89, b"mine")
        assert await anext(frames) == (Opcode.PONG, b"mine")
        await client.send_frame(0x8A, bytes(payload))
        await eventually(lambda: server.connections()[0].idle_seconds == 0)
        mock_clock.jump(11)
        await client.send_frame(0x89, b"alive")
        assert await anext(frames) == (Opcode.PONG, b"alive")
        redis_answers.set()
        assert (await anext(frames))[1]["type"] == "subscribed"
        for number in range(3):
            assert (await anext(frames))[1]["request_id"] == number


async def test_a_client_may_close_while_its_request_waits(redis_answers: trio.Event) -> None:
    """The close is answered at once, and nothing of the client remains."""
    async with running_server() as server, raw_client(server) as client:
        await client.send(type="subscribe", subscription_type="stock", targets=["A"])
        await client.send_frame(0x88, b"\x03\xe8")
        _, code = await client.messages_until_close()
        assert code == 1000
        await eventually(lambda: server.statistics().active_connections == 0)
        assert server.statistics().subscriptions == 0


async def test_there_is_one_close_frame_if_both_sides_close() -> None:
    """In the same turn of the event loop, in either order; nothing follows it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with running_server() as server, trio.open_nursery() as nursery:
            for _ in range(20):
                async with raw_client(server) as client:
                    async with aclosing(client.frames()) as frames:
                        await anext(frames)
                    session = first_session(server)

                    async def end(session: Session = session) -> None:
                        await trio.lowlevel.wait_readable(ours)
                        ours.recv(1)
                        session.end(SHUTTING_DOWN, ServerShutdown(1000))

                    nursery.start_soon(end)
                    await trio.testing.wait_all_tasks_blocked()
                    # Both are readable when the loop looks next, and wake a task each.
                    os.write(client.stream.socket.fileno(), client_frame(0x88, b"\x03\xe8"))
                    theirs.send(b".")
                    _, _, close = (await client.rest()).partition(b"\x88")
                    assert len(close) == 1 + close[0], "its length, and nothing behind it"
                await eventually(lambda: server.statistics().active_connections == 0)


async def test_nothing_follows_the_answer_to_a_close(mock_clock: MockClock) -> None:
    """Also if the server stops while that answer waits behind data for a client that reads late."""
    async with running_server() as server, raw_client(server, receive_buffer_bytes=4096) as client:
        await client.send(type="subscribe", subscription_type="stock", targets=["A"])
        await eventually(lambda: server.statistics().subscriptions == 1)
        session = first_session(server)
        while not session.outbox.blocked:
            publish(server, "stock:A:price", price("A", 1, pad="x" * 250_000))
            mock_clock.jump(0.03)
            await trio.lowlevel.checkpoint()
        await client.send_frame(0x88, b"\x03\xe8")
        await eventually(lambda: session.is_ending)
        assert session.outbox.blocked
        session.end(SHUTTING_DOWN, ServerShutdown(1000))
        async with aclosing(client.frames()) as frames:
            received = [frame async for frame in frames]
        assert [opcode for opcode, _ in received].count(Opcode.CLOSE) == 1
        opcode, payload = received[-1]
        assert (opcode, payload[0]) == (Opcode.CLOSE, 1000)
        await eventually(lambda: not server.statistics().active_connections)
        assert server.statistics().closes == {"client": 1}


async def test_what_waits_behind_a_request_is_bounded(redis_answers: trio.Event) -> None:
    """A client that sends on is not read from, and is served in order once the request is done."""
    requests = 3000
    async with running_server(rate_limit=0) as server, raw_client(server) as client:
        await client.send(type="subscribe", subscription_type="stock", targets=["A"])
        session = first_session(server)
        async with trio.open_nursery() as nursery:
            data = b"".join(
                client_frame(0x81, b'{"type":"ping","request_id":%d,"x":"%b"}' % (n, b"x" * 200))
                for n in range(requests)
            )
            nursery.start_soon(client.stream.send_all, data)
            await eventually(lambda: session._is_held_up)
            assert session._work is not None
            assert session._work.waiting_bytes < 2 * 65_536
            redis_answers.set()
            async with aclosing(client.frames()) as frames:
                assert (await anext(frames))[1]["type"] == "connected"
                assert (await anext(frames))[1]["type"] == "subscribed"
                for number in range(requests):
                    assert (await anext(frames))[1]["request_id"] == number
