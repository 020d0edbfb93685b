"""streamer.js in Chromium: the example, and what only a browser has."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from streamer.publisher import open_publisher
from tests.helpers.publications import price
from tests.helpers.server import running_server
from tests.web.browser import Chromium, serving

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "browser.html"


def test_the_example_is_short() -> None:
    """A page that a front-end developer can start from has 20 lines."""
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 20


async def test_the_example_shows_prices_over_a_restart(redis_url: str, chromium: Chromium) -> None:
    """It loads the module from the HTTP port, and goes on after a restart of the server."""
    async with (
        running_server(redis=redis_url, drain_min_retry_ms=0) as server,
        open_publisher(redis_url) as publisher,
    ):
        page = EXAMPLE.read_text(encoding="utf-8")
        page = page.replace("http://127.0.0.1:8766", server.http_url)
        page = page.replace("ws://127.0.0.1:8765/v1/ws", server.websocket_url)
        with serving({"/": ("text/html", page.encode())}) as origin:
            await publisher.publish("stock:A:price", price("A", 1.5))
            tab = await chromium.open(f"{origin}/?stocks=A,B")
            await tab.wait_for("window.prices.innerText.includes('A\\t1.5')")
            assert await tab.evaluate("window.state.textContent") == "connected"
            port = urlsplit(server.websocket_url).port
            server.shutdown()
            await tab.wait_for("window.state.textContent === 'connecting'")
            await publisher.publish("stock:B:price", price("B", 72500))
            async with running_server(redis=redis_url, port=port):
                await tab.wait_for("window.prices.innerText.includes('B\\t72500')")
                assert await tab.evaluate("window.state.textContent") == "connected"
                await tab.close()
            assert tab.errors == []
