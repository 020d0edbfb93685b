"""SIGHUP: take up new certificates and the log level without ending a connection."""

import signal
from collections.abc import Callable
from typing import NoReturn

import click
import structlog
import trio

from streamer.cli.logs import set_log_level
from streamer.config import LogLevel

log = structlog.get_logger()


async def reload_at_hangup(
    read_log_level: Callable[[], LogLevel],
    reload: Callable[[LogLevel], None],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """At each SIGHUP, set the log level and call `reload` with it, until cancelled.

    Once this has started, no signal is missed.

    `read_log_level` raises click.UsageError if the configuration cannot be used; that is logged,
    and the level stays. The signal does not end the process, and is ignored afterwards as before.
    """
    level = read_log_level()
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            try:
                level = read_log_level()
            except click.UsageError as error:
                log.warning("configuration not reloaded", reason=error.format_message())
            set_log_level(level)
            reload(level)
            log.info("reloaded", log_level=level)
    raise AssertionError("a signal receiver never ends by itself")  # pragma: no cover
