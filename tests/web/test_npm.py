"""The packages of others around streamer.js: React on its hooks, TypeScript on its types.

They come from npm; without it, or without a network, these tests are skipped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually
from tests.web.nodejs import HERE, WEB, Program, running

EXAMPLES: Final = HERE.parents[1] / "docs" / "examples"
PACKAGES: Final = ("react@19", "react-test-renderer@19", "typescript@5.9")
INSTALL_SECONDS: Final = 120


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the packages, streamer.js, the hooks, and the programs that use them."""
    path = tmp_path_factory.mktemp("npm")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    (path / "package.json").write_text(json.dumps({"private": True, "type": "module"}))
    command = [npm, "install", "--silent", "--no-audit", "--no-fund", *PACKAGES]
    try:
        subprocess.run(command, cwd=path, check=True, timeout=INSTALL_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm could not install: {error}")
    scripts = [EXAMPLES / "use-streamer.js", HERE / "react.mjs", HERE / "types.ts"]
    for file in (*WEB.glob("*.js"), *WEB.glob("*.d.ts"), *scripts):
        shutil.copy(file, path)
    return path


def test_the_types_fit_their_use(directory: Path) -> None:
    """TypeScript accepts a program that is right, and refuses what its comments say."""
    compiler = directory / "node_modules" / ".bin" / "tsc"
    options = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext"]
    done = subprocess.run(
        [compiler, *options, "types.ts"], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


async def shows(program: Program, text: str) -> None:
    """Wait until the component has rendered a text."""
    while await program.receive() != text:
        pass


async def test_the_hooks_follow_a_topic(directory: Path) -> None:
    """A component shows the newest price, changes its topic, and leaves nothing behind."""
    async with running_server() as server, running(directory / "react.mjs") as program:
        await program.send({"url": server.websocket_url, "stock": "A"})
        await shows(program, "connecting A -")
        await shows(program, "connected A -")
        await eventually(lambda: server.statistics().subscriptions == 1)
        publish(server, "stock:A:price", price("A", 1))
        await shows(program, "connected A 1")
        publish(server, "stock:B:price", price("B", 7))
        await program.send({"stock": "B"})
        await shows(program, "connected B -")
        await eventually(lambda: [c.subscriptions for c in server.connections()] == [["stock:B"]])
        publish(server, "stock:B:price", price("B", 8))
        await shows(program, "connected B 8")
        await program.send({"stock": None})
        await eventually(lambda: server.statistics().subscriptions == 0)
