"""Streams of events in an EventSource, that of Node and that of Chromium, and behind nginx."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

from streamer.publisher import open_publisher
from tests.helpers import front_proxies
from tests.helpers.events import Message, streaming
from tests.helpers.proxy import Proxy
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually
from tests.web.browser import Chromium, serving
from tests.web.nodejs import HERE, Program, running

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "events.js"

CUTS = 100
"""How often the connection of the EventSource is cut: each time, it waits for its `retry`."""

PIECES = [1, 7, 60, 500]
"""Bytes after which the connection is cut, at the least."""


def events_url(port: int | None) -> str:
    """The URL of streams at a port."""
    return f"http://127.0.0.1:{port}/v1/stream"


@asynccontextmanager
async def event_source(url: str, topics: str) -> AsyncIterator[Program]:
    """The module of docs/examples in Node."""
    options = ["--experimental-eventsource"]
    arguments = [str(EXAMPLE), url, topics]
    async with running(HERE / "events.mjs", *arguments, options=options) as program:
        yield program


async def message_of(program: Program, *types: str) -> Message:
    """The next message of one of these types."""
    while True:
        message: Message = await program.receive()
        if message["type"] in types:
            return message


def test_the_example_is_short() -> None:
    """A module that a front-end developer can read at once."""
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 25


async def test_an_event_source_misses_nothing_over_a_restart(redis_url: str) -> None:
    """It gets from the next server what was published while there was none."""
    async with running_server(redis=redis_url, drain_min_retry_ms=0) as server:
        port = urlsplit(server.websocket_url).port
        async with (
            event_source(events_url(port), "stock:A") as browser,
            open_publisher(redis_url) as publisher,
        ):
            await message_of(browser, "subscribed")
            await publisher.publish("stock:A:price", price("A", 1))
            assert (await message_of(browser, "price_update"))["price"] == 1
            server.shutdown()
            assert (await message_of(browser, "closed"))["code"] == 1001
            await eventually(lambda: server.active_connections == 0)
            await publisher.publish("stock:A:price", price("A", 2))
            async with running_server(redis=redis_url, port=port):
                message = await message_of(browser, "price_update", "gap")
                assert (message["price"], message["sequence"]) == (2, 2)


async def test_an_event_source_that_is_cut_again_and_again_misses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its connection breaks in the middle of events; each message comes once, in order."""
    monkeypatch.setattr("streamer.edge.http_stream.RETRY_MS", (1, 1))
    seed = random.Random(11)
    numbers = {"A": 0, "B": 0}

    async with running_server(flush_interval_ms=0, linger_seconds=60) as server:
        proxy = Proxy(urlsplit(server.websocket_url).port or 0)

        def publish_some() -> None:
            for _ in range(seed.randrange(1, 4)):
                code = seed.choice("AB")
                numbers[code] += 1
                publish(server, f"stock:{code}:price", price(code, 1, volume=numbers[code]))

        received: dict[str, list[int]] = {"A": [], "B": []}
        beginnings = 0

        async def receive(browser: Program) -> None:
            nonlocal beginnings
            while {code: len(volumes) for code, volumes in received.items()} != numbers or (
                beginnings <= CUTS
            ):
                message: Message = await browser.receive()
                if message["type"] == "subscribed":
                    beginnings += 1
                    continue
                assert message["type"] == "price_update", "everything is still known"
                assert not message.get("snapshot"), "it had an id before the first message"
                received[message["stock_code"]].append(message["volume"])

        def has_begun(cut: int) -> bool:
            return beginnings > cut

        async with (
            proxy.run(),
            event_source(events_url(proxy.port), "stock:A,stock:B") as browser,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(receive, browser)
            for cut in range(CUTS):
                await eventually(partial(has_begun, cut))
                proxy.piece_bytes = seed.choice(PIECES)
                publish_some()
                for _ in range(seed.randrange(8)):
                    await trio.lowlevel.checkpoint()
                proxy.piece_bytes = 65_536
                proxy.break_off(proxy.open_connections)
                publish_some()
        assert received == {code: list(range(1, n + 1)) for code, n in numbers.items()}


async def test_chromium_resumes_a_stream(redis_url: str, chromium: Chromium) -> None:
    """Its own EventSource, from a page of an allowed origin, over a restart of the server."""
    page = b"""<!doctype html><title>events</title><script type="module">
        import { followEvents } from "/events.js";
        window.prices = [];
        window.types = [];
        const query = new URLSearchParams(location.search);
        followEvents(query.get("url"), "stock:A", (message) => {
            window.types.push(message.type);
            if (message.type === "price_update") window.prices.push(message.price);
        });
    </script>"""
    files = {
        "/": ("text/html", page),
        "/events.js": ("text/javascript", EXAMPLE.read_bytes()),
    }
    with serving(files) as origin:
        settings = {"redis": redis_url, "drain_min_retry_ms": 0, "allowed_origins": (origin,)}
        async with (
            running_server(**settings) as server,
            open_publisher(redis_url) as publisher,
        ):
            port = urlsplit(server.websocket_url).port
            tab = await chromium.open(f"{origin}/?url={events_url(port)}")
            await tab.wait_for("window.types.includes('subscribed')")
            await publisher.publish("stock:A:price", price("A", 1))
            await tab.wait_for("window.prices.length === 1")
            server.shutdown()
            await tab.wait_for("window.types.includes('closed')")
            await eventually(lambda: server.active_connections == 0)
            await publisher.publish("stock:A:price", price("A", 2))
            async with running_server(**settings, port=port):
                await tab.wait_for("window.prices.length === 2")
                assert await tab.evaluate("window.prices.join()") == "1,2"
                assert await tab.evaluate("window.types.includes('gap')") is False
                await tab.close()
            assert tab.errors == []


@front_proxies.needs_nginx
async def test_nginx_with_its_defaults_holds_nothing_back(tmp_path: Path) -> None:
    """It speaks HTTP/1.0 to the server and buffers, unless the answer says not to."""
    port = front_proxies.free_port()
    async with running_server(flush_interval_ms=0) as server:
        url = f"http://127.0.0.1:{port}"
        upstream = urlsplit(server.websocket_url).netloc
        site = (
            f"server {{ listen 127.0.0.1:{port}; gzip on; gzip_types *; "
            f"location / {{ proxy_pass http://{upstream}; }} }}"
        )
        async with front_proxies.nginx(tmp_path, port, http=site):
            async with streaming(url, "stock:A", version="1.0") as client:
                await client.message_type("subscribed")
                for number in range(3):
                    publish(server, "stock:A:price", price("A", number))
                    assert (await client.message())["price"] == number
                cursor = client.last_id
            await eventually(lambda: server.active_connections == 0)
            publish(server, "stock:A:price", price("A", 3))
            proxied = streaming(url, "stock:A", cursor=cursor, version="1.0")
            async with proxied as client:
                await client.message_type("subscribed")
                assert (await client.message())["price"] == 3
