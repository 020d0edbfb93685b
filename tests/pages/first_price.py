"""Measure how soon an installed `streamer demo --open` shows a price, in Chromium.

    python -m tests.pages.first_price PATH/TO/streamer [--within SECONDS]

The command opens a browser as it does for its users, by the variable BROWSER: this program again,
which opens Chromium with the address and waits for the price.
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

from playwright.sync_api import expect, sync_playwright

PIPE_VARIABLE: Final = "FIRST_PRICE_PIPE"
"""The pipe to which the browser's program reports."""

WAIT_MS: Final = 120_000


def open_page(url: str, pipe: str) -> None:
    """Open the page, and report when it shows a price, or that it shows none."""
    report = "no price"
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page()
            page.goto(url, timeout=WAIT_MS)
            price = page.locator("#rows td.price").first
            expect(price).to_have_text(re.compile(r"^[\d,]+$"), timeout=WAIT_MS)
            report = f"{time.monotonic()} {price.text_content()}"
            browser.close()
    finally:
        Path(pipe).write_text(report, encoding="utf-8")


def measure(streamer: str) -> tuple[float, str]:
    """Return the seconds from the command to the price, and the price as the page has it."""
    with tempfile.TemporaryDirectory() as directory:
        opener, pipe = Path(directory, "browser"), Path(directory, "pipe")
        os.mkfifo(pipe)
        opener.write_text(
            f'#!/bin/sh\ncd {Path.cwd()}\nexec {sys.executable} -m tests.pages.first_price "$1"\n',
            encoding="utf-8",
        )
        opener.chmod(0o755)
        environment = os.environ | {"BROWSER": str(opener), PIPE_VARIABLE: str(pipe)}
        began = time.monotonic()
        command = [streamer, "demo", "--open", "--port", "0", "--http-port", "0"]
        with subprocess.Popen(
            command, env=environment, cwd=directory, stdout=subprocess.DEVNULL
        ) as process:
            try:
                report = read_report(pipe, process)
            finally:
                process.terminate()
    seen, _, price = report.partition(" ")
    return float(seen) - began, price


def read_report(pipe: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait for the report; end this program if the command ends instead."""
    # Open for writing as well, so that it can be opened before the browser's program does.
    descriptor = os.open(pipe, os.O_RDWR)
    try:
        while not select.select([descriptor], [], [], 1)[0]:
            if process.poll() is not None:
                sys.exit(f"the command ended with {process.returncode}")
        return os.read(descriptor, 1000).decode()
    finally:
        os.close(descriptor)


def main() -> None:
    """Measure once; fail if it took longer than allowed."""
    parser = argparse.ArgumentParser(description="Measure the time to the first price.")
    parser.add_argument("streamer", help="the command, or, as a browser, the address to open")
    parser.add_argument("--within", type=float, default=5.0, help="seconds; default: %(default)s")
    arguments = parser.parse_args()
    pipe = os.environ.get(PIPE_VARIABLE)
    if pipe is not None:
        open_page(arguments.streamer, pipe)
        return
    seconds, price = measure(arguments.streamer)
    print(f"the first price, {price}, was on the page {seconds:.1f} s after the command")
    if seconds > arguments.within:
        sys.exit(f"that is more than {arguments.within:g} s")


if __name__ == "__main__":
    main()
