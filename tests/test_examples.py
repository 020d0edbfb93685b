"""The programs of docs/examples run as their pages say, against a real server and a real Redis.

Those for browsers are run by tests/web.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.helpers.clients import connected
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually, real_deadline

PROJECT = Path(__file__).parent.parent
EXAMPLES = PROJECT / "docs" / "examples"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(PROJECT)}


class Program:
    """A running program whose output is read line by line."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._received = b""

    async def line(self) -> str:
        """The next line of its output."""
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            data = await self._process.stdout.receive_some()
            assert data, f"it ended after {self._received!r}"
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()


@asynccontextmanager
async def running(*command: str | Path) -> AsyncIterator[Program]:
    """A program, killed in the end."""
    process = await trio.lowlevel.open_process(
        list(map(str, command)), stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    assert process.stdout is not None
    async with process.stdout:
        try:
            yield Program(process)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


async def run(name: str, *arguments: str) -> str:
    """Run an example to its end and return its output."""
    done = await trio.run_process(
        [sys.executable, EXAMPLES / name, *arguments], capture_stdout=True, env=ENVIRONMENT
    )
    return done.stdout.decode()


def python(name: str, *arguments: str) -> tuple[str | Path, ...]:
    """The command that runs an example."""
    return sys.executable, EXAMPLES / name, *arguments


async def test_the_client_prints_what_is_published() -> None:
    """client.py subscribes and prints each price."""
    async with (
        running_server() as server,
        running(*python("client.py", server.websocket_url, "stock:A")) as program,
    ):
        await eventually(lambda: server.statistics().subscriptions == 1)
        publish(server, "stock:A:price", price("A", 72_500))
        assert await program.line() == "stock:A 1 72500"


async def test_the_producers_reach_a_client(redis_url: str) -> None:
    """producer.py and redis_producer.py publish what a subscriber of the topic receives."""
    async with running_server(redis=redis_url) as server, connected(server) as client:
        await client.subscribe("stock:P", "stock:R")
        output = await run("producer.py", redis_url, "P")
        assert "Position(epoch=" in output
        assert len(output.splitlines()) == 10
        for sequence in range(1, 11):
            message = await client.data()
            assert (message["stock_code"], message["sequence"]) == ("P", sequence)
        assert await run("redis_producer.py", redis_url, "R", "72500") == "received by 1 servers\n"
        message = await client.data()
        assert (message["stock_code"], message["price"]) == ("R", 72_500)


async def test_the_embedded_server_serves() -> None:
    """embedded.py serves a counter out of its own nursery."""
    async with real_deadline(), running(*python("embedded.py", "0")) as program:
        url = (await program.line()).removeprefix("serving at ")
        async with running(*python("client.py", url, "stock:COUNTER")) as client:
            topic, _, number = (await client.line()).split()
            assert (topic, number.isdigit()) == ("stock:COUNTER", True)
