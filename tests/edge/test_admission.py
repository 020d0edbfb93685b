"""Who may come in."""

from __future__ import annotations

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
    """1008 for an Origin that is not allowed; no Origin means no browser, and nobody's page."""
    async with running_server(allowed_origins=("https://good.example",)) as server:
        async with open_client(server, headers=[(b"Origin", b"https://evil.example")]) as evil:
            assert await evil.closed() == 1008
        for headers in ([(b"Origin", b"https://good.example")], None):
            async with connected(server, headers=headers) as good:
                await good.ping_pong()
