"""The client for browsers, served from the HTTP port."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.admin.assets import MODULES
from tests.helpers.http import http_client
from tests.helpers.server import running_server

WEB = Path(__file__).parents[2] / "streamer" / "web"


@pytest.mark.parametrize("name", MODULES)
async def test_a_page_of_any_origin_can_load_the_modules(name: str) -> None:
    """They come whole, as JavaScript that a browser does not second-guess, to every origin."""
    async with (
        running_server() as server,
        http_client(base_url=server.http_url) as client,
    ):
        response = await client.get(f"/{name}", headers={"Origin": "https://page.example"})
        plain = await client.get(f"/{name}", headers={"Accept-Encoding": "identity"})
    assert response.content == (WEB / name).read_bytes() == plain.content
    assert response.headers["content-type"] == "text/javascript; charset=utf-8"
    assert response.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["cross-origin-resource-policy"] == "cross-origin"
    assert response.headers["vary"] == "Accept-Encoding"


async def test_a_browser_that_has_the_module_is_not_sent_it_again() -> None:
    """Its ETag is answered with 304 and no body, a former one with the file."""
    async with (
        running_server() as server,
        http_client(base_url=server.http_url) as client,
    ):
        etag = (await client.get("/streamer.js")).headers["etag"]
        again = await client.get("/streamer.js", headers={"If-None-Match": f'"other", {etag}'})
        former = await client.get("/streamer.js", headers={"If-None-Match": '"other"'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == etag
    assert former.status_code == 200


async def test_only_the_modules_can_be_read_by_pages_of_other_origins() -> None:
    """No other origin may read the pages of the operator."""
    async with (
        running_server() as server,
        http_client(base_url=server.http_url) as client,
    ):
        for path in ("/v1/ws/stats", "/metrics", "/v1/ws/connections", "/readyz"):
            response = await client.get(path, headers={"Origin": "https://page.example"})
            assert response.status_code == 200
            assert "access-control-allow-origin" not in response.headers
