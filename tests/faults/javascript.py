"""Clients of streamer.js for the world of a fault: a crowd of them in one process or one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from streamer.client import Mode, Position
from streamer.protocol.messages import GapReason
from tests.faults.ledger import TopicAccount
from tests.faults.world import PATIENCE_SECONDS, Witness, witnesses
from tests.helpers.timing import SLOW_POLL_SECONDS
from tests.web.browser import Chromium, serving
from tests.web.nodejs import HERE, MODULE, running

Report = list[dict[str, Any]]
Ask = Callable[[dict[str, Any]], Awaitable[Report]]
"""Gives a crowd an order, which may be empty, and returns its report."""

Runtime = Callable[[], AbstractAsyncContextManager[Ask]]
"""Runs a crowd inside the block."""

OPTIONS: Final = {
    "pongTimeoutMs": PATIENCE_SECONDS * 1000,
    "connectTimeoutMs": PATIENCE_SECONDS * 1000,
    "fallback": False,
}


@asynccontextmanager
async def in_node() -> AsyncIterator[Ask]:
    """Run a crowd in Node."""
    async with running(HERE / "crowd_node.mjs", str(MODULE)) as program:

        async def ask(order: dict[str, Any]) -> Report:
            await program.send(order)
            report: Report = await program.receive()
            return report

        yield ask


_PAGE: Final = """<!doctype html>
<script type="module">
import { Streamer } from "./streamer.js";
import { Crowd } from "./crowd.mjs";
window.ask = ({ url, plans, options, tokens, blockMs }) => {
  if (url) window.crowd = new Crowd(Streamer, url, plans, options, tokens);
  const end = performance.now() + (blockMs ?? 0);
  while (performance.now() < end);
  return window.crowd.report();
};
</script>
"""


def in_page(chromium: Chromium) -> Runtime:
    """Run a crowd in a page of this browser."""

    @asynccontextmanager
    async def run() -> AsyncIterator[Ask]:
        files = {
            "/": ("text/html", _PAGE.encode()),
            **{f"/{path.name}": ("text/javascript", path.read_bytes()) for path in _scripts()},
        }
        with serving(files) as origin:
            tab = await chromium.open(origin)
            await tab.wait_for("window.ask !== undefined")

            async def ask(order: dict[str, Any]) -> Report:
                report: Report = await tab.evaluate("(order) => window.ask(order)", order)
                return report

            yield ask
            await tab.close()
            assert tab.errors == []

    return run


def _scripts() -> list[Path]:
    return [MODULE, HERE / "crowd.mjs"]


class Crowd:
    """Clients that run together."""

    def __init__(self, runtime: Runtime, *, tokens: Sequence[str] = ()) -> None:
        """With `tokens`, each client connects with the first one, and then with the others."""
        plans = [(client.topics, client.mode) for client in witnesses()]
        self._tokens = tokens
        self.clients = [JavaScriptClient(self, *plan) for plan in plans]
        self._runtime = runtime
        self._block_ms = 0
        self._is_ready = trio.Event()

    async def wait_ready(self) -> None:
        """Wait until all clients are subscribed."""
        await self._is_ready.wait()

    def block(self, seconds: float) -> None:
        """Let none of the clients read for a time."""
        self._block_ms = round(seconds * 1000)

    async def run(self, url: str) -> None:
        """Run all clients, and take their reports in, until cancelled."""
        plans = [{"topics": client.topics, "mode": client.mode} for client in self.clients]
        order: dict[str, Any] = {
            "url": url,
            "plans": plans,
            "options": OPTIONS,
            "tokens": self._tokens,
        }
        async with self._runtime() as ask:
            while True:
                report = await ask(order)
                for client, entry in zip(self.clients, report, strict=True):
                    client.take(entry)
                if all(entry["isReady"] for entry in report):
                    self._is_ready.set()
                await trio.sleep(SLOW_POLL_SECONDS)
                order, self._block_ms = {"blockMs": self._block_ms}, 0


class JavaScriptClient(Witness):
    """One client of a crowd, as it was at the last report."""

    def __init__(self, crowd: Crowd, topics: Sequence[str], mode: Mode) -> None:
        super().__init__(topics, mode)
        self._crowd = crowd
        self.report: dict[str, Any] = {}

    async def run(
        self,
        url: str,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run until cancelled, the first one for the whole crowd; started once subscribed."""
        async with trio.open_nursery() as nursery:
            if self is self._crowd.clients[0]:
                nursery.start_soon(self._crowd.run, url)
            await self._crowd.wait_ready()
            task_status.started()
            await trio.sleep_forever()

    def take(self, report: dict[str, Any]) -> None:
        """Take a report over."""
        self.report = report
        for topic, entry in report["topics"]:
            self.ledger.topics[topic] = TopicAccount(
                received=entry["received"],
                merged=entry["merged"],
                lost=entry["lost"],
                snapshots=entry["snapshots"],
                number=entry["number"],
                gaps=Counter({GapReason(name): count for name, count in entry["gaps"].items()}),
                epochs=set(entry["epochs"]),
                problems=entry["problems"],
                resumes=Position("", 0) if entry["isBehindGap"] else None,
            )

    def __str__(self) -> str:
        return str(self.report)

    def problems(self) -> list[str]:
        """Violations of the contract that this client has seen."""
        account = self.report["account"]
        return [
            *self.ledger.problems,
            *map(str, account["firstViolations"]),
            *([f"{account['outstanding']} not recovered"] if account["outstanding"] else []),
        ]
