"""The command line: the only package that reads argv, the environment and signals."""

from collections.abc import Sequence

import click

from streamer import __version__
from streamer.cli.errors import CommandError, ExitCode
from streamer.cli.lazy_commands import LazyCommands
from streamer.cli.standard_streams import (
    drop_output,
    is_unwritable,
    open_closed_streams,
    replace_unwritable_characters,
)
from streamer.nursery import first_of

_EPILOG = "\b\nExit codes:\n" + "\n".join(f"{code:>5}  {code.explanation}" for code in ExitCode)

_MODULES = {
    "admin": "streamer.cli.admin",
    "check": "streamer.cli.check",
    "demo": "streamer.cli.demo",
    "keys": "streamer.cli.keys",
    "listen": "streamer.cli.listen",
    "publish": "streamer.cli.publish",
    "record": "streamer.cli.record",
    "relay": "streamer.cli.relay",
    "replay": "streamer.cli.replay",
    "serve": "streamer.cli.serve",
    "token": "streamer.cli.tokens",
    "worker": "streamer.cli.worker",
}


@click.group(
    commands=LazyCommands(_MODULES),
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="streamer", message="%(prog)s %(version)s")
def commands() -> None:
    """Market data from Redis, fanned out to WebSocket clients.

    `streamer serve` is the server. Each command has its own help: streamer serve --help
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default this process's, and return its exit code.

    Every expected error is one line on stderr. A traceback on stderr is a bug.
    """
    open_closed_streams()
    replace_unwritable_characters()
    try:
        return _run(arguments)
    except (OSError, BaseExceptionGroup) as raised:
        error = first_of(raised) if isinstance(raised, BaseExceptionGroup) else raised
        if not is_unwritable(error):
            raise
        drop_output()
        return _fail(f"cannot write: {error}", ExitCode.FAILURE)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = commands.main(arguments, prog_name="streamer", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as no_arguments:
        no_arguments.show()
        return ExitCode.USAGE
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except CommandError as error:
        return _fail(str(error), error.exit_code)
    except click.Abort:
        return ExitCode.INTERRUPTED
    except BaseExceptionGroup as group:
        # Inside a nursery, trio raises these in a group.
        if group.split(KeyboardInterrupt)[1] is None:
            return ExitCode.INTERRUPTED
        raise
    return result if isinstance(result, int) else ExitCode.OK


def _fail(message: str, code: int) -> int:
    click.echo(f"streamer: error: {' '.join(message.split())}", err=True)
    return code
