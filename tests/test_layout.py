"""Every module of the package has its tests where they are looked for; no test pauses in secret.

The tests of streamer/PART/MODULE.py are in tests/PART/test_MODULE.py. A test file that covers other
modules as well, or instead, says so in its docstring in a paragraph of its own:

    Covers streamer.PART.MODULE and streamer.PART.OTHER.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.helpers import timing

ROOT: Final = Path(__file__).parents[1]
TESTS: Final = [*ROOT.glob("tests/**/test_*.py")]


def dotted(path: Path) -> str:
    """The name by which a module is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES: Final = {
    dotted(path): path for path in ROOT.glob("streamer/**/*.py") if path.stem != "__init__"
}


def covered_by_statement(test: Path) -> Iterator[str]:
    """The modules that the docstring of a test file says it covers."""
    docstring = ast.get_docstring(ast.parse(test.read_text())) or ""
    for paragraph in docstring.split("\n\n"):
        if paragraph.startswith("Covers "):
            yield from re.findall(r"\bstreamer(?:\.\w+)+", paragraph)


STATED: Final = {test: {*covered_by_statement(test)} for test in TESTS}


def test_each_module_has_a_test_that_is_found() -> None:
    """A test file has its name, or says that it covers it."""
    stated = set().union(*STATED.values())
    for module in MODULES:
        _, *parts, name = module.split(".")
        named = ROOT.joinpath("tests", *parts, f"test_{name}.py")
        assert named.exists() or module in stated, f"no {named.relative_to(ROOT)}, and no statement"


def test_each_statement_names_a_module_that_exists() -> None:
    """A module that moves takes the statements about it along."""
    for test, modules in STATED.items():
        assert modules <= MODULES.keys(), test


VIRTUAL_TIME: Final = {"autojump_clock", "mock_clock"}
PROGRAMS: Final = ("abuse", "autobahn", "chaos", "pages")
"""Directories of programs that run for minutes in real time, in nox sessions of their own."""
CALLED_IN_VIRTUAL_TIME: Final = {ROOT / "tests/feeds/test_playback.py": "played"}
"""Functions that pause, and are called only by tests whose clock is virtual."""


def real_pauses(path: Path) -> Iterator[str]:
    """Where a file pauses in real time for what is no constant of `tests.helpers.timing`."""
    for function in ast.parse(path.read_text()).body:
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        parameters = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
        if parameters & VIRTUAL_TIME or CALLED_IN_VIRTUAL_TIME.get(path) == function.name:
            continue
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in {
                "trio.sleep",
                "time.sleep",
            }:
                (seconds,) = call.args
                if not (isinstance(seconds, ast.Name) and hasattr(timing, seconds.id)):
                    yield f"{path.relative_to(ROOT)}:{call.lineno}"


def test_real_pauses_are_named_in_one_place() -> None:
    """Each has its reason in `tests.helpers.timing`; tests wait for events instead."""
    paths = set(ROOT.glob("tests/**/*.py")) - {Path(timing.__file__)}
    for program in PROGRAMS:
        paths -= set(ROOT.glob(f"tests/{program}/*.py"))
    assert [pause for path in sorted(paths) for pause in real_pauses(path)] == []
