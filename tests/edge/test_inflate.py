"""Compressed messages of clients: in pieces, broken, too large, and in no way that RFC 7692 allows.

Covers streamer.edge.frame_reader.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.client import PriceUpdate, open_client
from streamer.edge.inflate import InflateError, TooLargeError, inflate, largest_compressed
from streamer.server import Server
from tests.helpers.clients import RawClient, client_frame, connected, raw_client
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually

REQUEST = b'{"type":"ping"}'
TEXT, BINARY, CLOSE, PING, CONTINUATION, FIN, RSV1 = 0x01, 0x02, 0x08, 0x09, 0x00, 0x80, 0x40
OFFER = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
FLUSH_END = b"\x00\x00\xff\xff"
LIMIT = 65_536


def deflated(data: bytes, *, bits: int = 15, level: int = 6) -> bytes:
    """A message compressed by itself."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -bits)
    payload = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return payload.removesuffix(FLUSH_END)


def ended(data: bytes) -> bytes:
    """The same with a last block, and the empty one behind it that RFC 7692, 7.2.3.4 shows."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush() + b"\x00"


@asynccontextmanager
async def compressed_client(server: Server) -> AsyncIterator[RawClient]:
    """A client that may compress what it sends."""
    async with raw_client(server, opened=False) as client:
        await client.open(headers=OFFER)
        assert b"permessage-deflate; client_no_context_takeover" in await client.response()
        yield client


@given(st.binary(max_size=5000), st.integers(9, 15), st.integers(0, 9))
def test_a_message_comes_back_whatever_made_it(data: bytes, bits: int, level: int) -> None:
    """Any window, any effort, an end or none; to the byte as large as allowed, and no larger."""
    for payload in (deflated(data, bits=bits, level=level), ended(data)):
        assert inflate(payload, len(data)) == data
        assert len(payload) <= largest_compressed(len(data))
        if data:
            with pytest.raises(TooLargeError):
                inflate(payload, len(data) - 1)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    """No other exception, and never too much."""
    with suppress(InflateError, TooLargeError):
        assert len(inflate(data, 100)) <= 100


def test_a_bomb_is_not_inflated_whole() -> None:
    """A gigabyte in a megabyte: no more than the limit is ever made of it."""
    compressor = zlib.compressobj(9, wbits=-15)
    zeros = bytes(1 << 20)
    bomb = b"".join(compressor.compress(zeros) for _ in range(100)) + compressor.flush()
    with pytest.raises(TooLargeError):
        inflate(bomb, LIMIT)


def test_thousands_of_empty_streams_are_an_error() -> None:
    """Each would take a new inflater."""
    with pytest.raises(InflateError, match="16 DEFLATE streams"):
        inflate(b"\x03\x00" * 30_000, LIMIT)


def test_empty_blocks_are_nothing() -> None:
    """As many as fit."""
    assert inflate((b"\x00" + FLUSH_END) * 10 + b"\x00", LIMIT) == b""
    assert inflate((b"\x00" + FLUSH_END) * 13_000 + b"\x00", LIMIT) == b""
    assert inflate(b"\x02\x00", LIMIT) == b""


def pieces(payload: bytes, first: int) -> bytes:
    """A message with a frame for each byte, and a ping in between."""
    frames = [client_frame(first & ~FIN, payload[:1]), client_frame(FIN | PING, b"?")]
    frames += [client_frame(CONTINUATION, payload[n : n + 1]) for n in range(1, len(payload))]
    return b"".join(frames) + client_frame(FIN | CONTINUATION, b"")


COMPRESSED_TEXT = FIN | RSV1 | TEXT


@pytest.mark.parametrize(
    "data",
    [
        client_frame(COMPRESSED_TEXT, deflated(REQUEST)),
        client_frame(COMPRESSED_TEXT, deflated(REQUEST, level=0)),
        client_frame(COMPRESSED_TEXT, ended(REQUEST)),
        client_frame(COMPRESSED_TEXT, b"\x00" + FLUSH_END + deflated(REQUEST)),
        client_frame(FIN | TEXT, REQUEST),
        pieces(deflated(REQUEST), COMPRESSED_TEXT),
        pieces(REQUEST, FIN | TEXT),
    ],
)
async def test_a_compressed_message_may_come_in_any_pieces(data: bytes) -> None:
    """Fragments, control frames between them, and a byte at a time; plain ones as well."""
    async with running_server() as server:
        for size in (len(data), 1):
            async with compressed_client(server) as client:
                for start in range(0, len(data), size):
                    await client.stream.send_all(data[start : start + size])
                await client.send_frame(FIN | CLOSE, struct.pack("!H", 1000))
                messages, code = await client.messages_until_close()
                assert [message["type"] for message in messages] == ["connected", "pong"]
                assert code == 1000


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (client_frame(FIN | RSV1 | PING, b""), 1002),  # a control frame
        (client_frame(FIN | 0x20 | TEXT, REQUEST), 1002),  # RSV2
        (client_frame(FIN | RSV1 | 0x10 | TEXT, deflated(REQUEST)), 1002),  # RSV3 as well
        (client_frame(FIN | RSV1 | 0x03, b""), 1002),  # a reserved opcode
        (client_frame(FIN | RSV1 | CONTINUATION, b""), 1002),  # of no message
        (
            client_frame(RSV1 | TEXT, b"") + client_frame(FIN | RSV1 | CONTINUATION, b""),
            1002,  # only the first frame of a message says it
        ),
        (client_frame(COMPRESSED_TEXT, b"\xff" * 20), 1007),  # no block type
        (client_frame(COMPRESSED_TEXT, deflated(b"\xff\xfe")), 1007),  # no UTF-8
        (pieces(deflated(b"\xed\xa0\x80"), COMPRESSED_TEXT), 1007),
        (client_frame(COMPRESSED_TEXT, deflated(bytes(LIMIT + 1))), 1009),
        (client_frame(COMPRESSED_TEXT, deflated(bytes(100 * LIMIT))), 1009),
        (pieces(deflated(bytes(LIMIT + 1)), COMPRESSED_TEXT), 1009),
        (client_frame(FIN | RSV1 | BINARY, deflated(bytes(LIMIT + 1))), 1009),
        (client_frame(COMPRESSED_TEXT, bytes(2 * LIMIT)), 1009),
        (
            client_frame(RSV1 | TEXT, bytes(LIMIT)) + client_frame(CONTINUATION, bytes(LIMIT)),
            1009,
        ),
    ],
)
async def test_what_is_broken_ends_the_connection_with_its_code(data: bytes, code: int) -> None:
    """And only that connection: its neighbour gets what is published meanwhile."""
    async with (
        running_server() as server,
        connected(server) as neighbour,
        compressed_client(server) as client,
    ):
        await neighbour.subscribe("stock:A")
        await client.stream.send_all(data)
        messages, closed_with = await client.messages_until_close()
        assert closed_with == code
        assert [m["code"] for m in messages[1:]] == ["MESSAGE_TOO_LARGE"] * (code == 1009)
        publish(server, "stock:A:price", price("A", 1))
        assert (await neighbour.data())["price"] == 1


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (client_frame(COMPRESSED_TEXT, deflated(bytes(100 * LIMIT))), 1009),
        (client_frame(COMPRESSED_TEXT, b"\xff" * 20), 1007),
        (client_frame(FIN | RSV1 | 0x20 | TEXT, deflated(REQUEST)), 1002),
    ],
    ids=["a bomb", "no block type", "RSV2"],
)
async def test_who_shares_its_compressor_inflates_on(data: bytes, code: int) -> None:
    """A client that breaks the rules leaves the window of its group to the others as it was."""
    async with (
        running_server(
            compression_min_members=1, compression_stretch_limit_ms=60_000, flush_interval_ms=0
        ) as server,
        open_client(server.websocket_url, compress=True) as one,
        open_client(server.websocket_url, compress=True) as other,
    ):
        await one.subscribe(["stock:A"])
        await other.subscribe(["stock:A"])

        async def check_prices(numbers: range) -> None:
            for number in numbers:
                publish(server, "stock:A:price", price("A", number))
                for neighbour in (one, other):
                    message = await neighbour.receive()
                    assert isinstance(message, PriceUpdate)
                    assert message.price == number

        for number in range(0, 30, 10):
            async with compressed_client(server) as client:
                await client.send(type="subscribe", subscription_type="stock", targets=["A"])
                await eventually(lambda: server.statistics().subscriptions == 3)
                await check_prices(range(number, number + 5))
                await client.stream.send_all(data)
                received = await client.rest()
                close = received[received.rindex(bytes((FIN | CLOSE,))) :]
                assert close[2:4] == struct.pack("!H", code)
            await eventually(lambda: server.statistics().subscriptions == 2)
            await check_prices(range(number + 5, number + 10))
        compression = server.statistics().compression
        assert compression is not None
        assert compression.compressors == 1
        assert compression.full_flushes == 2  # the first client came before the first frame


async def test_who_has_not_offered_to_compress_must_not() -> None:
    """RSV1 is then a reserved bit; likewise where the settings turn compression off."""
    frame = client_frame(COMPRESSED_TEXT, deflated(REQUEST))
    async with running_server() as server, raw_client(server) as client:
        await client.stream.send_all(frame)
        assert (await client.messages_until_close())[1] == 1002
    async with (
        running_server(compression=False) as server,
        raw_client(server, opened=False) as client,
    ):
        await client.open(headers=OFFER)
        assert b"permessage-deflate" not in await client.response()
        await client.stream.send_all(frame)
        assert (await client.messages_until_close())[1] == 1002
        assert server.statistics().compression is None


async def test_the_largest_message_may_be_compressed() -> None:
    """Its own size counts, not that on the wire; it need not shrink either."""
    padding = json.dumps({"type": "ping", "pad": ""})
    request = json.dumps({"type": "ping", "pad": "x" * (LIMIT - len(padding))}).encode()
    async with running_server() as server:
        for level in (0, 9):
            async with compressed_client(server) as client:
                await client.send_frame(COMPRESSED_TEXT, deflated(request, level=level))
                await client.send_frame(FIN | CLOSE, b"")
                messages, _ = await client.messages_until_close()
                assert [message["type"] for message in messages] == ["connected", "pong"]


async def test_a_header_that_cannot_be_parsed_is_answered_400() -> None:
    """RFC 6455, 9.1."""
    async with running_server() as server, raw_client(server, opened=False) as client:
        await client.open(headers=b"Sec-WebSocket-Extensions: permessage-deflate; =\r\n")
        assert (await client.response()).startswith(b"HTTP/1.1 400 ")
