"""`streamer admin`: the operator's requests from a terminal.

Covers streamer.cli.admin_client.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import structlog
import trio

from streamer.cli import main
from streamer.server import Server
from tests.helpers.clients import connected
from tests.helpers.operator import KEY, key_file, until_heard
from tests.helpers.redis_server import RedisServer
from tests.helpers.server import running_server
from tests.helpers.workers import running_workers

PRICE = '{"type": "price_update", "stock_code": "A", "price": 1.50, "change": 0, '
PRICE += '"change_percent": 0, "volume": 1}'

Run = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server with the API."""
    async with running_server(api_key_file=key_file(tmp_path)) as server:
        yield server


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs a command line with the key; its exit code, stdout and stderr."""

    async def run(server: Server, *arguments: str) -> tuple[int, str, str]:
        options = ("--url", server.http_url, "--key-file", str(key_file(tmp_path)))
        capsys.readouterr()
        with structlog.testing.capture_logs():  # the server's would be among the output
            code = await trio.to_thread.run_sync(partial(main, ["admin", *arguments, *options]))
        written = capsys.readouterr()
        assert KEY not in written.out + written.err
        return code, written.out, written.err

    return run


async def test_a_connection_is_found_and_closed(server: Server, run: Run) -> None:
    """The hash in the list is the one that disconnect takes."""
    async with connected(server) as client:
        await client.subscribe("stock:A")
        code, out, _ = await run(server, "connections", "--topic", "stock:A")
        assert code == 0
        assert out.splitlines()[-1] == "1 of 1 connections"
        assert "127.0.0.1" in out
        (row,) = json.loads((await run(server, "connections", "--json"))[1])["connections"]
        assert row["session"] in out
        code, out, _ = await run(
            server, "disconnect", "--session", row["session"], "--reason", "moved", "--reconnect"
        )
        assert (code, out) == (0, "closed 1 connection (1 of 1 processes)\n")
        farewell = await client.receive_type("disconnected")
        assert (farewell["reason"], farewell["reconnect"]) == ("moved", True)
        assert await client.closed() == 4003


async def test_a_message_is_published_with_its_digits(server: Server, run: Run) -> None:
    """The topic is then listed with its position; a repeated key is reported."""
    async with connected(server) as client:
        await client.subscribe("stock:A")
        publish = ("publish", "stock:A", PRICE, "--idempotency-key", "k")
        code, out, _ = await run(server, *publish)
        assert code == 0
        assert out.startswith("published at ")
        assert '"price": 1.50' in await client.connection.get_message()
        assert (await run(server, *publish))[1].startswith("had been published at ")
        code, out, _ = await run(server, "topics", "stock:A")
        assert code == 0
        assert "stock:A" in out
        assert out.splitlines()[-1] == "1 topics"


async def test_pages_continue_where_they_ended(server: Server, run: Run) -> None:
    """The last line has the cursor of the next page."""
    async with connected(server) as client:
        await client.subscribe("stock:A", "stock:B")
        out = (await run(server, "topics", "--limit", "1"))[1]
        counted, _, cursor = out.splitlines()[-1].partition("; more with --cursor ")
        assert counted == "1 topics"
        out = (await run(server, "topics", "--limit", "1", "--cursor", cursor))[1]
        assert "stock:B" in out
        assert "stock:A" not in out


async def test_the_other_requests_have_their_commands(server: Server, run: Run) -> None:
    """Each writes what the server answered."""
    code, out, _ = await run(server, "revoke", "--user", "42")
    assert code == 0
    assert out.startswith("closed 0 connections (1 of 1 processes)\nthe revocation is kept until ")
    code, out, _ = await run(server, "explain", "user:42", "--user", "42")
    assert code == 0
    assert out.startswith("user:42 is forbidden to user 42: ")
    code, out, _ = await run(server, "info")
    assert code == 0
    assert server.instance in out
    assert json.loads((await run(server, "info", "--json"))[1])["processes"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("disconnect",), 1, "exactly one of them has to be given"),
        (("disconnect", "--topic", "stock"), 1, "is not TYPE:TARGET"),
        (("publish", "stock:A", "{"), 2, "MESSAGE is not JSON"),
        (("revoke", "--user", "\udcff"), 2, "an argument is not UTF-8"),
        (("publish", "stock:A", "{}"), 1, "message.type: "),
        (("explain", "stock:A", "--token-file", "/nowhere"), 1, "/nowhere"),
    ],
)
async def test_a_mistake_is_one_line_on_stderr(
    server: Server, run: Run, arguments: tuple[str, ...], code: int, problem: str
) -> None:
    """It has what is wrong, and the exit code of its kind."""
    exit_code, out, err = await run(server, *arguments)
    assert (exit_code, out, err.count("\n")) == (code, "", 1)
    assert problem in err


async def test_a_server_without_the_api_is_named_as_such(run: Run) -> None:
    """The error says which flag it lacks."""
    async with running_server() as server:
        code, _, err = await run(server, "info")
    assert code == 1
    assert "--api-key-file" in err


async def test_without_redis_the_part_that_was_done_is_shown(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path, run: Run
) -> None:
    """The exit code is 1, and the error says that only one process acted."""
    redis_server = own_redis_server()
    async with running_server(redis=redis_server.url, api_key_file=key_file(tmp_path)) as server:
        redis_server.stop()
        code, out, err = await run(server, "disconnect", "--topic", "stock:A")
        assert (code, out) == (1, "closed 0 connections (1 of 1 processes)\n")
        assert "only this process acted" in err
        code, out, err = await run(server, "disconnect", "--topic", "stock:A", "--json")
        answer = json.loads(out)
        assert (code, answer["count"]) == (1, 0)
        assert answer["error"] in err


async def test_a_process_that_does_not_answer_is_a_failure(
    redis_url: str, tmp_path: Path, run: Run
) -> None:
    """The answer of the others is shown, and a script sees by the exit code that it is not all."""
    keys = key_file(tmp_path)
    async with (
        running_server(redis=redis_url, api_key_file=keys, api_timeout_seconds=4) as server,
        running_workers(redis_url, api_key_file=keys) as workers,
    ):
        await until_heard(server, 3)
        hanging = workers.supervisor.workers[0].pid
        assert hanging is not None
        os.kill(hanging, signal.SIGSTOP)
        try:
            code, out, err = await run(server, "revoke", "--user", "42")
        finally:
            os.kill(hanging, signal.SIGCONT)
        assert (code, out.splitlines()[0]) == (1, "closed 0 connections (2 of 3 processes)")
        assert "only 2 of 3 processes answered" in err


@pytest.mark.parametrize(
    ("text", "problem"),
    [(None, "No such file"), (b"\xff", "not UTF-8"), (b"# none\n", "has no key")],
)
def test_a_key_file_that_cannot_be_used_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes | None, problem: str
) -> None:
    """The error has the path."""
    path = tmp_path / "key"
    if text is not None:
        path.write_bytes(text)
    assert main(["admin", "info", "--key-file", str(path)]) == 1
    err = capsys.readouterr().err
    assert problem in err
    assert str(path) in err


def test_a_server_that_is_not_there_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error has the URL, without a password in it."""
    url = "http://u:secret@127.0.0.1:1"
    assert main(["admin", "info", "--url", url, "--key-file", str(key_file(tmp_path))]) == 1
    err = capsys.readouterr().err
    assert err.startswith("streamer: error: no answer from http://u:***@127.0.0.1:1: ")
