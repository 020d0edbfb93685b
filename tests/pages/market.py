"""The page of a live market at a rate that nobody could read, in Chromium."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import CDPSession, Page, ViewportSize

from tests.cli.test_demo import introduction, running_demo
from tests.helpers.timing import DEADLINE_SECONDS
from tests.pages import tasks
from tests.web.browser import ARGUMENTS, find_chromium
from tests.web.driver import start_playwright

UPDATES_PER_TRADE: Final = 2
"""The page holds the stocks: a price and an order book of each trade."""
MAX_GROWTH: Final = 0.03
"""The most that memory may grow by, from the second quarter to the last."""
SAMPLE_SECONDS: Final = 10.0
WARM_UP_SECONDS: Final = 10.0
"""Until the page has loaded and its numbers are steady."""
VIEWPORT: Final[ViewportSize] = {"width": 1240, "height": 1100}


@contextmanager
def open_market(directory: Path, rate: int, seconds: float) -> Iterator[Page]:
    """Open the page of a demo with so many updates per second, for so long at most."""
    trades = str(rate / UPDATES_PER_TRADE)
    deadline_seconds = seconds + 2 * DEADLINE_SECONDS
    log = directory / "demo.log"
    with (
        running_demo(log, "--rate", trades, deadline_seconds=deadline_seconds) as process,
        start_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=[*ARGUMENTS])
        page = browser.new_page(viewport=VIEWPORT)
        page.set_default_timeout(DEADLINE_SECONDS * 1000)
        page.goto(introduction(process).split()[1])
        page.wait_for_selector("#state[data-state=connected]")
        page.wait_for_timeout(WARM_UP_SECONDS * 1000)
        yield page
        browser.close()


def measure_frames(directory: Path, rate: int, seconds: float) -> list[str]:
    """Print how busy the page is; return what was wrong."""
    with open_market(directory, rate, seconds) as page:
        before = page.evaluate("market.streamer.account()")
        tasks.begin(page)
        page.wait_for_timeout(seconds * 1000)
        after = page.evaluate("market.streamer.account()")
        activity = tasks.end(page)
    updates = (after["received"] - before["received"]) / seconds
    merged = (after["merged"] - before["merged"]) / seconds
    print(
        f"{updates:.0f} updates/s for {seconds:.0f} s, and {merged:.0f}/s merged; "
        f"{after['violations']} violations\n{activity}"
    )
    return activity.problems() + _faults(after)


def _faults(account: dict[str, Any]) -> list[str]:
    return [f"violations: {account['faults']}"] if account["violations"] else []


def measure_heap(directory: Path, rate: int, seconds: float) -> list[str]:
    """Print the memory that the page keeps, as time passes; return what was wrong."""
    kept: dict[str, list[float]] = {"JSHeapUsedSize": [], "Nodes": [], "JSEventListeners": []}
    with open_market(directory, rate, seconds) as page:
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")
        session.send("HeapProfiler.enable")
        began_seconds = time.monotonic()
        while (passed_seconds := time.monotonic() - began_seconds) < seconds:
            page.wait_for_timeout(SAMPLE_SECONDS * 1000)
            session.send("HeapProfiler.collectGarbage")
            figures = _metrics(session)
            for name, samples in kept.items():
                samples.append(figures[name])
            received = page.evaluate("market.streamer.account().received")
            print(
                f"{passed_seconds / 60:5.1f} min  {received:9,} updates  "
                f"heap {figures['JSHeapUsedSize'] / 2**20:.2f} MiB  {figures['Nodes']:.0f} nodes  "
                f"{figures['JSEventListeners']:.0f} listeners",
                flush=True,
            )
        account = page.evaluate("market.streamer.account()")
    problems = []
    for name, samples in kept.items():
        grown = _growth(samples)
        print(f"{name}: growth {grown:+.1%}")
        if grown > MAX_GROWTH:
            problems.append(f"{name} has grown by {grown:.1%}")
    return problems + _faults(account)


def _metrics(session: CDPSession) -> dict[str, float]:
    """The browser's figures of a page, by their names in its protocol."""
    listed = session.send("Performance.getMetrics")["metrics"]
    return {metric["name"]: metric["value"] for metric in listed}


def _growth(samples: list[float]) -> float:
    """Compare the least of the second quarter and of the last one.

    The least, since a sample may hold messages that came after the collection.
    """
    quarter = max(len(samples) // 4, 1)
    return min(samples[-quarter:]) / min(samples[quarter : 2 * quarter] or samples) - 1
