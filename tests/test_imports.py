"""The contracts on imports in pyproject.toml."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


def lint_imports(directory: Path, *contracts: str) -> subprocess.CompletedProcess[str]:
    """Check the imports of the package in a directory, by all contracts or those named."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    options = [option for contract in contracts for option in ("--contract", contract)]
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache", *options],
        cwd=directory,
        env={"PYTHONPATH": str(directory), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A directory with a copy of the package and of pyproject.toml."""
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    shutil.copytree(
        PROJECT / "streamer", tmp_path / "streamer", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


def test_imports_keep_the_contracts() -> None:
    """No module of the package imports against the direction."""
    checked = lint_imports(PROJECT)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("contract", "module", "statement"),
    [
        ("layers", "protocol/topics.py", "import streamer.config"),
        ("layers", "source/memory.py", "import streamer.edge.session"),
        ("layers", "newcomer.py", ""),
        ("circles", "hub/publication.py", "import streamer.hub.hub"),
        ("sans-io", "protocol/codec.py", "import trio"),
        ("sans-io", "wire/frames.py", "import socket"),
        ("sans-io", "hub/outbox.py", "import trio"),
        ("hub", "hub/hub.py", "import streamer.broker.keys"),
        ("publisher", "publisher/destination.py", "import streamer.wire.frames"),
        ("edge", "edge/session.py", "import streamer.broker.connection"),
        ("redis", "source/router.py", "import redis"),
        ("admin", "server.py", "import starlette"),
        ("cli", "client/client.py", "import click"),
    ],
)
def test_each_contract_fails_when_broken(
    copy: Path, contract: str, module: str, statement: str
) -> None:
    """One import against a contract is enough to break it."""
    path = copy / "streamer" / module
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(f"{text}\n{statement}\n", encoding="utf-8")
    checked = lint_imports(copy, contract)
    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert "0 kept, 1 broken" in checked.stdout or "newcomer" in checked.stdout + checked.stderr
