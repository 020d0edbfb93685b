"""streamer.js in Chromium: the example, and what only a browser has."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from streamer.publisher import open_publisher
from tests.helpers.proxy import Proxy
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually
from tests.web.browser import Chromium, running_chromium, serving
from tests.web.nodejs import WEB

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


def files(page: str) -> dict[str, tuple[str, bytes]]:
    """A page, and beside it the modules that it imports."""
    modules = {f"/{path.name}": ("text/javascript", path.read_bytes()) for path in WEB.glob("*.js")}
    return {"/": ("text/html", f"<!doctype html>\n{page}".encode()), **modules}


SHARING = """<script type="module">
import { share } from "./streamer-shared.js";
window.received = [];
window.streamer = share(new URLSearchParams(location.search).get("url"));
window.first = streamer.subscribe("stock:A", ({ price }) => received.push(price));
</script>
"""


async def test_the_tabs_of_an_origin_share_a_connection(chromium: Chromium) -> None:
    """Each gets its messages; the connection ends with the last of them."""
    async with running_server() as server:
        with serving(files(SHARING)) as origin:
            url = f"{origin}/?url={server.websocket_url}"
            first = await chromium.open(url)
            await first.evaluate("window.first.ready")
            second = await first.another(url)
            await second.evaluate("window.first.ready")
            assert server.active_connections == 1
            publish(server, "stock:A:price", price("A", 1))
            for tab in (first, second):
                await tab.wait_for("received.includes(1)")
            refused = "streamer.subscribe('stock:*', () => {}).ready.catch((error) => error.code)"
            assert await second.evaluate(refused) == "INVALID_TARGET"
            await first.close()
            publish(server, "stock:A:price", price("A", 2))
            await second.wait_for("received.includes(2)")
            account = await second.evaluate("streamer.account()")
            assert (account["received"], account["violations"]) == (2, 0)
            assert await second.evaluate("streamer.position('stock:A')") is not None
            await second.evaluate("streamer.close()")
            await eventually(lambda: server.active_connections == 0)
            await second.close()


async def test_a_tab_that_shares_a_connection_hears_of_each_end(chromium: Chromium) -> None:
    """A topic that cannot be is a TypeError, and a closed subscription is not ready."""
    network = Proxy()
    async with running_server() as server, network.run():
        network.server_port = urlsplit(server.websocket_url).port or 0
        with serving(files(SHARING)) as origin:
            tab = await chromium.open(f"{origin}/?url=ws://127.0.0.1:{network.port}/v1/ws")
            await tab.evaluate("window.first.ready")
            for topic in ("A", "stocks", "users", "constructor:A"):
                wrong = f"streamer.subscribe('{topic}', () => {{}})"
                tried = f"try {{ {wrong} }} catch ({{ name }}) {{ return name }}"
                assert await tab.evaluate(f"(() => {{ {tried} }})()") == "TypeError"
            network.deafen()  # no other subscription is answered
            await tab.evaluate("window.ends = []")
            subscribe = (
                "window.{0} = streamer.subscribe('stock:{0}', () => {{}});"
                "window.{0}.ready.catch(({{ message }}) => ends.push(message));"
            )
            await tab.evaluate(subscribe.format("B") + "window.B.close()")
            await tab.wait_for("ends.length === 1")
            await tab.evaluate(subscribe.format("C") + "streamer.close()")
            await tab.wait_for("ends.length === 2")
            assert set(await tab.evaluate("ends")) == {"the subscription was closed"}
            await tab.close()


async def test_a_listener_that_throws_in_a_tab_keeps_no_other_from_an_event(
    chromium: Chromium,
) -> None:
    """Its error is the page's."""
    async with running_server() as server:
        with serving(files(SHARING)) as origin:
            tab = await chromium.open(f"{origin}/?url={server.websocket_url}")
            await tab.evaluate("window.first.ready")
            await tab.evaluate(
                "(() => { window.codes = [];"
                "streamer.on('error', () => { throw new Error('of the page'); });"
                "streamer.on('error', ({ code }) => codes.push(code)); })()"
            )
            await tab.evaluate("streamer.subscribe('stock:*', () => {}).id")
            await tab.wait_for("codes.length === 1")
            assert await tab.evaluate("codes") == ["INVALID_TARGET"]
            assert tab.errors == ["of the page"]
            await tab.close()


ASKED = """<script type="module">
import { share } from "./streamer-shared.js";
const token = () => new Promise((resolve) => (window.give = resolve));
window.streamer = share(new URLSearchParams(location.search).get("url"), { token });
window.first = streamer.subscribe("stock:A", () => {});
</script>
"""


async def test_a_tab_that_is_closed_before_it_gives_a_token_holds_up_no_other(
    chromium: Chromium,
) -> None:
    """The shared worker asks another one, from which the connection of all is opened."""
    async with running_server() as server:
        with serving(files(ASKED)) as origin:
            url = f"{origin}/?url={server.websocket_url}"
            first = await chromium.open(url)
            await first.wait_for("'give' in window")
            second = await first.another(url)
            await second.wait_for("'streamer' in window")
            await first.close()
            await second.wait_for("'give' in window")
            await second.evaluate("give('a token that nobody checks')")
            await second.evaluate("window.first.ready")
            assert server.active_connections == 1
            await second.close()


LIFECYCLE = """<script type="module">
import { Streamer } from "./streamer.js";
window.received = [];
window.states = [];
window.streamer = new Streamer(new URLSearchParams(location.search).get("url"), {
  pongTimeoutMs: 500,
});
streamer.on("state", ({ state, reason }) => states.push(reason ?? state));
window.first = streamer.subscribe("stock:A", ({ price }) => received.push(price));
</script>
<a href="/other">other</a>
"""


async def test_a_page_comes_back_from_the_cache_and_has_missed_nothing() -> None:
    """It closes its connection when it is left, so that the browser can keep the page."""
    with (
        running_chromium(without=("--disable-back-forward-cache",)) as chromium,
        serving(
            files(LIFECYCLE) | {"/other": ("text/html", b"<!doctype html>elsewhere")}
        ) as origin,
    ):
        async with running_server() as server:
            tab = await chromium.open(f"{origin}/?url={server.websocket_url}")
            await tab.evaluate("window.first.ready")
            publish(server, "stock:A:price", price("A", 1))
            await tab.wait_for("received.includes(1)")
            await tab.evaluate("window.mark = 'kept'")
            await tab.run(lambda page: page.goto(f"{origin}/other"))
            await eventually(lambda: server.active_connections == 0)
            publish(server, "stock:A:price", price("A", 2))
            # A page from the cache has no load event, for which Playwright's go_back would wait.
            await tab.evaluate("history.back()")
            await tab.wait_for("window.received?.includes(2)")
            assert await tab.evaluate("window.mark") == "kept"
            assert await tab.evaluate("received") == [1, 2]
            account = await tab.evaluate("streamer.account()")
            assert (account["violations"], account["gaps"]) == (0, {})


async def test_the_network_goes_and_comes_back(chromium: Chromium) -> None:
    """A page that waits to reconnect does so at once when the browser is online again."""
    network = Proxy()
    async with running_server() as server, network.run():
        network.server_port = urlsplit(server.websocket_url).port or 0
        page = LIFECYCLE.replace("pongTimeoutMs: 500", "firstDelayMs: 3e9, maxDelayMs: 3e9")
        with serving(files(page)) as origin:
            tab = await chromium.open(f"{origin}/?url=ws://127.0.0.1:{network.port}/v1/ws")
            await tab.evaluate("window.first.ready")
            await tab.run(lambda page: page.context.set_offline(True))
            network.break_off(1)
            await tab.wait_for("streamer.state === 'connecting'")
            publish(server, "stock:A:price", price("A", 1))
            await tab.run(lambda page: page.context.set_offline(False))
            await tab.wait_for("received.includes(1)")
            await tab.close()
