"""Compression in Chromium, which offers permessage-deflate and inflates by itself."""

from __future__ import annotations

from typing import Final

from streamer.server import Server
from streamer.wire.deflate import WebSocketDeflate
from tests.helpers.publications import price
from tests.helpers.server import first_session, publish, running_server
from tests.helpers.timing import eventually
from tests.web.browser import Chromium, Tab, serving
from tests.web.test_browser import files

PUBLISHED: Final = 60
PAGE: Final = """<script type="module">
import { Streamer } from "./streamer.js";
window.received = [];
window.states = [];
window.streamer = new Streamer(new URLSearchParams(location.search).get("url"));
streamer.on("state", ({ state }) => states.push(state));
window.first = streamer.subscribe("stock:A", ({ price }) => received.push(price), { mode: "all" });
</script>
"""


async def publish_alone(server: Server, number: int) -> None:
    """Publish a price, and wait until it is on its way: the next one is a message of its own."""
    sent = server.statistics().batching.messages
    publish(server, "stock:A:price", price("A", number))
    await eventually(lambda: server.statistics().batching.messages > sent)


async def test_two_pages_inflate_what_is_compressed_once(chromium: Chromium) -> None:
    """The second one joins the group, leaves it and joins again, and has every price as it was."""
    async with running_server(
        flush_interval_ms=0,
        compression_min_members=1,
        compression_min_bytes=0,
        compression_stretch_limit_ms=60_000,
    ) as server:

        async def go_on(tab: Tab, start: int) -> None:
            for number in range(start, start + PUBLISHED):
                await publish_alone(server, number)
            await tab.wait_for(f"received.includes({start + PUBLISHED - 1})")

        with serving(files(PAGE)) as origin:
            url = f"{origin}/?url={server.websocket_url}"
            first = await chromium.open(url)
            await first.evaluate("window.first.ready")
            assert isinstance(first_session(server).outbox.wire, WebSocketDeflate)
            await go_on(first, 0)
            second = await first.another(url)
            await second.evaluate("window.first.ready")
            await go_on(second, PUBLISHED)
            # With another topic, it is in another group, whose window has nothing of this one's.
            await second.evaluate(
                "window.other = streamer.subscribe('stock:B', () => {}), other.ready"
            )
            await go_on(second, 2 * PUBLISHED)
            await second.evaluate("other.close()")
            await go_on(second, 3 * PUBLISHED)
            published = 4 * PUBLISHED
            for tab, begin in ((first, 0), (second, PUBLISHED - 1)):
                await tab.wait_for(f"received.includes({published - 1})")
                assert await tab.evaluate("received") == list(range(begin, published))
                assert (await tab.evaluate("streamer.account()"))["violations"] == 0
                assert tab.errors == []
                # What cannot be inflated ends a connection, and another one restores the stream.
                connected = "states.filter((state) => state === 'connected').length"
                assert await tab.evaluate(connected) == 1
            statistics = server.statistics().compression
            assert statistics is not None
            assert statistics.messages >= published
            assert statistics.full_flushes >= 1
            assert statistics.output_bytes < statistics.input_bytes / 3
            await second.close()
            await first.close()
