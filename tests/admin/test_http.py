"""The operator's HTTP listener: which hosts it may be asked by."""

from __future__ import annotations

import httpx2
import pytest

from tests.helpers.server import running_server


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8766", 200),
        ("[::1]:8766", 200),
        ("LOCALHOST:1", 200),
        ("Streamer.internal.:8766", 200),
        ("evil.example", 421),
        ("evil.example:8766", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
    ],
)
async def test_a_host_that_is_neither_an_address_nor_configured_is_refused(
    host: str, status: int
) -> None:
    """A web page whose name resolves to this address (DNS rebinding) reads nothing."""
    async with (
        running_server(http_allowed_hosts=("streamer.internal",)) as server,
        httpx2.AsyncClient(base_url=server.http_url) as client,
    ):
        response = await client.get("/v1/ws/connections", headers={"Host": host})
    assert response.status_code == status
