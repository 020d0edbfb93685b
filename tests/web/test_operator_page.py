"""The operator's page in Chromium, as operators see it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
import trio_websocket
from playwright.sync_api import Page, Request, expect

from streamer.server import Server
from tests.helpers.clients import Client, connected
from tests.helpers.operator import KEY, key_file
from tests.helpers.publications import numbered_price
from tests.helpers.server import publish, running_server
from tests.web.browser import PHONE, WAIT_MS, Chromium, Tab, axe_findings

ROWS = "#connections tr"


@pytest.fixture(name="server")
async def server_with_the_api(tmp_path: Path) -> AsyncIterator[Server]:
    """A server on the bus in the process, with the API."""
    async with running_server(api_key_file=key_file(tmp_path)) as server:
        yield server


@asynccontextmanager
async def subscriber(server: Server, topic: str) -> AsyncIterator[Client]:
    """A client that has received one publication."""
    async with connected(server) as client:
        await client.subscribe(topic)
        publish(server, f"{topic}:price", numbered_price(1, topic.partition(":")[2]))
        await client.data()
        yield client


async def open_page(
    chromium: Chromium, server: Server, *, with_key: bool = False, **options: Any
) -> Tab:
    """Open the page, and wait until it shows the server and a connection."""
    tab = await chromium.open(server.http_url, **options)

    def wait(page: Page) -> None:
        expect(page.locator("#state")).to_have_text("ready", timeout=WAIT_MS)
        expect(page.locator(ROWS).first).to_be_visible(timeout=WAIT_MS)
        if with_key:
            enter(page, KEY)
            expect(page.locator("#topics tr").first).to_be_visible(timeout=WAIT_MS)

    await tab.run(wait)
    return tab


def enter(page: Page, key: str) -> None:
    """Type an API key in."""
    page.locator("#key").fill(key)
    page.locator("#key").press("Enter")


async def test_it_shows_a_connection_and_a_topic_and_asks_nobody_else(
    chromium: Chromium, server: Server
) -> None:
    """All requests go to the server; no id of a session, no key in the content."""
    requested: list[str] = []
    tab = await chromium.open("about:blank")
    async with subscriber(server, "stock:A1") as client:

        def look(page: Page) -> None:
            def note(request: Request) -> None:
                requested.append(request.url)

            messages: list[str] = []
            page.on("request", note)
            page.on("console", lambda message: messages.append(message.text))
            page.goto(server.http_url)
            expect(page.locator("#state")).to_have_text("ready", timeout=WAIT_MS)
            expect(page.locator(ROWS)).to_contain_text("127.0.0.1", timeout=WAIT_MS)
            expect(page.locator(ROWS)).to_contain_text("stock:A1")
            expect(page.locator("#no-topics")).to_contain_text("API key")
            expect(
                page.locator("figure", has_text="Connections").locator("path")
            ).to_have_attribute("d", re.compile(r"^M\d.*L"), timeout=WAIT_MS)
            enter(page, KEY)
            expect(page.locator("#topics tr")).to_contain_text("stock:A1", timeout=WAIT_MS)
            expect(page.locator("#topics tr td")).to_contain_text(
                ["plain", re.compile("^.$"), "1", "1", re.compile(r"^\d+ d$")]
            )
            assert page.locator("#key").input_value() == ""
            assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
            content = page.content()
            assert client.session_id not in content
            assert KEY not in content
            assert messages == []

        await tab.run(look)
    await tab.close()
    assert tab.errors == []
    assert {urlsplit(url).netloc for url in requested} == {urlsplit(server.http_url).netloc}


async def test_a_click_disconnects_one_client(chromium: Chromium, server: Server) -> None:
    """The filter finds it; the other stays."""
    async with subscriber(server, "stock:A1") as kept, subscriber(server, "stock:B2") as ended:
        tab = await open_page(chromium, server, with_key=True)

        def disconnect(page: Page) -> None:
            expect(page.locator(ROWS)).to_have_count(2, timeout=WAIT_MS)
            page.locator("#filter").fill("nothing like that")
            expect(page.locator("#no-connections")).to_have_text("No connection matches.")
            page.locator("#filter").fill("STOCK:b2")
            expect(page.locator(ROWS)).to_have_count(1)
            page.get_by_role("button", name=re.compile("^Disconnect ")).click()
            expect(page.locator("#note")).to_have_text(
                re.compile(r"^Disconnected [0-9a-f]{8}\.$"), timeout=WAIT_MS
            )
            page.locator("#filter").fill("")
            expect(page.locator(ROWS)).to_have_count(1, timeout=WAIT_MS)
            expect(page.locator(ROWS)).to_contain_text("stock:A1")

        await tab.run(disconnect)
        await ended.receive_type("disconnected")
        with pytest.raises(trio_websocket.ConnectionClosed):
            await ended.receive()
        await kept.subscribe("stock:C3")
        await tab.close()
    assert tab.errors == []


async def test_a_wrong_key_is_forgotten(chromium: Chromium, server: Server) -> None:
    """The page says so, shows no button that could not work, and asks for a key again."""
    async with subscriber(server, "stock:A1"):
        tab = await open_page(chromium, server)

        def try_wrong_key(page: Page) -> None:
            enter(page, "x" * 32)
            expect(page.locator("#note")).to_contain_text("not valid", timeout=WAIT_MS)
            expect(page.locator("#key")).to_be_visible()
            expect(page.locator("#connections button")).to_have_count(0)
            assert page.evaluate("sessionStorage.length") == 0

        await tab.run(try_wrong_key)
        await tab.close()


async def test_a_server_without_keys_says_which_setting_it_is(chromium: Chromium) -> None:
    """There is no API then; the rest of the page works."""
    async with running_server() as server, subscriber(server, "stock:A1"):
        tab = await open_page(chromium, server)

        def try_key(page: Page) -> None:
            enter(page, KEY)
            expect(page.locator("#note")).to_contain_text("api_key_file", timeout=WAIT_MS)

        await tab.run(try_key)
        await tab.close()


async def test_columns_sort_and_pages_turn_by_keyboard(chromium: Chromium, server: Server) -> None:
    """Fifty connections are a page; the head of a column sorts by it, one way and the other."""
    async with trio.open_nursery() as nursery:
        leave = trio.Event()

        async def stay(count: int, task_status: trio.TaskStatus[None]) -> None:
            async with connected(server) as client:
                await client.subscribe(*(f"stock:T{number}" for number in range(1, count + 1)))
                task_status.started()
                await leave.wait()

        for count in range(1, 53):
            await nursery.start(stay, count)
        tab = await open_page(chromium, server)

        def sort(page: Page) -> None:
            expect(page.locator("#connections-shown")).to_have_text(
                re.compile("^1.50 of 52$"), timeout=WAIT_MS
            )
            by_topics = page.get_by_role("columnheader", name="Topics")
            first = page.locator(f"{ROWS} td.number").nth(1)
            by_topics.get_by_role("button").focus()
            page.keyboard.press("Enter")
            expect(by_topics).to_have_attribute("aria-sort", "descending")
            expect(first).to_have_text("52")
            page.keyboard.press("Enter")
            expect(by_topics).to_have_attribute("aria-sort", "ascending")
            expect(first).to_have_text("1")
            page.locator("#next").focus()
            page.keyboard.press("Enter")
            expect(page.locator("#connections-shown")).to_have_text(re.compile("^51.52 of 52$"))
            expect(page.locator(ROWS)).to_have_count(2)
            expect(page.locator("#next")).to_be_disabled()

        await tab.run(sort)
        await tab.close()
        leave.set()
    assert tab.errors == []


async def test_the_keyboard_is_enough(chromium: Chromium, server: Server) -> None:
    """By Tab and Enter: the colors, a key, and a connection that is ended; the focus is seen."""
    async with subscriber(server, "stock:A1") as client:
        tab = await open_page(chromium, server)

        def disconnect(page: Page) -> None:
            tab_to(page, "#key")
            page.keyboard.type(KEY)
            page.keyboard.press("Enter")
            expect(page.locator("#topics tr").first).to_be_visible(timeout=WAIT_MS)
            tab_to(page, "#theme")
            page.keyboard.press("Enter")
            expect(page.locator(":root")).to_have_attribute("data-theme", re.compile("dark|light"))
            tab_to(page, f"{ROWS} button")
            page.keyboard.press("Enter")
            expect(page.locator("#note")).to_have_text(
                re.compile(r"^Disconnected [0-9a-f]{8}\.$"), timeout=WAIT_MS
            )

        await tab.run(disconnect)
        await client.receive_type("disconnected")
        await tab.close()
    assert tab.errors == []


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until an element has the focus; all on the way show that they have it."""
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        if focused.count():  # else it is between the last element and the first
            expect(focused).not_to_have_css("outline-style", "none")
            if focused.and_(page.locator(selector)).count():
                return
    pytest.fail(f"{selector} is not reached")


async def test_a_row_that_somebody_points_at_does_not_move(
    chromium: Chromium, server: Server
) -> None:
    """A refresh must not put another client under the pointer before a click."""
    async with subscriber(server, "stock:A1"):
        tab = await open_page(chromium, server, with_key=True)

        def point(page: Page) -> None:
            page.locator(f"{ROWS} button").first.hover()

        def refresh(page: Page) -> None:
            with page.expect_response("**/v1/ws/connections"):
                page.evaluate("document.getElementById('load-connections').click()")
            page.evaluate("new Promise(requestAnimationFrame)")
            expect(page.locator(ROWS)).to_have_count(1)

        def leave(page: Page) -> None:
            page.locator("h1").hover()
            expect(page.locator(ROWS)).to_have_count(2, timeout=WAIT_MS)

        await tab.run(point)
        async with subscriber(server, "stock:B2"):
            await tab.run(refresh)
            await tab.run(leave)
        await tab.close()


async def test_names_that_clients_choose_are_only_text(chromium: Chromium, server: Server) -> None:
    """The name of a program may have HTML in it; it is shown as it is."""
    host, _, port = urlsplit(server.websocket_url).netloc.rpartition(":")
    html = "<img src=x onerror=alert(1)><b>bold</b>"
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(
            f"GET /v1/ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            f"User-Agent: {html}\r\n\r\n".encode()
        )
        tab = await open_page(chromium, server)

        def look(page: Page) -> None:
            expect(page.locator(ROWS)).to_contain_text(html, timeout=WAIT_MS)
            expect(page.locator(f"{ROWS} b, {ROWS} img")).to_have_count(0)

        await tab.run(look)
        await tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_readiness_and_silence_are_shown_with_their_reason(
    chromium: Chromium, scheme: str
) -> None:
    """Redis is not there; then the server is not. Axe has no findings in either state."""
    async with running_server(redis="redis://127.0.0.1:1", require_redis=False) as server:
        tab = await chromium.open(server.http_url, color_scheme=scheme)

        def not_ready(page: Page) -> None:
            expect(page.locator("#state")).to_contain_text("not ready: Redis", timeout=WAIT_MS)
            assert axe_findings(page) == []

        await tab.run(not_ready)

    def silent(page: Page) -> None:
        expect(page.locator("#state")).to_contain_text("no answer", timeout=WAIT_MS)
        assert axe_findings(page) == []

    await tab.run(silent)
    await tab.close()
    assert tab.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_nothing_hinders_a_screen_reader(
    chromium: Chromium, server: Server, scheme: str
) -> None:
    """Axe has no findings, in both schemes, with and without a key."""
    async with subscriber(server, "stock:A1"):
        for with_key in (False, True):
            tab = await open_page(chromium, server, with_key=with_key, color_scheme=scheme)
            assert await tab.run(axe_findings) == []
            await tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_phone_shows_it_without_scrolling_sideways(
    chromium: Chromium, server: Server, scheme: str
) -> None:
    """Tables leave columns out; the button to disconnect is there; axe has no findings."""
    async with subscriber(server, "stock:A1"):
        tab = await open_page(chromium, server, with_key=True, viewport=PHONE, color_scheme=scheme)
        assert await tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]

        def look(page: Page) -> None:
            button = page.get_by_role("button", name=re.compile("^Disconnect "))
            box = button.bounding_box()
            assert box is not None
            assert box["x"] + box["width"] <= PHONE["width"]

        await tab.run(look)
        assert await tab.run(axe_findings) == []
        await tab.close()
