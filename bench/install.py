"""Install the peers from their registries into the benchmark's cache, never into the project.

Each function returns the path of an installation, and makes it first if it is not in the cache. It
raises RigError if that fails: the harness then leaves that peer out of the report, with the reason.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.rig import CACHE, RigError

PEERS = Path(__file__).parent / "peers"
INSTALL_TIMEOUT_SECONDS = 600.0


def _run(what: str, command: Sequence[str | Path], directory: Path) -> None:
    try:
        subprocess.run(
            [str(part) for part in command],
            cwd=directory,
            check=True,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_SECONDS,
        )
    except FileNotFoundError as error:
        raise RigError(f"{what}: there is no {command[0]} on this machine.") from error
    except subprocess.CalledProcessError as error:
        raise RigError(f"{what} could not be installed: {error.stderr.strip()[-500:]}") from error
    except subprocess.TimeoutExpired as error:
        raise RigError(f"{what} could not be installed in {error.timeout:g} s.") from error


def _cached(name: str, contents: str, install: Callable[[Path], None]) -> Path:
    """Return the cached directory, installed again if `contents` has changed."""
    directory = CACHE / name
    marker = directory / ".installed"
    if not marker.exists() or marker.read_text() != contents:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        install(directory)
        marker.write_text(contents)
    return directory


def python() -> Path:
    """Return the interpreter of an environment with the Python peers."""
    requirements = PEERS / "requirements.txt"

    def install(directory: Path) -> None:
        _run("A virtual environment", [sys.executable, "-m", "venv", directory], directory)
        pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        _run("The Python peers", [*pip, "--requirement", str(requirements)], directory)

    return _cached("python", requirements.read_text(), install) / "bin" / "python"


def node_modules(*packages: str) -> Path:
    """Return a node_modules directory with the packages."""

    def install(directory: Path) -> None:
        npm = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(directory)]
        _run(" and ".join(packages), [*npm, *packages], directory)

    return _cached("node", " ".join(packages), install) / "node_modules"


def debian(name: str, *packages: str) -> Path:
    """Return a directory with unpacked Debian packages; the system itself is not changed."""

    def install(directory: Path) -> None:
        if os.geteuid() == 0:
            # The download fails if the package lists are older than the archive.
            _run("The package lists", ["apt-get", "update"], directory)
        _run(name, ["apt-get", "download", *packages], directory)
        for package in directory.glob("*.deb"):
            _run(name, ["dpkg", "--extract", package, directory], directory)

    return _cached(name, " ".join(packages), install)


def nginx() -> Path:
    """Return the nginx on PATH, else Debian's."""
    # The usual PATH of a user lacks the directory of nginx.
    if found := shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"):
        return Path(found)
    return debian("nginx", "nginx") / "usr/sbin/nginx"


def python_versions() -> str:
    """Return the versions of the installed Python peers."""
    listed = subprocess.run(
        [python(), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = {
        re.split(r"[\[<>=]", line)[0] for line in (PEERS / "requirements.txt").read_text().split()
    }
    found = [one for one in json.loads(listed.stdout) if one["name"] in wanted]
    return ", ".join(f"{one['name']} {one['version']}" for one in found)
