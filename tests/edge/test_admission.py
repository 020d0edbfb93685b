"""Who may come in."""

from __future__ import annotations

from streamer.protocol.errors import USER_FULL
from tests.helpers.clients import connected, open_client
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


async def test_the_connections_of_one_user_are_limited() -> None:
    """One too many is refused with the user as its cause; the next after one has left is not."""
    async with running_server(max_connections_per_user=1) as server, connected(server) as second:
        acceptor = server._acceptor
        (session,) = acceptor.sessions.values()
        async with connected(server) as first:
            holder = acceptor.sessions[first.session_id]
            assert await acceptor.admit_user("7", holder) is None
            assert await acceptor.admit_user("7", holder) is None  # a token renewed
            assert await acceptor.admit_user("7", session) is USER_FULL
            assert server.statistics().rate_limiting.connections_refused["user_full"] == 1
            assert await acceptor.admit_user("8", session) is None
        await eventually(lambda: server.active_connections == 1)
        async with connected(server) as third:
            assert await acceptor.admit_user("7", acceptor.sessions[third.session_id]) is None
        await second.ping_pong()
    assert not acceptor._admission._by_user
