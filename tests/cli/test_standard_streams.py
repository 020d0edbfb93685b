"""Standard streams that are closed, or on a disk that is full."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from streamer.cli.errors import ExitCode

_SOCKET_AFTER_MAIN: Final = """
import socket, sys
from streamer.cli import main
main(["--version"])
with socket.socket() as one:
    sys.exit(0 if one.fileno() > 2 else 1)
"""


def run(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with one of its streams redirected by the shell."""
    script = f'exec "$0" "$@" {redirection}'
    return subprocess.run(
        ["/bin/sh", "-c", script, sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_no_socket_gets_the_number_of_a_closed_stream(redirection: str) -> None:
    """It would be sent what the command prints."""
    assert run(redirection, "-c", _SOCKET_AFTER_MAIN).returncode == ExitCode.OK


def test_a_closed_stdin_is_an_empty_one(tmp_path: Path) -> None:
    """The error is that of the empty text."""
    secret = tmp_path / "secret"
    secret.write_text("a secret of the tests, of 32 bytes and more\n")
    ran = run("<&-", "-m", "streamer", "token", "check", "--auth-secret-file", str(secret))
    assert ran.returncode == ExitCode.FAILURE
    assert ran.stderr.startswith("streamer: error: the token is not a JWT")


def test_a_full_disk_is_an_error_of_one_line() -> None:
    """Nothing is said about it again when Python ends."""
    ran = run(">/dev/full", "-m", "streamer", "--help")
    assert ran.returncode == ExitCode.FAILURE
    assert ran.stderr == "streamer: error: cannot write: [Errno 28] No space left on device\n"


def test_a_character_that_the_encoding_lacks_is_replaced() -> None:
    """The name of a stock does not end a command."""
    script = "from streamer.cli import main; main(['--version']); print('삼성')"
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert ran.stdout.splitlines()[-1] == b"??"
    assert ran.returncode == 0
