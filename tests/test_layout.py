"""Every module of the package has its tests where they are looked for.

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
