"""The operator's page of a server with thousands of connections: the server's part and the page's.

The server runs in this process, so that its work can be measured alone: by the time that it takes
of the processor, on which other programs have no effect.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from statistics import median
from typing import Final

import trio
from playwright.sync_api import Page, expect

from streamer.cli.logs import configure_logging
from streamer.cli.serve import allow_many_connections
from streamer.config import Settings
from streamer.server import Server, serve
from tests.helpers.publications import numbered_price
from tests.helpers.server import publish
from tests.pages import tasks
from tests.pages.crowd import CONNECTED, TOPICS
from tests.web.browser import WAIT_MS, Chromium, running_chromium

MAX_TURN_MS: Final = 5.0
"""The longest that a sample of the statistics may keep the loop from clients."""
_NO_PINGS_SECONDS: Final = 3600.0
_REPEATS: Final = 20
_PUBLICATIONS_PER_SECOND: Final = 50
_WATCH_SECONDS: Final = 15
"""The page refreshes three times."""


class LongestStep(trio.abc.Instrument):
    """Finds the step of a task that kept all others waiting for longest, by processor time."""

    def __init__(self) -> None:
        self.milliseconds = 0.0
        self.task = ""
        self._begun_seconds = time.thread_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002
        """Note when it begins."""
        self._begun_seconds = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Compare how long it took."""
        milliseconds = (time.thread_time() - self._begun_seconds) * 1000
        if milliseconds > self.milliseconds:
            self.milliseconds, self.task = milliseconds, task.name


@asynccontextmanager
async def _crowd(url: str, count: int) -> AsyncIterator[None]:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.pages.crowd", url, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        answer = bytes(await process.stdout.receive_some())
        assert answer.strip() == CONNECTED.encode(), answer
        yield
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _publish(server: Server) -> None:
    for number in itertools.count(1):
        topic = TOPICS[number % len(TOPICS)]
        publish(server, f"{topic}:price", numbered_price(number, topic.partition(":")[2]))
        await trio.sleep(1 / _PUBLICATIONS_PER_SECOND)


async def _measure(count: int) -> list[str]:
    settings = Settings(
        memory=True,
        port=0,
        http_port=0,
        max_connections_per_address=0,
        max_connections=count,
        heartbeat_interval_seconds=_NO_PINGS_SECONDS,  # the crowd answers none
    )
    problems: list[str] = []
    with running_chromium() as chromium:
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(partial(serve, settings))
            async with _crowd(server.websocket_url, count):
                problems += _sample(server)
                nursery.start_soon(_publish, server)
                problems += await _look(chromium, server, count)
            nursery.cancel_scope.cancel()
    return problems


def _sample(server: Server) -> list[str]:
    """Measure what a sample of the statistics costs."""
    turns: list[list[float]] = []
    for _ in range(_REPEATS):
        turns.append([])
        begun = time.thread_time()
        for _part in server.statistics_in_parts():
            turns[-1].append((time.thread_time() - begun) * 1000)
            begun = time.thread_time()
    longest = [max(parts) for parts in turns]
    print(
        f"a sample of the statistics takes {median(map(sum, turns)):.1f} ms of the processor, in "
        f"{len(turns[0])} turns of the loop, each at most {median(longest):.2f} ms (median)"
    )
    too_long = median(longest) > MAX_TURN_MS
    return [f"a sample holds up the loop for {median(longest):.1f} ms"] if too_long else []


async def _look(chromium: Chromium, server: Server, count: int) -> list[str]:
    """Measure what the page does by itself, and with the list of connections."""
    tab = await chromium.open(server.http_url)

    def stay(page: Page) -> None:
        expect(page.locator("#state")).to_have_text("ready", timeout=WAIT_MS)
        page.wait_for_timeout(_WATCH_SECONDS * 1000)

    def load(page: Page) -> None:
        page.locator("#load-connections").click()
        expect(page.locator("#connections-shown")).to_contain_text(f"{count:,}", timeout=WAIT_MS)

    def filter_and_sort(page: Page) -> None:
        search = page.locator("#filter")
        for text in ("crowd/77", "stock:000042", "nobody"):
            search.press_sequentially(text)
            search.fill("")
        for column in ("Client", "Connected", "Topics", "Sent", "Queued"):
            page.get_by_role("columnheader", name=column).get_by_role("button").click()
        page.locator("#next").click()

    problems = []
    for title, action in (
        (f"open for {_WATCH_SECONDS} s", stay),
        ("list loaded", load),
        ("filtered and sorted", filter_and_sort),
    ):
        step = LongestStep()
        trio.lowlevel.add_instrument(step)
        activity = await tab.run(partial(_watched, action))
        trio.lowlevel.remove_instrument(step)
        print(f"{title}: {activity}")
        print(f"{title}: the server's longest step took {step.milliseconds:.1f} ms ({step.task})")
        problems += [f"{title}: {problem}" for problem in activity.problems()]
    await tab.close()
    return [*problems, *tab.errors]


def _watched(action: Callable[[Page], None], page: Page) -> tasks.Activity:
    tasks.begin(page)
    action(page)
    return tasks.end(page)


def measure_operator(count: int) -> list[str]:
    """Print what so many connections cost the server and the page; return what was wrong."""
    configure_logging("warning", "text")
    allow_many_connections()
    return trio.run(_measure, count)
