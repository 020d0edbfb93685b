"""Chromium, and pages of one's own: a browser in a thread beside the server under test."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, Final, TypeVar

import pytest
import trio
from playwright.sync_api import Browser, BrowserContext, Page

from tests.helpers.timing import DEADLINE_SECONDS
from tests.web.driver import start_playwright

T = TypeVar("T")

ARGUMENTS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


WAIT_MS: Final = DEADLINE_SECONDS * 1000
"""For Playwright's `expect`."""

PHONE: Final = {"width": 360, "height": 740}


def axe_findings(page: Page) -> list[str]:
    """Return all that axe finds in a page that hinders people, such as a lack of contrast."""
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js")
    page.evaluate(axe.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    return [f"{violation['id']}: {violation['help']}" for violation in found["violations"]]


def find_chromium() -> str:
    """Return the path of chromium; skip the test if there is none."""
    binary = shutil.which("chromium")
    if binary is None:
        pytest.skip("there is no chromium on PATH; `nox -s tests` and `nox -s browser` get one")
    return binary


class Chromium:
    """A browser; started by `running_chromium`.

    Playwright's objects belong to the thread that made them, so all calls run in one thread, beside
    the event loop of the test.
    """

    def __init__(self, thread: ThreadPoolExecutor, browser: Browser) -> None:
        self._thread = thread
        self._browser = browser

    async def run(self, function: Callable[[], T]) -> T:
        """Call a function that uses Playwright, in the browser's thread."""
        return await trio.to_thread.run_sync(lambda: self._thread.submit(function).result())

    async def open(self, url: str, **options: Any) -> Tab:
        """Open a page in a context of its own; `options` are those of Playwright's new_context."""

        def open_page() -> Tab:
            context = self._browser.new_context(**options)
            context.set_default_timeout(DEADLINE_SECONDS * 1000)
            return Tab(self, context, context.new_page())

        tab = await self.run(open_page)
        await tab.run(lambda page: page.goto(url))
        return tab


class Tab:
    """A page in the browser."""

    def __init__(self, chromium: Chromium, context: BrowserContext, page: Page) -> None:
        self.chromium = chromium
        self.page = page
        self.context = context
        self.errors: list[str] = []
        """Exceptions that nothing in the page caught."""
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    async def run(self, function: Callable[[Page], T]) -> T:
        """Call a function with Playwright's page."""
        return await self.chromium.run(lambda: function(self.page))

    async def evaluate(self, script: str, argument: object = None) -> Any:
        """Return the value of a JavaScript expression, or of a function of `argument`."""
        return await self.run(lambda page: page.evaluate(script, argument))

    async def wait_for(self, script: str) -> None:
        """Wait until a JavaScript expression is true."""
        await self.run(lambda page: page.wait_for_function(script))

    async def another(self, url: str) -> Tab:
        """Open another page of the same context: the same cookies, storage and shared workers."""
        tab = await self.chromium.run(
            lambda: Tab(self.chromium, self.context, self.context.new_page())
        )
        await tab.run(lambda page: page.goto(url))
        return tab

    async def close(self) -> None:
        """Close the page as a user does."""
        await self.run(lambda page: page.close())


@contextmanager
def running_chromium(*, without: tuple[str, ...] = ()) -> Iterator[Chromium]:
    """A browser without a window; `without` are arguments of Playwright's that it must not have."""
    binary = find_chromium()
    with ThreadPoolExecutor(1) as thread:
        playwright = thread.submit(start_playwright().__enter__).result()
        try:
            browser = thread.submit(
                lambda: playwright.chromium.launch(
                    executable_path=binary, args=[*ARGUMENTS], ignore_default_args=[*without]
                )
            ).result()
            yield Chromium(thread, browser)
            thread.submit(browser.close).result()
        finally:
            thread.submit(playwright.stop).result()


@contextmanager
def serving(files: Mapping[str, tuple[str, bytes]]) -> Iterator[str]:
    """Serve files over HTTP, path -> (content type, body); yields the URL of their origin."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path not in files:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            content_type, body = files[path]
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
