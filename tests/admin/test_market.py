"""The page of a live market on the HTTP port."""

from __future__ import annotations

from functools import partial

import trio

from streamer.admin.market import ListedStock, MarketPage
from streamer.config import Settings
from streamer.server import serve
from tests.helpers.http import http_client
from tests.helpers.server import running_server

PAGE = MarketPage([ListedStock("A", "Alpha", "KOSPI", "Games")], ["KOSPI"], levels=5)


async def test_the_page_and_its_contents_are_served() -> None:
    """Its files have their types, and a policy that allows nothing from elsewhere."""
    settings = Settings(memory=True, port=0, http_port=0)
    async with trio.open_nursery() as nursery, http_client() as http:
        server = await nursery.start(partial(serve, settings, market=PAGE))
        base = f"{server.http_url}/market"
        for name, media_type in (
            ("", "text/html"),
            ("market.js", "text/javascript"),
            ("market.css", "text/css"),
            ("icon.svg", "image/svg+xml"),
        ):
            answer = await http.get(f"{base}/{name}")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(media_type)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            # The page's own policy is that of its connections.
            if not name:
                assert "connect-src 'self' ws://127.0.0.1:* wss://127.0.0.1:*;" in policy
        contents = (await http.get(f"{base}/market.json")).json()
        assert contents["stocks"] == [
            {"code": "A", "name": "Alpha", "market": "KOSPI", "sector": "Games"}
        ]
        assert str(contents["port"]) in server.websocket_url
        redirected = await http.get(base, follow_redirects=True)
        assert redirected.status_code == 200
        server.shutdown()


async def test_a_server_without_a_market_has_no_such_page() -> None:
    """Only the demo knows what to show on it."""
    async with running_server() as server, http_client() as http:
        assert (await http.get(f"{server.http_url}/market/")).status_code == 404
