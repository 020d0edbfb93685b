"""The processes of a test: servers to be ended in every way, and the producer."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit
from urllib.request import urlopen

import cattrs
import trio

from tests.faults.producer import Order
from tests.helpers.redis_server import random_ports
from tests.helpers.timing import DEADLINE_SECONDS, SLOW_POLL_SECONDS

_UNTRACED: Final = {
    name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")
}
"""Tracing would take the processor from the flow, and a process that is killed tells nothing."""


class Output:
    """Lines of a process."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def line(self) -> str:
        """The next one. Raises EOFError."""
        while b"\n" not in self._buffer:
            data = await self._stream.receive_some()
            if not data:
                raise EOFError
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode()


class ServerProcess:
    """`streamer serve` on a port that it keeps when it is started again; runs inside the block."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.port = _free_port()
        self.arguments = arguments
        """Used at the next start."""
        self._log_path = directory / f"server-{self.port}.log"
        self._http_url = ""
        self.process: trio.Process | None = None

    @property
    def url(self) -> str:
        """For clients."""
        return f"ws://127.0.0.1:{self.port}/v1/ws"

    @property
    def log(self) -> str:
        """The output so far."""
        return self._log_path.read_text()

    async def start(self) -> None:
        """Start, and return once it listens."""
        command = [sys.executable, "-m", "streamer", "serve", "--port", str(self.port)]
        command += ["--http-port", "0", "--max-connections-per-address", "0", *self.arguments]
        with self._log_path.open("ab") as log:
            self.process = await trio.lowlevel.open_process(
                command, stdout=subprocess.PIPE, stderr=log, env=_UNTRACED
            )
        assert self.process.stdout is not None
        output = Output(self.process.stdout)
        try:
            with trio.fail_after(DEADLINE_SECONDS):
                lines = [await output.line() for _ in range(2)]
        except EOFError:
            raise AssertionError(f"the server did not start: {self.log}") from None
        http = re.fullmatch(r"HTTP +(http://\S+)", lines[1])
        assert http is not None, lines
        self._http_url = http[1]

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.push_async_exit(self)
            await self.start()
            stack.pop_all()
        return self

    async def __aexit__(self, *_error: object) -> None:
        with trio.CancelScope(shield=True):
            await self.kill()

    @property
    def http_port(self) -> int:
        """The operator's port."""
        port = urlsplit(self._http_url).port
        assert port is not None
        return port

    async def statistics(self) -> dict[str, Any]:
        """Return the present statistics, from its HTTP page."""
        url = f"{self._http_url}/v1/ws/stats"
        body: bytes = await trio.to_thread.run_sync(lambda: urlopen(url).read())
        statistics: dict[str, Any] = json.loads(body)
        return statistics

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def wait_for(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until what its page says meets a condition."""
        while not condition(await self.statistics()):  # noqa: ASYNC110 - it is another process
            await trio.sleep(SLOW_POLL_SECONDS)

    async def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            await self.process.wait()
            assert self.process.stdout is not None
            await self.process.stdout.aclose()

    async def wait(self) -> int:
        """Wait for its end; returns its exit code."""
        assert self.process is not None
        return await self.process.wait()


def _free_port() -> int:
    for port in random_ports():
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


class Producer:
    """The producer's process, and how much it has published."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self._output = Output(process.stdout)
        self.counts: dict[str, int] = {}
        """Publications of each topic."""

    @classmethod
    @asynccontextmanager
    async def run(cls, order: Order) -> AsyncIterator[Self]:
        """One that publishes inside the block."""
        process = await trio.lowlevel.open_process(
            [
                sys.executable,
                "-m",
                __package__ + ".producer",
                json.dumps(cattrs.unstructure(order)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_UNTRACED,
        )
        try:
            yield cls(process)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    async def report(self, received_seconds: float) -> None:
        """Say how many seconds of the flow every client has had, and update `counts`."""
        with suppress(trio.BrokenResourceError):  # it has ended, so that its output has, too
            await self._stdin.send_all(b"%f\n" % received_seconds)
        await self._read()

    async def finish(self) -> None:
        """End the flow: `counts` are final."""
        await self._stdin.aclose()
        await self._read()

    async def _read(self) -> None:
        try:
            self.counts = json.loads(await self._output.line())
        except EOFError:
            raise AssertionError(f"the producer ended with {await self._process.wait()}") from None
