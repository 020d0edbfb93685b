"""The tutorial: each of its commands does what the text around it says.

The commands are those of docs/tutorial/first-stream.md, on free ports, without the installation.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import redis as redis_py

from tests.helpers.timing import DEADLINE_SECONDS, wait_until

TUTORIAL: Final = Path(__file__).parents[2] / "docs" / "tutorial" / "first-stream.md"
STREAMER: Final = (sys.executable, "-m", "streamer")


def blocks(step: int) -> list[str]:
    """Return the code of a step, block by block."""
    _, *steps = re.split(r"^## ", TUTORIAL.read_text(), flags=re.MULTILINE)
    return re.findall(r"^```\w+\n(.*?)^```", steps[step - 1], flags=re.MULTILINE | re.DOTALL)


def arguments(block: str) -> list[str]:
    """Return the arguments of the last command of a block that runs streamer."""
    _, _, line = block.strip().rpartition(".venv/bin/streamer ")
    return shlex.split(line.partition("|")[0])


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Run streamer with these arguments; it does not outlive the block."""
    with subprocess.Popen(
        [*STREAMER, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = threading.Timer(DEADLINE_SECONDS, process.kill)
        deadline.start()
        try:
            yield process
        finally:
            deadline.cancel()
            process.kill()


def addresses(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return the addresses that a server prints, for clients and for the operator."""
    assert process.stdout is not None
    named: dict[str, str] = {}
    while "HTTP" not in named:
        name, url = process.stdout.readline().split()
        named[name] = url
    return named["WebSocket"], named["HTTP"]


def listen(url: str, block: str) -> list[Any]:
    """Run a `listen` into a pipe; return the messages that it prints."""
    command = [*STREAMER, *arguments(block), "--url", url]
    ran = subprocess.run(command, capture_output=True, timeout=DEADLINE_SECONDS, check=True)
    return [json.loads(line) for line in ran.stdout.splitlines()]


def page(url: str) -> Any:
    """Return the JSON of a page of the operator."""
    with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as response:
        return json.load(response)


@pytest.fixture(scope="module")
def demo() -> Iterator[tuple[str, str]]:
    """Run the command of step 1; return its addresses."""
    (start,) = blocks(1)
    with running(*arguments(start), "--port", "0", "--http-port", "0") as process:
        yield addresses(process)


def test_listen_prints_each_message_as_a_line(demo: tuple[str, str]) -> None:
    """Step 2; its table has a test of its own, in test_listen.py."""
    _, piped = blocks(2)
    messages = listen(demo[0], piped)
    assert len(messages) == 3
    assert {message["stock_code"] for message in messages} == {"005930"}


def test_any_client_can_speak_the_protocol(demo: tuple[str, str]) -> None:
    """Step 3: `connected`, `subscribed` with a position, last known values, new messages."""
    listen(demo[0], blocks(2)[1])  # step 2 has been done: the market has traded
    (code,) = blocks(3)
    code = code.replace("ws://127.0.0.1:8765/v1/ws", demo[0])
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=True,
        text=True,
    )
    connected, subscribed, *rest = map(json.loads, ran.stdout.splitlines())
    assert connected["type"] == "connected"
    assert subscribed["type"] == "subscribed"
    assert subscribed["positions"]["005930"]["sequence"] > 0
    data = [m for message in rest for m in message.get("messages", [message])]
    assert data[0]["snapshot"] is True
    assert "snapshot" not in data[-1]
    assert all("sequence" in message for message in data)


def test_the_server_can_be_looked_at(demo: tuple[str, str]) -> None:
    """Step 4: each path answers."""
    (commands,) = blocks(4)
    paths = re.findall(r"http://127\.0\.0\.1:8766(/\S+)", commands)
    assert len(paths) == 3
    statistics, connections, readiness = (page(demo[1] + path) for path in paths)
    assert statistics["active_connections"] == connections["count"]
    assert readiness["ready"] is True


def test_prices_of_ones_own_arrive_through_redis(redis: redis_py.Redis, redis_url: str) -> None:
    """Step 5: a plain price, a gap, and a price with a position; then the account."""
    serve, listening, plain, publish = blocks(5)
    where = ("--redis", redis_url)
    command = [part for part in arguments(serve) if not part.startswith("redis:")]
    command.remove("--redis")
    with running(*command, *where, "--port", "0", "--http-port", "0") as server:
        websocket, http = addresses(server)
        with running(*arguments(listening), "--url", websocket) as listener:
            wait_until(lambda: page(f"{http}/v1/ws/stats")["subscriptions"] == 1)
            _, operation, channel, message = shlex.split(plain)
            assert operation == "PUBLISH"
            assert redis.publish(channel, message) == 1
            subprocess.run([*STREAMER, *arguments(publish), *where], check=True)
            out, err = listener.communicate(timeout=DEADLINE_SECONDS)
    assert [json.loads(line)["type"] for line in out.splitlines()] == [
        "price_update",
        "gap",
        "price_update",
    ]
    assert err.splitlines()[-1] == "violations 0"
    assert listener.returncode == 0
