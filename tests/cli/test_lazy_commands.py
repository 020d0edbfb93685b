"""Commands that are imported when they are used."""

import subprocess
import sys

import click
import pytest

from streamer.cli import main
from streamer.cli.errors import ExitCode
from streamer.cli.lazy_commands import LazyCommands


def modules_after(*arguments: str) -> set[str]:
    """The modules that a fresh interpreter has imported after a command line."""
    program = f"from streamer.cli import main\nmain({arguments})\nimport sys\nprint(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(ran.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        ("listen", {"redis", "starlette", "hypercorn", "httpx2", "jwt", "rich"}),
        ("publish", {"starlette", "hypercorn", "httpx2", "jwt", "wsproto"}),
        ("serve", {"redis", "starlette", "hypercorn", "httpx2", "jwt", "wsproto"}),
    ],
)
def test_a_command_imports_no_library_of_another(command: str, unneeded: set[str]) -> None:
    """Until it runs, `serve` too; then it needs most of them."""
    imported = modules_after(command, "--help")
    assert f"streamer.cli.{command}" in imported
    assert not imported & unneeded


def test_a_misspelt_command_is_corrected(capsys: pytest.CaptureFixture[str]) -> None:
    """Names are known without an import."""
    assert main(["serv"]) == ExitCode.USAGE
    assert "Did you mean 'serve'?" in capsys.readouterr().err


def test_it_behaves_as_a_dict() -> None:
    """It is imported by a lookup alone, and others can be added and removed."""
    commands = LazyCommands({"listen": "streamer.cli.listen", "absent": "streamer.cli.absent"})
    assert list(commands) == ["listen", "absent"]
    assert "absent" in commands
    with pytest.raises(ModuleNotFoundError):
        commands["absent"]
    assert commands["listen"].name == "listen"
    assert commands.get("other") is None

    commands["other"] = click.Command("other")
    assert len(commands) == 3
    del commands["other"]
    assert "other" not in commands
    assert commands["listen"] is commands["listen"]
