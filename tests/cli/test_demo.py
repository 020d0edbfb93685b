"""`streamer demo` as a process, with real clients.

Covers streamer.cli.demo_users.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from streamer.cli import main
from streamer.cli.errors import ExitCode
from streamer.feeds.simulated import STOCKS
from tests.helpers.clients import open_url
from tests.helpers.timing import DEADLINE_SECONDS


@contextmanager
def running_demo(
    log: Path, *arguments: str, deadline_seconds: float = DEADLINE_SECONDS
) -> Iterator[subprocess.Popen[str]]:
    """Run a demo on free ports; it does not outlive the block, nor the deadline."""
    command = [sys.executable, "-m", "streamer", "demo", "--port", "0", "--http-port", "0"]
    # A demo that is killed leaves its temporary directory behind: in that of the test.
    environment = os.environ | {"TMPDIR": str(log.parent)}
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
        ) as process,
    ):
        # What hangs fails: its output then ends.
        deadline = threading.Timer(deadline_seconds, process.kill)
        deadline.start()
        try:
            yield process
        finally:
            deadline.cancel()
            process.kill()


def address(text: str, name: str = "WebSocket") -> str:
    """The address of a name in what a demo prints."""
    words = text.split()
    return words[words.index(name) + 1]


def introduction(process: subprocess.Popen[str]) -> str:
    """Return the output of a demo up to its last line."""
    assert process.stdout is not None
    text = ""
    while "Ctrl-C ends the demo." not in text:
        line = process.stdout.readline()
        assert line, text
        text += line
    return text


async def received_by_a_client(
    url: str, topics: list[str], wanted: set[str], *, after_snapshots: int = 0
) -> list[Any]:
    """Return the messages of some topics, until each type has been received.

    And until so many have come that are no snapshots.
    """
    messages: list[Any] = []
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_url(url) as websocket:
            for topic in topics:
                kind, target = topic.split(":")
                request = {"type": "subscribe", "subscription_type": kind, "targets": [target]}
                await websocket.send_message(json.dumps(request))
            while (
                not wanted <= {message["type"] for message in messages}
                or sum(not message.get("snapshot") for message in messages) < after_snapshots
            ):
                message = json.loads(await websocket.get_message())
                messages += message["messages"] if message["type"] == "batch" else [message]
    return messages


def test_what_it_tells_to_try_works(tmp_path: Path) -> None:
    """The printed topics and addresses give prices, order books, a market status and statistics."""
    log = tmp_path / "log"
    with running_demo(log, "--rate", "2000") as process:
        text = introduction(process)
        listen = re.search(r"  streamer listen --url (\S+) (.*)\n", text)
        assert listen is not None
        url, topics = listen[1], listen[2].split()
        page = re.match(r"Open       (http://127\.0\.0\.1:\d+/market/)\n", text)
        assert page is not None
        with urllib.request.urlopen(page[1], timeout=DEADLINE_SECONDS) as response:
            assert b"<title>Live market" in response.read()

        wanted = {"price_update", "orderbook_update", "market_status"}
        receive = partial(received_by_a_client, after_snapshots=10)
        messages = trio.run(receive, url, topics, wanted)
        assert {m["stock_code"] for m in messages if "stock_code" in m} == {STOCKS[0].code}

        addresses = re.findall(r"  curl (\S+)\n", text)
        pages = []
        for address in addresses:
            with urllib.request.urlopen(address, timeout=DEADLINE_SECONDS) as response:
                pages.append(json.load(response))
        assert pages[0]["messages_sent"] >= 3

        process.send_signal(signal.SIGINT)
        assert process.wait() == ExitCode.OK, log.read_text()
    assert "Traceback" not in log.read_text()


def test_the_address_of_the_page_stands_above_the_log(tmp_path: Path) -> None:
    """On a terminal, which shows both, it is the first line."""
    command = [sys.executable, "-m", "streamer", "demo", "--port", "0", "--http-port", "0"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        deadline = threading.Timer(DEADLINE_SECONDS, process.kill)
        deadline.start()
        try:
            assert introduction(process).startswith("Open ")
        finally:
            deadline.cancel()
            process.kill()


async def listened(command: str, count: int) -> list[dict[str, Any]]:
    """The first messages that a printed command shows."""
    arguments = [*shlex.split(command)[1:], "--count", str(count)]
    with trio.fail_after(DEADLINE_SECONDS):
        process = await trio.run_process(
            [sys.executable, "-m", "streamer", *arguments], capture_stdout=True
        )
    return [json.loads(line) for line in process.stdout.splitlines()]


def test_each_of_two_users_receives_alerts(tmp_path: Path) -> None:
    """With the printed commands; the tokens are in no output, and are deleted at the end."""
    log = tmp_path / "log"
    with running_demo(log, "--rate", "2000", "--log-level", "debug") as process:
        text = introduction(process)
        commands = re.findall(r"^  (streamer listen .* --token-file .*)$", text, re.MULTILINE)
        assert len(commands) == 2
        files = [Path(shlex.split(command)[-1]) for command in commands]
        tokens = [file.read_text().strip() for file in files]
        for user_id, command in zip(("ann", "bob"), commands, strict=True):
            messages = trio.run(listened, command, 2)
            assert {(m["type"], m["target"]) for m in messages} == {("alert", user_id)}
        secret = (files[0].parent / "secret").read_text().strip()
        assert {path.stat().st_mode & 0o077 for path in files[0].parent.iterdir()} == {0}
        assert files[0].parent.stat().st_mode & 0o077 == 0

        process.send_signal(signal.SIGINT)
        assert process.wait() == ExitCode.OK, log.read_text()
    output = text + log.read_text()
    for hidden in (*tokens, secret):
        assert hidden not in output
    assert not files[0].parent.exists()


@pytest.mark.parametrize("is_required", [True, False])
def test_settings_of_identity_replace_the_users(tmp_path: Path, is_required: bool) -> None:
    """Then no token of the demo's own is made, neither printed nor given to the page."""
    secret = tmp_path / "secret"
    secret.write_text("s" * 48)
    flags = ["--auth", "required", "--auth-secret-file", str(secret)]
    with running_demo(tmp_path / "log", *(flags if is_required else ["--auth", "none"])) as process:
        text = introduction(process)
        with urllib.request.urlopen(
            f"{address(text, 'Open')}market.json", timeout=DEADLINE_SECONDS
        ) as response:
            assert json.load(response)["token"] is None
    assert "--token-file" not in text


def test_all_that_is_listed_can_be_subscribed_to(tmp_path: Path) -> None:
    """No printed topic is rejected."""
    with running_demo(tmp_path / "log") as process:
        text = introduction(process)
        topics = re.findall(r"^  ((?:stock|market|sector|watchlist):\S+)", text, re.MULTILINE)
        assert len(topics) == len(set(topics)) >= len(STOCKS) + 4
        url = address(text)
        messages = trio.run(received_by_a_client, url, topics, {"subscribed", "market_status"})
        process.send_signal(signal.SIGTERM)
        assert process.wait() == ExitCode.OK
    assert [m for m in messages if m["type"] == "error" or m.get("rejected")] == []


def test_a_port_in_use_has_a_code_of_its_own(tmp_path: Path) -> None:
    """One line names the addresses, and no market is announced."""
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with running_demo(log, "--port", port) as process:
            output, _ = process.communicate()
    assert process.returncode == ExitCode.CANNOT_LISTEN
    assert output == ""
    assert log.read_text() == (
        f"streamer: error: cannot listen on 127.0.0.1:{port}: Address already in use"
        " (from --host and --port)\n"
    )


def test_an_unusable_key_file_is_a_usage_error(tmp_path: Path) -> None:
    """The file is read when the server starts; the error is one line, as for `serve`."""
    log, keys = tmp_path / "log", tmp_path / "keys"
    keys.write_text("short\n")
    with running_demo(log, "--api-key-file", str(keys)) as process:
        output, _ = process.communicate()
    assert process.returncode == ExitCode.USAGE
    assert output == ""
    (line,) = log.read_text().splitlines()
    assert line.startswith(f"streamer: error: api_key_file {keys} cannot be used: line 1 is not ")


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """A client that does not leave is not waited for."""
    waits = ["--close-timeout-seconds", "600", "--drain-timeout-seconds", "600"]
    with running_demo(tmp_path / "log", *waits) as process:
        url = address(introduction(process))
        trio.run(stop_with_a_silent_client, url, process)
        assert process.wait() == ExitCode.INTERRUPTED


async def stop_with_a_silent_client(url: str, process: subprocess.Popen[str]) -> None:
    """Signal once, and again when the client has received `server_shutdown`, which it ignores."""
    host, port = url.removeprefix("ws://").partition("/")[0].split(":")
    stream = await trio.open_tcp_stream(host, int(port))
    async with stream:
        await stream.send_all(
            b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        for wanted in (b'"connected"', b'"server_shutdown"'):
            received = b""
            while wanted not in received:
                received += (data := await stream.receive_some())
                assert data, received
            process.send_signal(signal.SIGTERM)
        process.wait()


def test_settings_of_redis_are_not_offered(capfd: Any) -> None:
    """The demo has no Redis: its flags are a usage error."""
    assert main(["demo", "--redis", "redis://127.0.0.1"]) == ExitCode.USAGE
    assert "No such option '--redis'" in capfd.readouterr().err


def test_a_market_without_trades_is_a_usage_error(capfd: Any) -> None:
    """The line names the flag."""
    assert main(["demo", "--rate", "0"]) == ExitCode.USAGE
    assert "'--rate'" in capfd.readouterr().err
