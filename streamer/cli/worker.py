"""`streamer worker`: one of the processes of `streamer serve --workers`, which starts it."""

import os
import socket
from functools import partial
from typing import TYPE_CHECKING

import click
import structlog
import trio

from streamer.cli.errors import ExitCode
from streamer.cli.logs import configure_logging, set_log_level
from streamer.cli.serve import run_server
from streamer.cli.signals import handle_end_signals, ignore_hangup
from streamer.workers.assignment import Assignment, Reload

if TYPE_CHECKING:
    from streamer.server import Server


@click.command("worker", hidden=True)
def command() -> int:
    """Serve with the settings that the parent writes to stdin, until it closes stdin."""
    from streamer.server import serve  # noqa: PLC0415 - as in `serve`

    ignore_hangup()
    # Unbuffered, since a task reads what follows.
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        line = stdin.readline()
    if not line:  # the parent is stopping already
        return ExitCode.OK
    assignment = Assignment.from_json(line)
    settings = assignment.settings
    configure_logging(settings.log_level, settings.log_format)
    structlog.contextvars.bind_contextvars(worker=assignment.worker)
    sockets = [socket.socket(fileno=descriptor) for descriptor in assignment.descriptors]
    run = partial(serve, sockets=sockets)
    child = _Child()
    return trio.run(run_server, run, settings, child.obey_parent, child.report)


class _Child:
    """The conversation with the parent."""

    def __init__(self) -> None:
        self._server: Server | None = None
        self._is_reload_due = False
        """Whether a reload came while the server was starting: it has read its certificate."""

    def report(self, server: "Server") -> None:
        """Send the address of the server, now that it listens."""
        self._server = server
        if self._is_reload_due:
            server.reload()
        click.echo(server.websocket_url)

    async def obey_parent(
        self,
        shutdown: trio.Event,
        _everything: trio.CancelScope,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Set `shutdown` when the parent closes stdin, or has ended, and at each signal.

        A second signal has no further effect: service managers signal the parent and the workers,
        and the parent kills a worker that does not end.
        """
        async with trio.lowlevel.FdStream(os.dup(0)) as stdin, trio.open_nursery() as nursery:
            nursery.start_soon(self._read, stdin, shutdown)
            await handle_end_signals(lambda _number: shutdown.set(), task_status)

    async def _read(self, stdin: trio.lowlevel.FdStream, shutdown: trio.Event) -> None:
        """Carry out what the parent sends, and set `shutdown` when it closes stdin."""
        received = b""
        while data := await stdin.receive_some():
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                set_log_level(Reload.from_json(line).log_level)
                if self._server is None:
                    self._is_reload_due = True
                else:
                    self._server.reload()
        shutdown.set()
