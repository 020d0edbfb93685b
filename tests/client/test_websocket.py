"""The client's own WebSocket: compression, broken frames, and the closing handshake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import lockstep_stream_pair, memory_stream_pair
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    TextMessage,
)
from wsproto.extensions import PerMessageDeflate

from streamer.client import ClosedError, open_client
from streamer.client.websocket import (
    HandshakeRejectedError,
    WebSocket,
    WebSocketClosedError,
    open_websocket,
)
from tests.client.conftest import Serve
from tests.helpers.publications import orderbook, price
from tests.helpers.server import publish
from tests.helpers.timing import eventually

MAX_BYTES = 1000


class Server:
    """The other end, a frame at a time."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._connection = WSConnection(ConnectionType.SERVER)

    async def say(self, *events: Event) -> None:
        """Send frames together."""
        await self.stream.send_all(b"".join(map(self._connection.send, events)))

    async def hear(self) -> list[Event]:
        """Return what comes next."""
        while True:
            self._connection.receive_data(bytes(await self.stream.receive_some()) or None)
            if events := list(self._connection.events()):
                return events


@asynccontextmanager
async def pair(
    *, compress: bool = False, lockstep: bool = False
) -> AsyncIterator[tuple[WebSocket, Server]]:
    """A client and its server, connected in memory; `lockstep`: whose writes wait for reads."""
    client_end: trio.abc.Stream
    server_end: trio.abc.Stream
    client_end, server_end = lockstep_stream_pair() if lockstep else memory_stream_pair()
    server = Server(server_end)

    async def accept() -> None:
        await server.hear()
        await server.say(AcceptConnection(extensions=[PerMessageDeflate()]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        socket = await open_websocket(
            client_end, "localhost", "/", compress=compress, max_message_bytes=MAX_BYTES
        )
    yield socket, server


@pytest.mark.parametrize("compress", [False, True])
async def test_messages_go_both_ways(compress: bool) -> None:
    """In one frame or in several, together or alone, text or binary."""
    async with pair(compress=compress) as (socket, server):
        await server.say(
            TextMessage(data="one"),
            TextMessage(data="t", message_finished=False),
            TextMessage(data="wo", message_finished=True),
            BytesMessage(data=b"th", message_finished=False),
            BytesMessage(data=b"ree"),
        )
        assert [await socket.get_message() for _ in range(3)] == ["one", "two", b"three"]
        await socket.send_message("four")
        (event,) = await server.hear()
        assert event == TextMessage(data="four")


async def test_a_pong_answers_its_ping_and_those_before() -> None:
    """Pings of the server are answered while the client receives."""
    async with pair() as (socket, server), trio.open_nursery() as nursery:
        nursery.start_soon(socket.ping)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(socket.ping)
        await server.hear()
        await server.say(
            Pong(payload=b"of nobody"), Pong(payload=b"2"), Ping(payload=b"x"), TextMessage(data="")
        )
        await socket.get_message()
        answers = await server.hear()
        while Pong(payload=b"x") not in answers:
            answers = await server.hear()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xc1\x00", 1002),  # compressed, which was not offered
        (b"\x81\x02\xff\xfe", 1007),
        (b"\x83\x00", 1002),
        (b"\x82\x7e\x03\xe9" + bytes(1001), 1009),
        (b"\x02\x7e\x03\xe8" + bytes(1000) + b"\x80\x01x", 1009),
    ],
)
async def test_broken_frames_end_the_connection_behind_what_came_before(
    data: bytes, code: int
) -> None:
    """With the code for it, which the server is sent, too."""
    async with pair() as (socket, server):
        await server.say(TextMessage(data="before"))
        await server.stream.send_all(data)
        assert await socket.get_message() == "before"
        with pytest.raises(WebSocketClosedError) as closed:
            await socket.get_message()
        assert closed.value.code == code
        (event,) = await server.hear()
        assert isinstance(event, CloseConnection)
        assert event.code == code
        with pytest.raises(WebSocketClosedError):
            await socket.send_message("after")


async def test_what_inflates_to_too_much_ends_the_connection() -> None:
    """A message counts by its own size."""
    async with pair(compress=True) as (socket, server):
        await server.say(TextMessage(data="x" * 1000), TextMessage(data="x" * 1001))
        assert len(await socket.get_message()) == 1000
        with pytest.raises(WebSocketClosedError) as closed:
            await socket.get_message()
        assert closed.value.code == 1009


async def test_a_close_of_the_server_is_answered_and_raised_to_all() -> None:
    """A ping that waits for its pong ends, too."""
    async with pair() as (socket, server):

        async def ping() -> None:
            with pytest.raises(WebSocketClosedError):
                await socket.ping()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ping)
            await server.hear()
            await server.say(TextMessage(data="last"), CloseConnection(code=4008, reason="slow"))
            assert await socket.get_message() == "last"
            for _ in range(2):
                with pytest.raises(WebSocketClosedError) as closed:
                    await socket.get_message()
                assert (closed.value.code, closed.value.reason) == (4008, "slow")
        (event,) = await server.hear()
        assert isinstance(event, CloseConnection)
        await socket.aclose()  # nothing is left to do


async def test_closing_waits_for_the_servers_close() -> None:
    """Messages and pings that are still on their way are read, and not answered."""
    async with pair() as (socket, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(socket.aclose)
            (event,) = await server.hear()
            assert isinstance(event, CloseConnection)
            await server.stream.send_all(b"\x89\x01x\x81\x01x")
            await server.say(event.response())
        with pytest.raises(WebSocketClosedError):
            await socket.send_message("after")


async def test_a_connection_that_is_cut_ends_with_1006() -> None:
    """In the middle of a frame, or of the handshake."""
    async with pair() as (socket, server):
        await server.stream.send_all(b"\x81\x05he")
        await server.stream.aclose()
        with pytest.raises(WebSocketClosedError) as closed:
            await socket.get_message()
        assert closed.value.code == 1006
        await socket.aclose()
    client_end, server_end = memory_stream_pair()
    await server_end.send_all(b"HTTP/1.1 101 Swi")
    await server_end.send_eof()
    with pytest.raises(WebSocketClosedError):
        await open_websocket(
            client_end, "localhost", "/", compress=False, max_message_bytes=MAX_BYTES
        )


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", HandshakeRejectedError),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", WebSocketClosedError),
    ],
)
async def test_another_answer_to_the_handshake_is_an_error(
    answer: bytes, error: type[Exception]
) -> None:
    """An HTTP status has an error of its own."""
    client_end, server_end = memory_stream_pair()
    await server_end.send_all(answer)
    with pytest.raises(error):
        await open_websocket(
            client_end, "localhost", "/", compress=True, max_message_bytes=MAX_BYTES
        )


async def test_a_compressed_stream_is_whole(start_server: Serve) -> None:
    """Clients that share a window get and verify what is published; some leave and come."""
    server = await start_server(
        compression_min_members=1,
        max_connections_per_address=0,
        compression_stretch_limit_ms=60_000,
    )
    async with (
        open_client(server.websocket_url, compress=True) as one,
        open_client(server.websocket_url) as plain,
    ):
        await one.subscribe(["stock:A"])
        await plain.subscribe(["stock:A"])
        for number in range(1, 21):
            async with open_client(server.websocket_url, compress=True) as other:
                await other.subscribe(["stock:A"])
                publish(server, "stock:A:orderbook", orderbook("A", number))
                texts = {(await client.receive()).text for client in (one, plain)}
                assert len(texts) == 1
        assert not one.account().violations
        compression = server.statistics().compression
        assert compression is not None
        assert compression.messages >= 20
        assert compression.full_flushes >= 19
        assert compression.output_bytes < compression.input_bytes
    await eventually(lambda: server.statistics().active_connections == 0)
    compression = server.statistics().compression
    assert compression is not None
    assert compression.compressors == 0


async def test_a_message_that_is_too_large_ends_the_client(start_server: Serve) -> None:
    """Compressed or not; there is no use in asking for it again."""
    server = await start_server()
    async with open_client(server.websocket_url, compress=True, max_message_bytes=2000) as client:
        await client.subscribe(["stock:A"])
        publish(server, "stock:A:price", price("A", 1)[:-1] + b',"pad":"%b"}' % (b"x" * 2000))
        with pytest.raises(ClosedError):
            await client.receive()
