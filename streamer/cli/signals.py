"""Signals that end a command: SIGINT and SIGTERM, received as a task."""

import signal
from collections.abc import Callable
from typing import NoReturn

import trio


async def handle_end_signals(
    handle: Callable[[signal.Signals], None],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Call `handle` for each SIGINT and SIGTERM until cancelled.

    Once this has started, neither signal ends the process by itself.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            handle(signal.Signals(number))
    raise AssertionError("a signal receiver never ends by itself")  # pragma: no cover


def ignore_hangup() -> None:
    """Ignore SIGHUP in this process and in those that it starts.

    A server must outlive the terminal in which it was started, while it starts and stops, too.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
