"""Whoever is refused is counted by the cause, and the log names it with the address.

Covers streamer.edge.arrivals.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from structlog.testing import capture_logs

from streamer.edge.admission import Cause
from streamer.server import Server
from tests.helpers.clients import connected, open_client, raw_client
from tests.helpers.identities import bearer, identity_settings
from tests.helpers.server import running_server
from tests.helpers.timing import eventually

EVIL: Final = [(b"Origin", b"https://evil.example")]


async def one_more(server: Server) -> None:
    """Connect while another client has the only place."""
    async with connected(server), open_client(server) as second:
        await second.closed()


async def two_of_one_user(server: Server) -> None:
    """Connect with a token of a user who has a connection."""
    headers = bearer()
    async with connected(server, headers=headers), open_client(server, headers=headers) as second:
        await second.closed()


async def from_another_page(server: Server) -> None:
    """Connect with an Origin that is not allowed."""
    async with open_client(server, headers=EVIL) as client:
        await client.closed()


async def with_a_wrong_token(server: Server) -> None:
    """Connect with a token that is none."""
    async with open_client(server, headers=[(b"Authorization", b"Bearer x.y.z")]) as client:
        await client.closed()


async def without_http(server: Server) -> None:
    """Send something that is no request."""
    async with raw_client(server, opened=False) as client:
        await client.stream.send_all(b"\r\n\r\nnot HTTP\r\n\r\n")
        with suppress(trio.BrokenResourceError):  # a reset, since the server has not read all
            await client.rest()


async def too_often(server: Server) -> None:
    """Go on sending over the rate limit."""
    async with connected(server) as client:
        for _ in range(5):
            await client.send(type="ping")
        await client.closed()


async def without_descriptors(server: Server) -> None:
    """Connect while the process has no file descriptor left."""
    server._acceptor._max_descriptors = 0
    async with raw_client(server, opened=False) as client:
        with suppress(trio.BrokenResourceError):
            await client.rest()


Refused = tuple[dict[str, Any], Callable[[Server], Awaitable[None]]]

REFUSED: Final[dict[Cause, Refused]] = {
    Cause.ORIGIN: ({"allowed_origins": ("https://good.example",)}, from_another_page),
    Cause.SERVER_FULL: ({"max_connections": 1}, one_more),
    Cause.ADDRESS_FULL: ({"max_connections_per_address": 1}, one_more),
    Cause.USER_FULL: ({"max_connections_per_user": 1}, two_of_one_user),
    Cause.HANDSHAKE: ({}, without_http),
    Cause.PROXY_PROTOCOL: ({"proxy_protocol": "required"}, without_http),
    Cause.ABUSE: (
        {"rate_limit": 0.001, "rate_limit_burst": 1, "rate_limit_max_violations": 3},
        too_often,
    ),
    Cause.TOKEN: ({}, with_a_wrong_token),
    Cause.DESCRIPTORS: ({}, without_descriptors),
}


@pytest.mark.parametrize("cause", Cause, ids=str)
async def test_the_log_names_the_cause_of_each_refusal(cause: Cause, tmp_path: Path) -> None:
    """One line at warning, with the cause and the address; the statistics count it."""
    settings, attempt = REFUSED[cause]
    with capture_logs() as logs:
        async with running_server(**identity_settings(tmp_path) | settings) as server:
            await attempt(server)
            await eventually(lambda: server.statistics().rate_limiting.connections_refused[cause])
            refused = server.statistics().rate_limiting.connections_refused
    lines = [line for line in logs if line["event"] == "connection refused"]
    assert [(line["cause"], line["log_level"]) for line in lines] == [(cause.value, "warning")]
    assert lines[0]["address"] == "127.0.0.1"
    assert {name: count for name, count in refused.items() if count} == {cause.value: 1}


@pytest.mark.parametrize("cause", Cause, ids=str)
def test_each_cause_is_described_to_operators(cause: Cause) -> None:
    """Beside the metric that has it as a label."""
    text = (Path(__file__).parents[2] / "docs/how-to/monitor.md").read_text()
    (line,) = [line for line in text.splitlines() if "connections_refused_total{cause}" in line]
    assert f"`{cause}`" in line
