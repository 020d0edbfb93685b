"""Frames by hand: what breaks RFC 6455, what only looks odd, and what is a flood.

Covers streamer.edge.frame_reader.
Covers streamer.edge.writer.
"""

from __future__ import annotations

import struct
from contextlib import aclosing

import pytest
from trio.testing import MockClock
from wsproto.frame_protocol import Opcode

from streamer.edge.frame_reader import FrameReader
from tests.helpers.clients import client_frame, connected, raw_client
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually

PING_REQUEST = b'{"type":"ping"}'
TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x05hello", 1002),  # not masked
        (b"\xc1\x80\0\0\0\0", 1002),  # a reserved bit
        (b"\x83\x80\0\0\0\0", 1002),  # a reserved opcode
        (b"\x09\x80\0\0\0\0", 1002),  # a control frame in fragments
        (client_frame(PING, b"x" * 126), 1002),  # a control frame that is too long
        (client_frame(0x80, b"x"), 1002),  # a continuation of nothing
        (client_frame(0x01, b"a") + client_frame(TEXT, b"b"), 1002),  # no continuation
        (client_frame(CLOSE, b"\x03"), 1002),  # half a close code
        (client_frame(CLOSE, struct.pack("!H", 1005)), 1002),  # a code that is never sent
        (struct.pack("!BBQ", TEXT, 0xFF, 1) + bytes(4) + b"x", 1002),  # a wasteful length
        (bytes(range(255, 0, -1)) * 10, 1002),  # garbage
        (b"GET / HTTP/1.1\r\n\r\n" * 10, 1002),
        (client_frame(TEXT, b"\xff\xfe"), 1007),
        (client_frame(TEXT, b"\xed\xa0\x80"), 1007),  # a surrogate
        (client_frame(0x01, b"\xe2\x82") + client_frame(0x80, b"x"), 1007),
        (client_frame(TEXT, b"x" * 65_537), 1009),
        (client_frame(TEXT, "é".encode() * 32_769), 1009),  # fewer characters than bytes
        (client_frame(TEXT, b"x" * 1_048_576), 1009),
        (client_frame(BINARY, b"x" * 1_048_576), 1009),
        (struct.pack("!BBQ", TEXT, 0xFF, 1 << 62) + b"\0" * 70_000, 1009),  # says it will be huge
        (client_frame(0x01, b"x" * 40_000) + client_frame(0x80, b"x" * 40_000), 1009),
    ],
)
async def test_a_broken_rule_ends_the_connection_with_its_code(data: bytes, code: int) -> None:
    """And only that connection: its neighbour gets what is published meanwhile."""
    async with (
        running_server() as server,
        connected(server) as neighbour,
        raw_client(server) as client,
    ):
        await neighbour.subscribe("stock:A")
        await client.stream.send_all(data)
        messages, closed_with = await client.messages_until_close()
        assert closed_with == code
        assert [m["code"] for m in messages[1:]] == ["MESSAGE_TOO_LARGE"] * (code == 1009)
        publish(server, "stock:A:price", price("A", 1))
        assert (await neighbour.data())["price"] == 1
        await client.stream.aclose()
        await eventually(lambda: server.statistics().active_connections == 1)


@pytest.mark.parametrize(
    "data",
    [
        client_frame(TEXT, PING_REQUEST),
        b"".join(client_frame(0x01 * (n == 0), b"%c" % c) for n, c in enumerate(PING_REQUEST[:-1]))
        + client_frame(0x80, PING_REQUEST[-1:]),
        client_frame(0x01, PING_REQUEST[:4])
        + client_frame(PING, b"in between")
        + client_frame(0x00, b"")
        + client_frame(0x80, PING_REQUEST[4:]),
        client_frame(PONG, b"nobody asked") + client_frame(TEXT, PING_REQUEST),
    ],
)
async def test_a_message_may_come_in_any_pieces(data: bytes) -> None:
    """Fragments, frames between them, and a byte at a time."""
    async with running_server() as server:
        for size in (len(data), 1):
            async with raw_client(server) as client:
                for start in range(0, len(data), size):
                    await client.stream.send_all(data[start : start + size])
                await client.send_frame(CLOSE, struct.pack("!H", 1000))
                messages, code = await client.messages_until_close()
                assert [message["type"] for message in messages] == ["connected", "pong"]
                assert code == 1000


async def test_pings_are_answered_with_their_payload() -> None:
    """RFC 6455, 5.5.3."""
    async with running_server() as server, raw_client(server) as client:
        await client.send_frame(PING, b"payload")
        async with aclosing(client.frames()) as frames:
            assert (await anext(frames))[0] is Opcode.TEXT  # the greeting
            assert await anext(frames) == (Opcode.PONG, b"payload")


@pytest.mark.parametrize("close", [b"", struct.pack("!H", 1000) + b"bye", struct.pack("!H", 4999)])
async def test_a_close_is_answered_and_then_the_server_closes_first(close: bytes) -> None:
    """With the peer's own code, or 1000 where it gave none (RFC 6455, 5.5.1 and 7.1.1)."""
    async with running_server() as server, raw_client(server) as client:
        await client.send_frame(CLOSE, close)
        _, code = await client.messages_until_close()
        assert code == (struct.unpack("!H", close[:2])[0] if close else 1000)
        assert await client.rest() == b""
        await eventually(lambda: server.statistics().active_connections == 0)


@pytest.mark.parametrize(
    "frame",
    [
        client_frame(PING, b"flood"),
        client_frame(PONG, b"flood"),
        client_frame(0x00, b""),
        client_frame(0x00, b"x"),
        client_frame(TEXT, PING_REQUEST),
    ],
)
async def test_a_flood_of_any_frame_is_abuse(frame: bytes, mock_clock: MockClock) -> None:
    """Every frame counts against the rate limit, pongs and fragments too; then comes 1008."""
    async with running_server() as server, raw_client(server) as client:
        start = client_frame(0x01, b"") if frame[0] == 0 else b""
        await client.stream.send_all(start + frame * 400)
        _, code = await client.messages_until_close()
        assert code == 1008


async def test_frames_behind_the_handshake_are_not_lost() -> None:
    """A client need not wait for the answer before it asks (as nearly all do)."""
    async with running_server() as server, raw_client(server, opened=False) as client:
        await client.open(trailing=client_frame(TEXT, PING_REQUEST))
        await client.response()
        await client.send_frame(CLOSE, b"")
        messages, _ = await client.messages_until_close()
        assert [message["type"] for message in messages] == ["connected", "pong"]


async def test_reads_after_a_large_one_wait_behind_those_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """16 KiB in one-byte frames take 10 ms: the pings of others must not wait behind fifty such."""
    fragments = client_frame(0x01, b"a") + client_frame(0x00, b"a") * 99
    waits: list[bool] = []
    async with running_server() as server:
        budget = server._services.loop_budget
        wait = budget.wait

        async def wait_noted(*, is_heavy: bool = False) -> None:
            waits.append(is_heavy)
            await wait(is_heavy=is_heavy)

        monkeypatch.setattr(budget, "wait", wait_noted)
        monkeypatch.setattr(budget, "_turn_seconds", lambda: 1.0)  # every turn is long
        async with raw_client(server) as client:
            waits.clear()
            await client.stream.send_all(client_frame(TEXT, PING_REQUEST))
            async with aclosing(client.frames()) as frames:
                for _ in range(2):
                    await anext(frames)
            assert waits
            assert not any(waits)
        async with raw_client(server, opened=False) as client:
            await client.open(trailing=client_frame(BINARY, b"x" * 5000) + fragments)
            await client.response()
            await eventually(lambda: sum(waits) > 50)  # these came with the handshake
        async with raw_client(server) as client:
            waits.clear()
            await client.stream.send_all(client_frame(BINARY, b"x" * 5000) + fragments)
            await eventually(lambda: sum(waits) > 50)


async def test_what_follows_abuse_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what made it abuse: to parse all that a flood still sends would go on for megabytes."""
    read_by: list[FrameReader] = []
    next_event = FrameReader.next_event

    def next_event_noted(reader: FrameReader) -> object:
        read_by.append(reader)
        return next_event(reader)

    monkeypatch.setattr(FrameReader, "next_event", next_event_noted)
    async with running_server() as server, raw_client(server) as client:
        await client.stream.send_all(client_frame(PONG, b"") * 50_000)
        _, code = await client.messages_until_close()
        assert code == 1008
        await client.stream.aclose()
        await eventually(lambda: server.statistics().active_connections == 0)
    assert len(read_by) < 10_000
