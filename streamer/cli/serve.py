"""`streamer serve`: the server, or several of them as workers."""

import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import click
import structlog
import trio

from streamer.cli.errors import CommandError, ExitCode
from streamer.cli.logs import configure_logging
from streamer.cli.options import SETTINGS_HELP, SettingsCommand, read_log_level, with_settings
from streamer.cli.print_config import config_text
from streamer.cli.reload import reload_at_hangup
from streamer.cli.service_manager import ServiceManager, take_sockets
from streamer.cli.signals import handle_end_signals, ignore_hangup
from streamer.config import LogLevel, Settings
from streamer.gc_pauses import frozen_objects, keep_collections_short
from streamer.listen_error import ListenError, split_hosts
from streamer.nursery import first_of
from streamer.setting_rules import SettingError, is_loopback
from streamer.workers.assignment import WorkerFailedError

if TYPE_CHECKING:
    from streamer.server import Server
    from streamer.workers.supervisor import Supervisor

Run = Callable[..., Awaitable[None]]
"""`streamer.server.serve`, or a function with the same signature."""

_EXPECTED_CODES: Final = (ExitCode.USAGE, ExitCode.CANNOT_LISTEN, ExitCode.REDIS_REQUIRED)
_NO_MANAGER: Final = ServiceManager()
_WORKER_COMMAND: Final = (sys.executable, "-m", "streamer", "worker")
_HELP: Final = f"""Send what is published to Redis to clients over WebSocket.

\b
  streamer serve                                    Redis and clients on this machine
  streamer serve --redis redis://10.0.0.5 --host 0.0.0.0
  streamer serve --config streamer.toml
  streamer serve --workers 4                        four processes on one port
  streamer serve --print-config > streamer.toml     a file with every setting, to edit

The first line on stdout is the address for clients, the second the one of statistics and health.
Ctrl-C or SIGTERM tells each client when to reconnect, then closes its connection; a second one ends
the server at once. SIGHUP reads the certificate and the log level again.

Sockets that systemd hands over (LISTEN_FDS) are used in place of --host and --port.

{SETTINGS_HELP}
"""


@click.command("serve", cls=SettingsCommand, help=_HELP)
@click.option(
    "--print-config",
    is_flag=True,
    help="Print the settings in force as a TOML file with comments, without secrets, and exit.",
)
@with_settings()
def command(settings: Settings, *, print_config: bool) -> int:
    """Run the server until a signal ends it."""
    if print_config:
        click.echo(config_text(settings), nl=False)
        return ExitCode.OK
    configure_logging(settings.log_level, settings.log_format)
    sockets = take_sockets(os.environ)
    manager = ServiceManager.from_environment(os.environ)
    _warn_if_open(settings, sockets)
    allow_many_connections()
    ignore_hangup()
    # Imported here: it takes longer than the other commands need to start.
    if settings.workers > 1:
        from streamer.workers.supervisor import supervise  # noqa: PLC0415

        run: Run = partial(supervise, command=_WORKER_COMMAND, sockets=sockets)
    else:
        from streamer.server import serve  # noqa: PLC0415

        run = partial(serve, sockets=sockets)
    read_level = partial(read_log_level, click.get_current_context(), settings)
    handle = partial(handle_signals, on_stop=manager.stopping)
    run_managed = partial(run_server, manager=manager)
    return trio.run(run_managed, run, settings, handle, _announce, read_level)


def _warn_if_open(settings: Settings, sockets: Sequence[socket.socket]) -> None:
    """Warn if other machines can connect, and nobody has to say who they are."""
    hosts = split_hosts(settings.host)
    if sockets:
        hosts = [one.getsockname()[0] for one in sockets]
    if settings.auth == "none" and not all(map(is_loopback, hosts)):
        structlog.get_logger().warning(
            "anybody who reaches the port may have every topic but alerts: auth is none",
            host=", ".join(hosts),
        )


def _announce(running: "Server | Supervisor") -> None:
    click.echo(f"WebSocket  {running.websocket_url}\nHTTP       {running.http_url}")


def _reload(running: "Server | Supervisor", level: LogLevel) -> None:
    from streamer.server import Server  # noqa: PLC0415

    if isinstance(running, Server):
        running.reload()
    else:
        running.reload(level)


@attrs.define
class _Announcement:
    """A task status that announces the server's addresses once it listens."""

    announce: Callable[[Any], None]
    nursery: trio.Nursery
    read_log_level: Callable[[], LogLevel] | None
    manager: ServiceManager
    made: bool = False

    def started(self, value: "Server | Supervisor | None" = None) -> None:
        assert value is not None  # optional only in the signature of trio's TaskStatus
        self.made = True
        self.announce(value)
        self.nursery.start_soon(keep_collections_short, value)
        self.nursery.start_soon(self._manage, value)

    async def _manage(self, running: "Server | Supervisor") -> None:
        """Report to the service manager once signals are received, since it may send one then."""
        if self.read_log_level is not None:
            reload = partial(self._reload, running)
            await self.nursery.start(reload_at_hangup, self.read_log_level, reload)
        self.manager.ready(running.websocket_url)
        await self.manager.keep_alive()

    def _reload(self, running: "Server | Supervisor", level: LogLevel) -> None:
        self.manager.reloading()
        _reload(running, level)
        self.manager.ready(running.websocket_url)


async def run_server(
    run: Run,
    settings: Settings,
    handle_signals: Callable[..., Awaitable[None]],
    announce: Callable[[Any], None],
    read_level: Callable[[], LogLevel] | None = None,
    *,
    manager: ServiceManager = _NO_MANAGER,
) -> ExitCode:
    """Run `serve`, or a function with the same signature; return the exit code.

    `handle_signals` is called with the event that begins a graceful stop, and the cancel scope of
    everything. `announce` is called with the server once it listens, and `manager` is notified.
    With `read_level`, SIGHUP reloads certificates and the log level that this returns. Raises
    CommandError.
    """
    from streamer.server import RedisRequired  # noqa: PLC0415

    shutdown = trio.Event()
    code = ExitCode.INTERRUPTED  # unless the server ends by itself
    failure: CommandError | None = None
    async with trio.open_nursery() as nursery:
        announcement = _Announcement(announce, nursery, read_level, manager)
        await nursery.start(handle_signals, shutdown, nursery.cancel_scope)
        try:
            with frozen_objects():
                await run(settings, shutdown=shutdown, task_status=announcement)
            code = ExitCode.OK
        except* RedisRequired as group:
            failure = CommandError(str(first_of(group)), ExitCode.REDIS_REQUIRED)
        except* SettingError as group:
            failure = CommandError(str(first_of(group)), ExitCode.USAGE)
        except* WorkerFailedError as group:
            code = _code_of_worker(first_of(group))
        except* OSError as group:
            if announcement.made:
                raise  # the server had started, so this is a bug
            failure = cannot_start(first_of(group))
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return code


def _code_of_worker(error: BaseException) -> ExitCode:
    """Return the exit code of a worker, which has written its error to stderr."""
    assert isinstance(error, WorkerFailedError)
    for code in _EXPECTED_CODES:
        if code == error.exit_code:
            return code
    click.echo(f"streamer: error: {error}", err=True)
    return ExitCode.FAILURE


def cannot_start(error: BaseException) -> CommandError:
    """Make the error for a server that could not listen."""
    if isinstance(error, ssl.SSLError):
        reason = error.strerror or error
        return CommandError(f"tls_certificate and tls_key: {reason}", ExitCode.USAGE)
    if isinstance(error, ListenError):
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in error.settings)
        return CommandError(f"{error.strerror} (from {flags})", ExitCode.CANNOT_LISTEN)
    return CommandError(str(error), ExitCode.CANNOT_LISTEN)


async def handle_signals(
    shutdown: trio.Event,
    everything: trio.CancelScope,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    on_stop: Callable[[], object] = lambda: None,
) -> None:
    """Set `shutdown` and call `on_stop` at the first signal; cancel `everything` at the second."""
    log = structlog.get_logger()

    def handle(number: signal.Signals) -> None:
        if shutdown.is_set():
            log.warning("ending at once", signal=number.name)
            everything.cancel()
        else:
            log.info("stopping; a second signal ends at once", signal=number.name)
            shutdown.set()
            on_stop()

    await handle_end_signals(handle, task_status)


def allow_many_connections() -> None:
    """Raise the limit of open files as far as the system allows: each client needs one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
