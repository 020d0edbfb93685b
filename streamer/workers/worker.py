"""One worker: a process that serves, and is replaced when it ends.

The parent writes the settings to the worker's stdin, as one line of JSON, and later a line for each
reload. Closing stdin asks the
worker to stop gracefully; that also happens when the parent dies without sending a signal. The
worker writes the address that it listens on to stdout. Its statistics page listens on a unix
socket.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import httpx2
import structlog
import trio

from streamer.backoff import Backoff
from streamer.config import LogLevel
from streamer.nursery import first_of
from streamer.workers.assignment import Assignment, Reload, WorkerFailedError

_ANSWER_TIMEOUT_SECONDS: Final = 5.0
_REQUEST_TIMEOUT_SECONDS: Final = 25.0
"""For requests of operators: a token to be explained may wait for two fetches of keys."""
_SETTLED_SECONDS: Final = 60.0
"""After serving this long, a worker that ends is replaced with the shortest delay again."""

log = structlog.get_logger()
logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs each request


class Worker:
    """Keeps one worker process running until `shutdown`."""

    def __init__(
        self, assignment: Assignment, command: Sequence[str], socket: Path, shutdown: trio.Event
    ) -> None:
        """`command` starts the process; `socket` is that of its statistics page."""
        self.number = assignment.worker
        self.pid: int | None = None
        """None while no process runs."""
        self.restarts = 0
        self.websocket_url = ""
        self.listening = trio.Event()
        """Set when the first process listens."""
        self._assignment = assignment
        self._command = command
        self._socket = socket
        self._shutdown = shutdown
        self._reload = trio.Event()
        """Set while a reload is to be written to the process."""
        self._backoff = Backoff(first_seconds=0.5, max_seconds=30.0)

    async def run(self) -> None:
        """Start the process, and another one whenever it ends, until the shutdown.

        Raises WorkerFailedError if the first ends before it listens, and OSError, in a group, if it
        cannot be started. Cancelling kills it.
        """
        while True:
            began = trio.current_time()
            exit_code = await self._run_or_fail()
            if self._shutdown.is_set():
                return
            if not self.listening.is_set():
                assert exit_code is not None  # else the error has been raised
                raise WorkerFailedError(exit_code)
            self.restarts += 1
            if trio.current_time() - began > _SETTLED_SECONDS:
                self._backoff.reset()
            # Without jitter: workers do not end all at the same moment.
            delay_seconds = self._backoff.next_bound()
            log.error(
                "a worker ended and is replaced",
                worker=self.number,
                exit_code=exit_code,
                delay_seconds=delay_seconds,
            )
            with trio.move_on_after(delay_seconds):
                await self._shutdown.wait()
                return

    def reload(self, log_level: LogLevel) -> None:
        """Make this and later processes read certificates again, and log from a level on."""
        settings = attrs.evolve(self._assignment.settings, log_level=log_level)
        self._assignment = attrs.evolve(self._assignment, settings=settings)
        self._reload.set()

    async def _run_or_fail(self) -> int | None:
        """Run a process; None if none can be started now, for lack of memory or processes.

        That is an error of its own only if none has run so far: the other workers go on.
        """
        try:
            return await self._run_process()
        except* OSError as group:
            if not self.listening.is_set():
                raise
            log.error(  # noqa: TRY400 - the traceback says no more
                "a worker cannot be started",
                worker=self.number,
                reason=str(first_of(group)),
            )
        self.pid = None
        return None

    async def _run_process(self) -> int:
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(
                partial(
                    trio.run_process,
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    check=False,
                    pass_fds=self._assignment.descriptors,
                    # Its group is its own: a SIGHUP for that of the parent would end a process that
                    # does not ignore it yet.
                    process_group=0,
                    deliver_cancel=_kill,
                )
            )
            self.pid = process.pid
            async with trio.open_nursery() as conversation:
                conversation.start_soon(self._instruct, process)
                await self._listen(process)
                conversation.cancel_scope.cancel()
        self.pid = None
        assert process.returncode is not None  # run_process has waited for it
        return process.returncode

    async def _instruct(self, process: trio.Process) -> None:
        assert process.stdin is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, process.stdin)
            await self._shutdown.wait()
            nursery.cancel_scope.cancel()
        await process.stdin.aclose()

    async def _write(self, stdin: trio.abc.SendStream) -> None:
        """Write the assignment, and each reload, until cancelled or the process ends."""
        with suppress(trio.BrokenResourceError):
            await stdin.send_all(self._assignment.to_json() + b"\n")
            while True:
                await self._reload.wait()
                self._reload = trio.Event()
                request = Reload(self._assignment.settings.log_level)
                await stdin.send_all(request.to_json() + b"\n")

    async def _listen(self, process: trio.Process) -> None:
        """Read the process's output until it ends."""
        assert process.stdout is not None
        async for line in process.stdout:
            self.websocket_url = line.decode().strip()
            self.listening.set()

    async def ask(self, path: str) -> Any:
        """Return the JSON of a path of its page, or None if it does not answer."""
        async with self._client() as client:
            try:
                response = await client.get(path)
                answer = response.json()
            except (httpx2.HTTPError, ValueError):
                return None
        # A fault of the worker, which it has logged; 503 is an answer: not ready.
        return None if response.status_code == httpx2.codes.INTERNAL_SERVER_ERROR else answer

    async def post(self, path: str, body: bytes, key: str) -> tuple[int, bytes] | None:
        """Post JSON with an operator's key; return status and body, None if it does not answer."""
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        # It may ask the other processes, and Redis after them.
        more_seconds = 2 * self._assignment.settings.api_timeout_seconds
        async with self._client(_REQUEST_TIMEOUT_SECONDS + more_seconds) as client:
            try:
                response = await client.post(path, content=body, headers=headers)
            except httpx2.HTTPError:
                return None
        return response.status_code, response.content

    def _client(self, timeout_seconds: float = _ANSWER_TIMEOUT_SECONDS) -> httpx2.AsyncClient:
        transport = httpx2.AsyncHTTPTransport(uds=str(self._socket), verify=False)
        return httpx2.AsyncClient(
            transport=transport, base_url="http://worker", timeout=timeout_seconds
        )


async def _kill(process: trio.Process) -> None:
    process.kill()
