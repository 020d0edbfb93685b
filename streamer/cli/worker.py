"""`streamer worker`: one of the processes of `streamer serve --workers`, which starts it."""

import os
import sys
from typing import TYPE_CHECKING

import click
import structlog
import trio

from streamer.cli.logs import configure_logging
from streamer.cli.serve import run_server
from streamer.cli.signals import handle_end_signals, ignore_hangup
from streamer.workers.assignment import Assignment

if TYPE_CHECKING:
    from streamer.server import Server


@click.command("worker", hidden=True)
def command() -> int:
    """Serve with the settings that the parent writes to stdin, until it closes stdin."""
    from streamer.server import serve  # noqa: PLC0415 - as in `serve`

    ignore_hangup()
    assignment = Assignment.from_json(sys.stdin.buffer.readline())
    settings = assignment.settings
    configure_logging(settings.log_level, settings.log_format)
    structlog.contextvars.bind_contextvars(worker=assignment.worker)
    return trio.run(run_server, serve, settings, _obey_parent, _report)


def _report(server: "Server") -> None:
    click.echo(server.websocket_url)


async def _obey_parent(
    shutdown: trio.Event,
    _everything: trio.CancelScope,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Set `shutdown` when the parent closes stdin, or has ended, and at each signal.

    A second signal has no further effect: Ctrl-C and service managers signal the parent and the
    workers, and the parent kills a worker that does not end.
    """
    async with trio.lowlevel.FdStream(os.dup(0)) as stdin, trio.open_nursery() as nursery:
        nursery.start_soon(_stop_at_end, stdin, shutdown)
        await handle_end_signals(lambda _number: shutdown.set(), task_status)


async def _stop_at_end(stdin: trio.lowlevel.FdStream, shutdown: trio.Event) -> None:
    await stdin.receive_some()  # returns when the parent closes it
    shutdown.set()
