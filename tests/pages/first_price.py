"""Measure how soon an installed `streamer demo --open` shows a price, in Chromium.

    python -m tests.pages.first_price PATH/TO/streamer [--within SECONDS]

The command opens the browser as it does for its users, by the variable BROWSER. The time includes
the start of Chromium, with a new profile, but not that of Playwright, which looks at the page.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, Playwright, expect

from tests.web.driver import start_playwright

WAIT_MS: Final = 120_000

OPENER: Final = """\
#!/bin/sh
exec {chromium} --headless --no-sandbox --disable-gpu --no-first-run --user-data-dir={profile} \
    --remote-debugging-port=0 "$1" 2>{log}
"""
"""The browser's command; it writes the address for Playwright to its log."""


def measure(streamer: str, playwright: Playwright) -> tuple[float, str]:
    """Return the seconds from the command to the price, and the price as the page has it."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("there is no chromium on PATH")
    # Chromium may still write to its profile while that is deleted.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        opener, log = Path(directory, "browser"), Path(directory, "log")
        os.mkfifo(log)
        # Open for writing as well, so that it can be opened before the browser does.
        descriptor = os.open(log, os.O_RDWR)
        profile = Path(directory, "profile")
        opener.write_text(
            OPENER.format(chromium=chromium, profile=profile, log=log), encoding="utf-8"
        )
        opener.chmod(0o755)
        began = time.monotonic()
        command = [streamer, "demo", "--open", "--port", "0", "--http-port", "0"]
        environment = os.environ | {"BROWSER": str(opener)}
        with subprocess.Popen(
            command, env=environment, cwd=directory, stdout=subprocess.DEVNULL
        ) as process:
            try:
                address = read_address(descriptor, process)
                browser = playwright.chromium.connect_over_cdp(address)
                price = read_price(browser)
                seconds = time.monotonic() - began
                browser.new_browser_cdp_session().send("Browser.close")
            finally:
                process.terminate()
        os.close(descriptor)
    return seconds, price


def read_address(log: int, process: subprocess.Popen[bytes]) -> str:
    """Wait for the address in the log; end this program if the command ends before."""
    text = ""
    while (match := re.search(r"^DevTools listening on (\S+)\n", text, re.MULTILINE)) is None:
        if select.select([log], [], [], 1)[0]:
            text += os.read(log, 1000).decode()
        elif process.poll() is not None:
            sys.exit(f"the command ended with {process.returncode}")
    return match[1]


def read_price(browser: Browser) -> str:
    """Wait for the first price on the page that the browser was started with."""
    (context,) = browser.contexts
    page = context.pages[0] if context.pages else context.wait_for_event("page")
    price = page.locator("#rows td.price").first
    expect(price).to_have_text(re.compile(r"^[\d,]+$"), timeout=WAIT_MS)
    return price.text_content() or ""


def main() -> None:
    """Measure once; fail if it took longer than allowed."""
    parser = argparse.ArgumentParser(description="Measure the time to the first price.")
    parser.add_argument("streamer", help="the command")
    parser.add_argument("--within", type=float, default=5.0, help="seconds; default: %(default)s")
    arguments = parser.parse_args()
    with start_playwright() as playwright:
        seconds, price = measure(arguments.streamer, playwright)
    print(f"the first price, {price}, was on the page {seconds:.1f} s after the command")
    if seconds > arguments.within:
        sys.exit(f"that is more than {arguments.within:g} s")


if __name__ == "__main__":
    main()
