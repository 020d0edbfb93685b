"""The npm package of streamer.js: its types, its files, and its version."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from docs.generate import TYPES, types
from streamer import __version__
from tests.web.nodejs import WEB


def test_the_types_are_those_of_the_models() -> None:
    """streamer.d.ts is up to date."""
    assert TYPES.read_text(encoding="utf-8") == types(), "run: python -m docs.generate"


def test_the_version_is_that_of_the_server() -> None:
    """Both are released together."""
    package = json.loads((WEB / "package.json").read_text(encoding="utf-8"))
    assert package["version"] == __version__


def test_the_package_has_the_modules_and_their_types(tmp_path: Path) -> None:
    """`npm pack` makes a package of all that a page imports."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    subprocess.run(
        [npm, "pack", "--silent", "--pack-destination", tmp_path, WEB], check=True, cwd=tmp_path
    )
    (archive,) = tmp_path.glob("*.tgz")
    with tarfile.open(archive) as package:
        packed = {Path(name).name for name in package.getnames()}
    assert packed == {path.name for path in WEB.iterdir() if path.is_file()}
