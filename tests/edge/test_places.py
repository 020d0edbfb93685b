"""Silent connections give way to clients that come back."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock
from wsproto.frame_protocol import Opcode

from streamer.config import Settings
from streamer.edge.acceptor import Acceptor
from streamer.edge.admission import Admission
from streamer.edge.places import PROBE_SECONDS, Places
from streamer.server import Server
from streamer.source.topics import TopicSource
from tests.auth.tokens import secret_file, signed
from tests.helpers.clients import connected, raw_client
from tests.helpers.server import running_server
from tests.helpers.timing import eventually


def acceptor_of(server: Server) -> Acceptor:
    """The acceptor, to which a session reports its user."""
    return server._acceptor


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


async def test_a_client_that_waits_to_be_greeted_keeps_its_place(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It cannot be asked for a sign of life before its handshake is answered: it is not silent."""
    redis_answers = trio.Event()

    async def wait(*_: object) -> dict[object, object]:
        await redis_answers.wait()
        return {}

    monkeypatch.setattr(TopicSource, "prepare", wait)
    settings = {"auth": "optional", "auth_secret_file": secret_file(tmp_path)}
    token = signed(exp=int(time.time()) + 300)
    async with (
        running_server(max_connections_per_address=1, **settings) as server,
        raw_client(server, opened=False) as first,
        raw_client(server, opened=False) as second,
    ):
        await first.open(f"/v1/ws?token={token}")
        await eventually(lambda: bool(acceptor_of(server)._admission._by_address))
        mock_clock.jump(2)
        await second.open()
        await eventually(lambda: server.statistics().pending_handshakes == 1)
        for _ in range(2):
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            mock_clock.jump(PROBE_SECONDS)
        await second.response()
        assert (await second.messages_until_close())[1] == 1013
        redis_answers.set()
        assert (await first.response()).startswith(b"HTTP/1.1 101 ")
        async with aclosing(first.frames()) as frames:
            assert (await anext(frames))[1]["type"] == "connected"
            await first.send(type="ping")
            assert (await anext(frames))[1]["type"] == "pong"


async def test_a_bounded_number_of_connections_is_examined() -> None:
    """Thousands may have one address, that of a proxy, and each one that is refused would wait."""
    examined = 0

    def is_silent_since(_seconds: float) -> bool:
        nonlocal examined
        examined += 1
        return False

    await trio.lowlevel.checkpoint()
    alive: Any = SimpleNamespace(is_ending=False, is_silent_since=is_silent_since)
    assert Places(Admission(Settings()), {})._probe([alive] * 5000, None) == []
    assert examined == 256


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


async def test_a_users_silent_connection_gives_way(mock_clock: MockClock) -> None:
    """Its phone has lost the network and comes back from another address."""
    async with (
        running_server(max_connections_per_user=1, trusted_proxies=("127.0.0.1",)) as server,
        raw_client(server) as silent,  # answers no ping
    ):
        acceptor = acceptor_of(server)
        await eventually(lambda: server.active_connections == 1)
        (session,) = acceptor.sessions.values()
        assert await acceptor.admit_user("7", session) is None
        mock_clock.jump(2)
        async with connected(server, headers=[(b"X-Forwarded-For", b"192.0.2.1")]) as back:
            returning = acceptor.sessions[back.session_id]
            async with trio.open_nursery() as nursery:

                async def admit() -> None:
                    assert await acceptor.admit_user("7", returning) is None

                nursery.start_soon(admit)
                await back.ping_pong()
                mock_clock.jump(PROBE_SECONDS)
            await silent.rest()
            await back.ping_pong()
            assert server.active_connections == 1


async def test_a_users_session_that_is_restored_gives_way_at_once(mock_clock: MockClock) -> None:
    """The client names it, so that nothing has to be waited for."""
    async with (
        running_server(max_connections_per_user=1) as server,
        connected(server) as old,
        connected(server) as new,
    ):
        acceptor = acceptor_of(server)
        assert await acceptor.admit_user("7", acceptor.sessions[old.session_id]) is None
        returning = acceptor.sessions[new.session_id]
        assert await acceptor.admit_user("7", returning, old.session_id) is None
        assert await old.closed() == 1006
