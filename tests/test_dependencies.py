"""The dependencies that pyproject.toml declares are those that the package imports."""

import ast
import re
import sys
import tomllib
from pathlib import Path

IMPORT_NAMES = {"pyjwt": "jwt"}
"""Packages that are imported by another name than they are installed by."""

PROJECT = Path(__file__).parent.parent


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    """No import relies on what another package happens to install."""
    imported = set()
    for path in (PROJECT / "streamer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    pyproject = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    names = [
        re.split(r"[\[>=<]", dependency)[0] for dependency in pyproject["project"]["dependencies"]
    ]
    declared = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}
    assert imported - sys.stdlib_module_names - {"streamer"} == declared
