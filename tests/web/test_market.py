"""The page of `streamer demo` in Chromium, as its users see it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
from playwright.sync_api import Page, Request, expect

from streamer.admin.market import ListedStock, MarketPage
from streamer.config import Settings
from streamer.server import serve
from tests.cli.test_demo import introduction, running_demo
from tests.helpers.publications import orderbook
from tests.helpers.server import publish
from tests.helpers.timing import eventually
from tests.web.browser import PHONE, WAIT_MS, Chromium, Tab, axe_findings


@pytest.fixture(name="demo_url")
async def address_of_the_demo(tmp_path: Path) -> AsyncIterator[str]:
    """The address that the first line of a demo names."""
    with running_demo(tmp_path / "log", "--rate", "100") as process:
        first_line = introduction(process).splitlines()[0]
        yield first_line.split()[-1]


async def open_market(chromium: Chromium, url: str, **options: Any) -> Tab:
    """Open the page, and wait until it shows a price."""
    tab = await chromium.open(url, **options)

    def wait(page: Page) -> None:
        expect(page.locator("#state")).to_have_text("connected", timeout=WAIT_MS)
        expect(page.locator("#rows td.price").first).to_have_text(
            re.compile(r"^[\d,]+$"), timeout=WAIT_MS
        )

    await tab.run(wait)
    return tab


def check_account(page: Page) -> None:
    """The account of the stream is without violations."""
    expect(page.locator("#violations")).to_have_text("0")
    assert page.evaluate("market.streamer.account().violations") == 0


async def test_prices_move_and_nothing_is_fetched_from_elsewhere(
    chromium: Chromium, demo_url: str
) -> None:
    """Prices flash, the order book has depth, and all requests go to the demo."""
    requested: list[str] = []
    tab = await chromium.open("about:blank")

    def note(request: Request) -> None:
        requested.append(request.url)

    def look(page: Page) -> None:
        page.on("request", note)
        messages: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        page.goto(demo_url)
        expect(page.locator("#rows .flash-rose, #rows .flash-fell").first).to_be_attached(
            timeout=WAIT_MS
        )
        expect(page.locator("#ladder .depth").nth(5)).to_have_attribute(
            "style", re.compile(r"scaleX\((1|0\.[1-9])"), timeout=WAIT_MS
        )
        expect(page.locator("#phases")).to_contain_text("KOSPI open", timeout=WAIT_MS)
        check_account(page)
        assert messages == []

    await tab.run(look)
    await tab.close()
    assert tab.errors == []
    assert {urlsplit(url).netloc for url in requested} == {urlsplit(demo_url).netloc}


async def test_alerts_of_a_user_are_among_the_events(chromium: Chromium, demo_url: str) -> None:
    """They come over the connection of the prices, and are judged like these."""
    tab = await open_market(chromium, demo_url)

    def look(page: Page) -> None:
        expect(page.locator("#events li.alert").first).to_contain_text(
            re.compile(r"has (risen|fallen) to [\d,]+ KRW"), timeout=WAIT_MS
        )
        check_account(page)

    await tab.run(look)
    await tab.close()
    assert tab.errors == []


async def test_a_cut_connection_comes_back_and_misses_nothing(
    chromium: Chromium, demo_url: str
) -> None:
    """The button cuts without a close frame; the client restores its topics by itself."""
    tab = await open_market(chromium, demo_url)

    def cut(page: Page) -> None:
        for number in range(2, 4):
            page.locator("#cut").click()
            expect(page.locator("#connections")).to_have_text(str(number), timeout=WAIT_MS)
        before = page.evaluate("market.streamer.account().received")
        expect(page.locator("#received")).not_to_have_text(f"{before:,}", timeout=WAIT_MS)
        assert page.evaluate("market.streamer.account().gaps") == {}
        check_account(page)

    await tab.run(cut)
    await tab.close()
    assert tab.errors == []


async def test_a_stalled_client_sees_updates_merged(chromium: Chromium, demo_url: str) -> None:
    """The button limits the bandwidth for some seconds; nothing is lost in silence."""
    tab = await open_market(chromium, demo_url)

    def stall(page: Page) -> None:
        page.locator("#stall").click()
        expect(page.locator("#stall")).to_be_disabled()
        expect(page.locator("#merged")).not_to_have_text("0", timeout=WAIT_MS)
        expect(page.locator("#stall")).to_be_enabled(timeout=WAIT_MS)
        check_account(page)

    await tab.run(stall)
    await tab.close()


async def test_the_keyboard_is_enough(chromium: Chromium, demo_url: str) -> None:
    """/ goes to the search, which filters the stocks; Tab and Enter choose one."""
    tab = await open_market(chromium, demo_url)

    def choose(page: Page) -> None:
        page.keyboard.press("/")
        expect(page.locator("#search")).to_be_focused()
        page.keyboard.type("kakao games")
        expect(page.locator("#rows tr:visible")).to_have_count(1)
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator("#book-title")).to_have_text("Order book: Kakao Games")
        page.locator("#search").fill("nothing like that")
        expect(page.locator("#none")).to_be_visible()

    await tab.run(choose)
    await tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_nothing_hinders_a_screen_reader(
    chromium: Chromium, demo_url: str, scheme: str
) -> None:
    """Axe has no findings, in both schemes, on a phone and on a wide screen with all columns."""
    # Without motion: in a flash, a color is between two.
    for viewport in (PHONE, {"width": 1240, "height": 900}):
        tab = await open_market(
            chromium, demo_url, color_scheme=scheme, reduced_motion="reduce", viewport=viewport
        )
        assert await tab.run(axe_findings) == []
        await tab.close()


async def test_a_phone_shows_it_without_scrolling_sideways(
    chromium: Chromium, demo_url: str
) -> None:
    """The table leaves columns out; no digit of a price is cut."""
    tab = await open_market(chromium, demo_url, viewport=PHONE)
    assert await tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    cut = "[...document.querySelectorAll('.price')].filter((c) => c.scrollWidth > c.clientWidth)"
    assert await tab.evaluate(f"{cut}.length") == 0
    await tab.close()


@pytest.mark.parametrize("viewport", [PHONE, {"width": 1240, "height": 900}])
async def test_values_that_no_page_was_made_for(
    chromium: Chromium, viewport: dict[str, int]
) -> None:
    """A long name is shortened; of a long number no digit is; nothing known is a dash."""
    listed = [
        ListedStock("A", "A name that goes on " * 20, "KOSPI", "Crypto"),
        ListedStock("B", "Nothing known", "KOSPI", "Crypto"),
    ]
    page_contents = MarketPage(listed, ["KOSPI"], levels=2)
    settings = Settings(memory=True, port=0, http_port=0)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, settings, market=page_contents))
        tab = await chromium.open(f"{server.http_url}/market/", viewport=viewport)

        def subscribed(page: Page) -> None:
            expect(page.locator("#state")).to_have_text("connected", timeout=WAIT_MS)

        await tab.run(subscribed)
        await eventually(lambda: server.statistics().subscriptions == len([*listed, "KOSPI"]))
        text = (
            b'{"type":"price_update","stock_code":"A","price":-12345678901234567890.120,'
            b'"change":-0.00000012,"change_percent":-305.97,"volume":0,'
            b'"timestamp":"2026-01-02T03:04:05.678Z"}'
        )
        publish(server, "stock:A:price", text)
        publish(server, "stock:A:orderbook", orderbook("A", 98765432109876543210))

        def look(page: Page) -> None:
            rows = page.locator("#rows tr")
            expect(rows.nth(0)).to_contain_text("-12,345,678,901,234,567,890.120", timeout=WAIT_MS)
            expect(rows.nth(0)).to_contain_text("▼ 0.00000012 (-305.97 %)")
            expect(rows.nth(1).locator("td.price")).to_have_text("\N{EN DASH}")
            expect(page.locator("#ladder")).to_contain_text("98,765,432,109,876,543,210")
            cut = "(cells) => cells.filter((c) => c.scrollWidth > c.clientWidth).length"
            assert page.locator("td.price, #ladder td").evaluate_all(cut) == 0
            assert rows.nth(0).evaluate("(row) => row.clientHeight") < 150
            check_account(page)

        await tab.run(look)
        await tab.close()
        nursery.cancel_scope.cancel()
    assert tab.errors == []


async def test_digits_are_grouped_and_none_is_changed(chromium: Chromium, demo_url: str) -> None:
    """A price is shown with the digits that its producer wrote."""
    tab = await open_market(chromium, demo_url)
    script = "async (texts) => texts.map((await import('./page.js')).inGroups)"
    texts = ["72500.10", "-1234567", "12345678901234567890.5", "0.00", "1e5", "none"]
    grouped = ["72,500.10", "-1,234,567", "12,345,678,901,234,567,890.5", "0.00", "1e5", "none"]
    assert await tab.evaluate(script, texts) == grouped
    await tab.close()
