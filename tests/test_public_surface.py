"""The names that `streamer` itself offers: streamer/__init__.py and docs/reference/python.md."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import streamer

PROJECT = Path(__file__).parent.parent
NAMES = sorted(set(streamer.__all__) - {"__version__"})

PRODUCER = {"streamer.broker", "streamer.protocol", "streamer.publisher"}
SERVER = {"streamer.admin", "streamer.edge", "streamer.hub", "streamer.server", "streamer.source"}


def _imported_for_type_checkers() -> dict[str, str]:
    """The module of each name that a type checker sees imported."""
    tree = ast.parse((PROJECT / "streamer" / "__init__.py").read_text(encoding="utf-8"))
    return {
        alias.name: statement.module or ""
        for block in tree.body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def _modules_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter has imported after a statement."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys\nprint(*sys.modules)"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(shown.stdout.split())


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_what_a_type_checker_sees(name: str) -> None:
    """The lazy import of a name leads to the module that TYPE_CHECKING names."""
    module = _imported_for_type_checkers()[name]
    assert getattr(streamer, name) is getattr(sys.modules[module], name)


def test_public_names_are_those_imported_for_type_checkers() -> None:
    """`__all__` lists the imports under TYPE_CHECKING, no more and no fewer."""
    assert sorted(_imported_for_type_checkers()) == NAMES
    assert set(NAMES) <= set(dir(streamer))


def test_an_unknown_name_is_an_attribute_error() -> None:
    """`hasattr`, and `from streamer import` of a misspelt name, behave as with any module."""
    assert not hasattr(streamer, "open_cleint")


def test_the_page_names_exactly_the_public_names() -> None:
    """docs/reference/python.md has a table row for each public name, and for nothing else."""
    page = (PROJECT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    listed = [
        name
        for row in re.findall(r"^\| (`[^|]*`) \|", page, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    ]
    assert sorted(listed) == NAMES


def test_the_package_itself_imports_no_other() -> None:
    """`import streamer` is free of charge, so that a version can be asked for at no cost."""
    modules = _modules_after("import streamer; streamer.__version__")
    assert {name for name in modules if name.startswith("streamer")} == {"streamer"}
    assert not modules & {"attrs", "trio", "redis"}


def test_a_producer_imports_neither_server_nor_client() -> None:
    """A process that publishes does not pay for what serves clients."""
    modules = _modules_after("from streamer import open_publisher")
    assert modules >= PRODUCER
    assert not modules & (SERVER | {"streamer.client", "starlette", "hypercorn", "trio_websocket"})


def test_a_client_imports_neither_server_nor_producer() -> None:
    """A process that listens does not pay for what serves clients, nor for Redis."""
    modules = _modules_after("from streamer import open_client")
    assert "streamer.client" in modules
    assert not modules & (SERVER | {"streamer.publisher", "streamer.broker", "starlette", "redis"})
