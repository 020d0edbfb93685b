"""Workers under a parent that runs in the test."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import trio

from streamer.config import Settings
from streamer.server import Server
from streamer.workers.supervisor import Supervisor, supervise
from tests.helpers.clients import connected
from tests.helpers.http import http_client
from tests.helpers.timing import real_deadline

COMMAND = (sys.executable, "-m", "streamer", "worker")


class Workers:
    """Running workers, and the event that stops them."""

    def __init__(self, supervisor: Supervisor, shutdown: trio.Event) -> None:
        self.supervisor = supervisor
        self.shutdown = shutdown

    def connected(self) -> Any:
        """Open a client of one of the workers, which the kernel chooses."""
        return connected(cast("Server", self.supervisor))

    async def page(self, path: str) -> Any:
        """Return a page of the parent."""
        async with http_client(base_url=self.supervisor.http_url) as client:
            return (await client.get(path)).json()

    async def until_ready(self) -> None:
        """Wait until all workers serve."""
        while True:
            if (await self.page("/readyz"))["ready"]:
                return


@asynccontextmanager
async def running_workers(redis_url: str, **settings: Any) -> AsyncIterator[Workers]:
    """Two workers on a free port."""
    defaults: dict[str, Any] = {"workers": 2, "port": 0, "http_port": 0}
    defaults |= {"max_connections_per_address": 0, "close_timeout_seconds": 0.5}
    shutdown = trio.Event()
    chosen = Settings(redis=redis_url, **(defaults | settings))
    async with real_deadline(), trio.open_nursery() as nursery:
        supervisor = await nursery.start(partial(supervise, chosen, COMMAND, shutdown=shutdown))
        yield Workers(supervisor, shutdown)
        nursery.cancel_scope.cancel()
