"""Packages of streamer to be measured: a wheel, a revision, or the working tree.

Each is unpacked into a directory of its own, without its dependencies: all run on this Python with
the same versions of these, so that nothing but streamer differs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.rig import CACHE, RigError

ROOT = Path(__file__).parent.parent
DIRECTORY = CACHE / "packages"


def last_release() -> str | None:
    """Return the tag of the last release; None if there has been none."""
    command = ["git", "describe", "--tags", "--abbrev=0", "--match", "v*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def unpack_wheel(wheel: Path, name: str) -> Path:
    """Install a wheel into a directory, to be put on PYTHONPATH; return that."""
    target = _emptied(name)
    _pip("install", "--no-deps", "--target", target, wheel)
    return target


def build_revision(revision: str, name: str) -> Path:
    """Build a revision of this repository, and unpack its wheel; return the directory.

    Raises RigError for a revision that git does not know.
    """
    sources = _emptied(f"{name}-sources")
    archive = sources / "archive.tar"
    _run("git", "archive", "--output", archive, revision)
    _run("tar", "--extract", "--file", archive, "--directory", sources)
    archive.unlink()
    return _build(sources, name)


def build_working_tree(name: str) -> Path:
    """Build the files of this directory as they are, and unpack the wheel."""
    return _build(ROOT, name)


def _build(sources: Path, name: str) -> Path:
    wheels = _emptied(f"{name}-wheel")
    _pip("wheel", "--no-deps", "--wheel-dir", wheels, sources)
    (wheel,) = wheels.glob("*.whl")
    return unpack_wheel(wheel, name)


def _emptied(name: str) -> Path:
    directory = DIRECTORY / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def _pip(*arguments: str | Path) -> None:
    _run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def _run(*command: str | Path) -> None:
    arguments: Sequence[str] = [str(argument) for argument in command]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RigError(f"{' '.join(arguments)} failed:\n{done.stderr.strip()}")
