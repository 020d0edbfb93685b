"""Static files of pages: their types, and what browsers let them load.

Covers streamer.admin.operator and streamer.admin.pages.
"""

from __future__ import annotations

import pytest

from tests.helpers.http import http_client
from tests.helpers.server import running_server


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html"),
        ("/operator/operator.css", "text/css"),
        ("/operator/operator.js", "text/javascript"),
        ("/operator/plots.js", "text/javascript"),
        ("/operator/page.css", "text/css"),
        ("/operator/page.js", "text/javascript"),
        ("/operator/icon.svg", "image/svg+xml"),
    ],
)
async def test_the_files_of_the_operators_page_are_served(path: str, media_type: str) -> None:
    """They may load from this origin alone, and no other page may show them in a frame."""
    async with running_server() as server, http_client() as http:
        answer = await http.get(f"{server.http_url}{path}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(media_type)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert set(answer.headers["content-security-policy"].split("; ")) == {
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    }


async def test_the_page_is_refused_under_another_name() -> None:
    """A page that makes its own name resolve to this address gets no page with its origin."""
    async with running_server() as server, http_client() as http:
        answer = await http.get(server.http_url, headers={"Host": "evil.example"})
    assert answer.status_code == 421
