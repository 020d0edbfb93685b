"""The parent of the workers: it holds the port, replaces who dies, and tells what all did.

    supervise
    ├── statistics page     asks each worker, and adds up
    └── processes           outlives the shutdown, until all have let their clients go
        └── per worker      one process after the other

It serves no client, so nothing that clients do can take it down.
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

from streamer.admin.http import Readiness, Report, serve_http
from streamer.config import Settings
from streamer.edge.listeners import bind_sockets, close_sockets
from streamer.workers.assignment import Assignment
from streamer.workers.totals import add_up
from streamer.workers.worker import Worker

_END_GRACE_SECONDS: Final = 10.0
"""What a worker may take to end beyond its own deadline, before it is killed."""

log = structlog.get_logger()


class Supervisor:
    """Running workers, for whoever started them."""

    def __init__(self, workers: Sequence[Worker], shutdown: trio.Event) -> None:
        self.workers = workers
        self.http_url = ""
        self._shutdown = shutdown

    @property
    def active_connections(self) -> int:
        """None of its own."""
        return 0

    @property
    def websocket_url(self) -> str:
        """Where clients connect; all workers share it."""
        return self.workers[0].websocket_url

    async def run(self, settings: Settings, task_status: trio.TaskStatus[Supervisor]) -> None:
        """Keep the workers running until the shutdown; see `supervise`."""
        report = Report(self.statistics, self.connections, self.readiness)
        async with trio.open_nursery() as root:
            self.http_url = await root.start(
                partial(serve_http, report, settings.http_host, settings.http_port)
            )
            async with trio.open_nursery() as processes:
                processes.start_soon(self._start, processes, task_status)
                await self._shutdown.wait()
                processes.cancel_scope.deadline = (
                    trio.current_time() + settings.drain_timeout_seconds + _END_GRACE_SECONDS
                )
            root.cancel_scope.cancel()

    async def _start(
        self, processes: trio.Nursery, task_status: trio.TaskStatus[Supervisor]
    ) -> None:
        # The first one alone: if it cannot serve, none can, and that is to be said once.
        for together in (self.workers[:1], self.workers[1:]):
            for worker in together:
                processes.start_soon(worker.run)
            for worker in together:
                await worker.listening.wait()
        task_status.started(self)

    # What it tells

    async def statistics(self) -> dict[str, Any]:
        """The figures of all workers added up, and each worker's own."""
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
        """Each connection of each worker."""
        answers = await self._ask_all("/v1/ws/connections")
        return [
            {"worker": worker.number, **connection}
            for worker, answer in zip(self.workers, answers, strict=True)
            for connection in (answer or {"connections": []})["connections"]
        ]

    async def readiness(self) -> Readiness:
        """Ready when all are."""
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
    task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run `settings.workers` servers on one port; started once all of them listen.

    `command` starts a worker process, which then reads an `Assignment`. Returns when all have ended
    in good order after `shutdown`; cancel it to kill them. Raises OSError where it cannot listen
    and WorkerFailedError where a worker cannot serve at all, inside exception groups.
    """
    held = await _hold_port(settings)
    try:
        host, port = held[0].getsockname()[:2]
        with tempfile.TemporaryDirectory(prefix="streamer-") as directory:
            workers = []
            for number in range(1, settings.workers + 1):
                page = Path(directory) / f"worker-{number}.sock"
                assigned = attrs.evolve(
                    settings,
                    # A port that was picked was picked for one address.
                    host=settings.host if settings.port else host,
                    port=port,
                    http_host=f"unix:{page}",
                )
                workers.append(Worker(Assignment(number, assigned), command, page, shutdown))
            await Supervisor(workers, shutdown).run(settings, task_status)
    finally:
        close_sockets(held)


async def _hold_port(settings: Settings) -> list[socket.socket]:
    """Sockets that keep the port for the workers, and take no connection: they never listen."""
    if settings.port:
        # Whoever shares a port gets a part of its clients: not those of another server.
        close_sockets(await bind_sockets(settings.host, settings.port, shared=False))
    return await bind_sockets(settings.host, settings.port, shared=True)
