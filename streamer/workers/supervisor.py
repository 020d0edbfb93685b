"""The parent of the workers: it keeps the port, replaces workers, and adds up statistics.

    supervise
    ├── HTTP pages          ask each worker, and add up, also every 5 s for the samples
    └── processes           continues after shutdown until all connections are closed
        └── per worker      one process after the other

It serves no clients, so no client can affect it.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import structlog
import trio

from streamer.admin.api import PATH as API_PATH
from streamer.admin.api import Api
from streamer.admin.http import Readiness, Report, serve_http
from streamer.admin.keys import ApiKeys
from streamer.admin.models import ApiError
from streamer.config import LogLevel, Settings
from streamer.edge.listeners import bind_sockets, close_sockets
from streamer.workers.assignment import Assignment
from streamer.workers.totals import add_up
from streamer.workers.worker import Worker

_END_GRACE_SECONDS: Final = 10.0
"""Seconds after a worker's own deadline to end before it is killed."""

log = structlog.get_logger()


class Supervisor:
    """The running workers; see `supervise`."""

    def __init__(self, workers: Sequence[Worker], shutdown: trio.Event) -> None:
        self.workers = workers
        self.http_url = ""
        self._shutdown = shutdown

    @property
    def active_connections(self) -> int:
        """Always 0: the workers have the connections."""
        return 0

    @property
    def websocket_url(self) -> str:
        """The URL for clients, which all workers share."""
        return self.workers[0].websocket_url

    async def run(self, settings: Settings, task_status: trio.TaskStatus[Supervisor]) -> None:
        """Keep the workers running until the shutdown."""
        report = Report(self.statistics, self.connections, self.readiness)
        async with trio.open_nursery() as root:
            self.http_url = await root.start(
                partial(
                    serve_http,
                    report,
                    settings.http_host,
                    settings.http_port,
                    api=self._api(settings),
                    allowed_hosts=settings.http_allowed_hosts,
                )
            )
            async with trio.open_nursery() as processes:
                starting = trio.CancelScope()
                processes.start_soon(self._start, processes, starting, task_status)
                await self._shutdown.wait()
                starting.cancel()  # a worker that is stopped before it listens never will
                processes.cancel_scope.deadline = (
                    trio.current_time() + settings.drain_timeout_seconds + _END_GRACE_SECONDS
                )
            root.cancel_scope.cancel()

    async def _start(
        self,
        processes: trio.Nursery,
        scope: trio.CancelScope,
        task_status: trio.TaskStatus[Supervisor],
    ) -> None:
        with scope:
            # The first one alone: if it cannot serve, none can, and the error is written only once.
            for together in (self.workers[:1], self.workers[1:]):
                for worker in together:
                    processes.start_soon(worker.run)
                for worker in together:
                    await worker.listening.wait()
            task_status.started(self)

    def reload(self, log_level: LogLevel) -> None:
        """Make all workers read certificates again, and log from this level on."""
        for worker in self.workers:
            worker.reload(log_level)

    # For the operator

    def _api(self, settings: Settings) -> Api | None:
        if settings.api_key_file is None:
            return None
        keys = ApiKeys(settings.api_key_file)
        return Api(keys, settings.max_publication_bytes, forward=self._forward)

    async def _forward(self, name: str, body: bytes, key: str) -> tuple[int, bytes]:
        """Let a worker carry out a request, the first that is seen to answer."""
        answering: list[Worker] = []

        async def find(worker: Worker) -> None:
            if await worker.ask("/healthz") is not None:
                answering.append(worker)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for worker in self.workers:
                nursery.start_soon(find, worker)
        answer = await answering[0].post(f"{API_PATH}/{name}", body, key) if answering else None
        if answer is None:
            raise ApiError(503, "no worker answers; what was asked may have been done")
        return answer

    async def statistics(self) -> dict[str, Any]:
        """Return the statistics of all workers added up, and those of each."""
        answers = await self._ask_all("/v1/ws/stats")
        workers = [
            {
                "worker": worker.number,
                "pid": worker.pid,
                "restarts": worker.restarts,
                "statistics": answer,
            }
            for worker, answer in zip(self.workers, answers, strict=True)
        ]
        return {**add_up([answer for answer in answers if answer]), "workers": workers}

    async def connections(self) -> list[dict[str, Any]]:
        """Return the connections of all workers."""
        answers = await self._ask_all("/v1/ws/connections")
        return [
            {"worker": worker.number, **connection}
            for worker, answer in zip(self.workers, answers, strict=True)
            for connection in (answer or {"connections": []})["connections"]
        ]

    async def readiness(self) -> Readiness:
        """Return whether all workers are ready."""
        if self._shutdown.is_set():
            return Readiness(ready=False, reason="shutting down")
        answers = await self._ask_all("/readyz")
        for worker, answer in zip(self.workers, answers, strict=True):
            readiness = Readiness(**answer) if answer else Readiness(ready=False, reason="absent")
            if not readiness.ready:
                return attrs.evolve(readiness, reason=f"worker {worker.number}: {readiness.reason}")
        return Readiness(ready=True)

    async def _ask_all(self, path: str) -> list[Any]:
        answers: list[Any] = [None] * len(self.workers)

        async def ask(index: int) -> None:
            answers[index] = await self.workers[index].ask(path)

        async with trio.open_nursery() as nursery:
            for index in range(len(self.workers)):
                nursery.start_soon(ask, index)
        return answers


async def supervise(
    settings: Settings,
    command: Sequence[str],
    *,
    shutdown: trio.Event,
    sockets: Sequence[socket.socket] = (),
    task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run `settings.workers` servers on one port; started once all of them listen.

    `command` starts a worker process, which then reads an `Assignment`. With `sockets`, TCP sockets
    that listen already, all workers accept from these. Returns when all have ended after
    `shutdown`, without having started if that came first; cancelling kills them. Raises OSError if
    it cannot listen and WorkerFailedError if a worker cannot serve at all, in exception groups.
    """
    held = list(sockets) or await _hold_port(settings)
    inherited = tuple(one.fileno() for one in sockets)
    try:
        port = held[0].getsockname()[1]
        with tempfile.TemporaryDirectory(prefix="streamer-") as directory:
            workers = []
            for number in range(1, settings.workers + 1):
                page = Path(directory) / f"worker-{number}.sock"
                assigned = attrs.evolve(settings, port=port, http_host=f"unix:{page}")
                workers.append(
                    Worker(Assignment(number, assigned, inherited), command, page, shutdown)
                )
            await Supervisor(workers, shutdown).run(settings, task_status)
    finally:
        close_sockets(held)


async def _hold_port(settings: Settings) -> list[socket.socket]:
    """Bind sockets that keep the port for the workers; they never listen."""
    if settings.port:
        # On a port shared with another server, each would receive some of the other's clients.
        close_sockets(await bind_sockets(settings.host, settings.port, shared=False))
    return await bind_sockets(settings.host, settings.port, shared=True)
