"""The commands of the how-to on alerts, as they are written there."""

from __future__ import annotations

import json
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Final

import trio

from streamer.server import Server
from tests.helpers.server import running_server
from tests.helpers.timing import DEADLINE_SECONDS, eventually

PAGE: Final = Path(__file__).parents[2] / "docs" / "how-to" / "alerts.md"


def commands() -> list[list[str]]:
    """The lines of the page's shell blocks, with `> FILE` as two words at the end."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


async def run(arguments: list[str], directory: Path) -> bytes:
    """Run one command of the page; return its output."""
    with trio.fail_after(DEADLINE_SECONDS):
        process = await trio.run_process(
            [sys.executable, "-m", "streamer", *arguments[1:]],
            capture_stdout=True,
            capture_stderr=True,
            cwd=directory,
        )
    return process.stdout


def user_connected(server: Server) -> bool:
    """Whether a client has presented a token."""
    return any(connection.user_id == "42" for connection in server.connections())


async def test_the_commands_of_the_page_do_what_it_says(tmp_path: Path, redis_url: str) -> None:
    """The user's client receives the alert and the notification."""
    keys, serve, token, listen, *publishes = commands()
    assert serve[1] == "serve"
    settings = dict(zip(serve[2::2], serve[3::2], strict=True))
    await run(keys, tmp_path)
    assert token[-2:] == [">", "token.txt"]
    (tmp_path / "token.txt").write_bytes(await run(token[:-2], tmp_path))
    received: list[bytes] = []
    async with running_server(
        redis=redis_url,
        auth=settings["--auth"],
        auth_signing_key_file=tmp_path / settings["--auth-signing-key-file"],
    ) as server:

        async def hear() -> None:
            arguments = [*listen, "--url", server.websocket_url, "--count", str(len(publishes))]
            received.append(await run(arguments, tmp_path))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear)
            await eventually(partial(user_connected, server))
            for publish in publishes:
                await run([*publish, "--redis", redis_url], tmp_path)
    lines = [json.loads(line) for line in received[0].splitlines()]
    assert [(line["type"], line["target"]) for line in lines] == [
        ("alert", "42"),
        ("notification", "42"),
    ]
