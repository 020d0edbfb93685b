"""The errors and exit codes of all commands.

Covers streamer.__main__ and streamer.cli.errors.
"""

import subprocess
import sys

import click
import pytest

from streamer import __version__
from streamer.cli import commands, main
from streamer.cli.errors import CommandError, ExitCode


def run_command_that_raises(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the exit code of a command that raises this error."""

    @click.command("end")
    def end() -> None:
        raise error

    monkeypatch.setitem(commands.commands, "end", end)
    return main(["end"])


def test_the_module_is_the_command() -> None:
    """`python -m streamer` prints its version."""
    ran = subprocess.run(
        [sys.executable, "-m", "streamer", "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout == f"streamer {__version__}\n"
    assert ran.stderr == ""


def test_help_explains_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """The help lists the commands and the exit codes."""
    assert main(["--help"]) == ExitCode.OK
    text = capsys.readouterr().out
    for name, command in commands.commands.items():
        assert command.hidden or f"\n  {name} " in text
    for code in ExitCode:
        assert f"{code:d}  {code.explanation}" in text


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """`streamer` alone prints the help, and exits as a usage error."""
    assert main([]) == ExitCode.USAGE
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(commands.commands))
def test_each_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` of every command begins with its purpose."""
    assert main([name, "--help"]) == ExitCode.OK
    assert f"Usage: streamer {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serv"], "No such command 'serv'"),
        (["--nope"], "No such option '--nope'"),
        (["serve", "--port", "x"], "port must be a whole number from 0 to 65535, not 'x'"),
        (["serve", "more"], "Got unexpected extra argument (more)"),
    ],
)
def test_a_usage_error_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line says what is wrong, and nothing else is printed."""
    assert main(arguments) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert err.startswith(f"streamer: error: {message}")
    assert err.count("\n") == 1
    assert out == ""


def test_a_command_error_is_one_line_with_its_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message of several lines becomes one line."""
    error = CommandError("Redis is\n  away", ExitCode.REDIS_REQUIRED)
    assert run_command_that_raises(error, monkeypatch) == 4
    assert capsys.readouterr().err == "streamer: error: Redis is away\n"


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        BaseExceptionGroup("", [BaseExceptionGroup("", [KeyboardInterrupt()])]),
    ],
)
def test_ctrl_c_is_no_traceback(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt, alone or in a group, gives the exit code that shells use for it."""
    assert run_command_that_raises(error, monkeypatch) == 130


def test_a_bug_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error is raised, beside an interrupt too."""
    error = BaseExceptionGroup("", [KeyboardInterrupt(), ZeroDivisionError()])
    with pytest.RaisesGroup(KeyboardInterrupt, ZeroDivisionError):
        run_command_that_raises(error, monkeypatch)
