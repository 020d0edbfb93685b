"""Who may come in."""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing

import trio
from trio.testing import MockClock
from wsproto.frame_protocol import Opcode

from streamer.edge.acceptor import PROBE_SECONDS
from tests.helpers.clients import connected, open_client, raw_client
from tests.helpers.server import running_server
from tests.helpers.timing import eventually


async def test_the_connections_of_one_address_are_limited() -> None:
    """One too many is closed with 1013; when one has left, the next is served."""
    async with running_server(max_connections_per_address=2) as server:
        async with connected(server) as first, connected(server):
            async with open_client(server) as third:
                assert await third.closed() == 1013
            await first.ping_pong()
            assert server.statistics().rate_limiting.connections_refused["address_full"] == 1
            assert server.statistics().active_connections == 2
        await eventually(lambda: server.statistics().active_connections == 0)
        async with connected(server) as fourth:
            await fourth.ping_pong()


async def test_a_full_server_says_try_again_later() -> None:
    """1013, which a client answers with backoff."""
    async with running_server(max_connections=1) as server, connected(server) as first:
        async with open_client(server) as second:
            assert await second.closed() == 1013
        await first.ping_pong()


async def test_pages_of_other_origins_are_refused() -> None:
    """1008 for an Origin that is not allowed; without an Origin the client is no browser."""
    async with running_server(allowed_origins=("https://good.example",)) as server:
        async with open_client(server, headers=[(b"Origin", b"https://evil.example")]) as evil:
            assert await evil.closed() == 1008
        for headers in ([(b"Origin", b"https://good.example")], None):
            async with connected(server, headers=headers) as good:
                await good.ping_pong()


async def test_silent_connections_give_way_to_new_ones_of_their_address(
    mock_clock: MockClock,
) -> None:
    """Five clients lose the network and reconnect: all five are served, within seconds."""
    async with running_server(max_connections_per_address=5) as server, AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(raw_client(server))  # answers no ping
        await eventually(lambda: server.statistics().active_connections == 5)
        mock_clock.jump(2)
        back = [await stack.enter_async_context(raw_client(server, opened=False)) for _ in range(5)]
        for client in back:
            await client.open()
        await eventually(lambda: server.statistics().pending_handshakes == 5)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        mock_clock.jump(PROBE_SECONDS)
        for client in back:
            assert (await client.response()).startswith(b"HTTP/1.1 101 ")
            async with aclosing(client.frames()) as frames:
                assert (await anext(frames))[1]["type"] == "connected"


async def test_connections_that_answer_keep_their_places(mock_clock: MockClock) -> None:
    """They are asked, and the new one is refused with 1013 and its cause."""
    async with (
        running_server(max_connections_per_address=1) as server,
        connected(server) as first,
    ):
        mock_clock.jump(2)
        async with raw_client(server, opened=False) as second:
            await second.open()
            await first.ping_pong()
            await first.ping_pong()
            mock_clock.jump(PROBE_SECONDS)
            assert (await second.response()).startswith(b"HTTP/1.1 101 ")
            async with aclosing(second.frames()) as frames:
                opcode, payload = await anext(frames)
            assert opcode is Opcode.CLOSE
            assert payload == (1013, "too many connections from this address")
        await first.ping_pong()


async def test_a_session_that_the_client_names_gives_way_at_once(mock_clock: MockClock) -> None:
    """A connection with a session's id replaces that session's former connection."""
    async with running_server(max_connections_per_address=1) as server, raw_client(server) as old:
        async with aclosing(old.frames()) as frames:
            session_id = (await anext(frames))[1]["session_id"]
        async with raw_client(server, opened=False) as new:
            await new.open(f"/v1/ws?session_id={session_id}")
            assert (await new.response()).startswith(b"HTTP/1.1 101 ")
            async with aclosing(new.frames()) as frames:
                assert (await anext(frames))[1]["type"] == "connected"
