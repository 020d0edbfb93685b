"""HTTP clients with the patience of tests."""

from __future__ import annotations

from typing import Any

import httpx2

from tests.helpers.timing import DEADLINE_SECONDS


def http_client(base_url: str = "", **options: Any) -> httpx2.AsyncClient:
    """Return a client that waits for an answer as long as a test waits for anything.

    httpx gives up after 5 s, within which a server on a busy machine may not have had a core.
    """
    return httpx2.AsyncClient(base_url=base_url, timeout=DEADLINE_SECONDS, **options)
