"""`streamer listen` as a process, with a real server and a pipe; its table is in test_table.py.

Covers streamer.cli.signals.
"""

import json
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio
import trio_websocket

from streamer.cli import main
from streamer.cli.errors import ExitCode
from streamer.config import Settings
from streamer.protocol.errors import ABUSE
from streamer.server import Server, serve
from tests.helpers.identities import identity_settings, token
from tests.helpers.timing import DEADLINE_SECONDS, PACE_SECONDS, eventually

PRICE: Final = (
    b'{"stock_code":"005930","price":72500.10,"change":-50,"change_percent":-0.10,"volume":7}'
)
ALERT: Final = b'{"alert_id":7,"stock_code":"005930","alert_type":"above","message":"up"}'
BOOK: Final = (
    b'{"stock_code":"005930","bids":[{"price":72400,"quantity":1}],'
    b'"asks":[{"price":72600,"quantity":2}]}'
)


@pytest.fixture
async def server(nursery: trio.Nursery) -> Server:
    """Start a server without Redis."""
    started: Server = await nursery.start(serve, Settings(memory=True, port=0, http_port=0))
    return started


async def publish_without_end(server: Server) -> None:
    """Publish messages of all kinds until cancelled."""
    assert server.bus is not None
    while True:
        server.bus.publish("stock:005930:price", PRICE)
        server.bus.publish("stock:005930:orderbook", BOOK)
        server.bus.publish("market:KOSPI:status", b'{"market":"KOSPI","status":"open"}')
        server.bus.publish("sector:chips:price", PRICE)
        await trio.sleep(PACE_SECONDS)


def arguments(server: Server, *more: str) -> list[str]:
    """Return the command line."""
    return [sys.executable, "-m", "streamer", "listen", "--url", server.websocket_url, *more]


async def run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end."""
    with trio.fail_after(DEADLINE_SECONDS):
        return await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )


async def test_a_pipe_gets_each_message_as_it_was_sent(
    server: Server, nursery: trio.Nursery
) -> None:
    """One JSON object a line, batches unpacked, with the producer's digits; then the account."""
    nursery.start_soon(publish_without_end, server)
    topics = ("stock:005930", "market:KOSPI", "sector:chips")
    ran = await run(arguments(server, *topics, "--count", "50", "--verify"))
    assert ran.returncode == ExitCode.OK, ran.stderr
    lines = ran.stdout.decode().splitlines()
    assert len(lines) == 50
    types = {json.loads(line)["type"] for line in lines}
    assert types == {"price_update", "orderbook_update", "market_status"}
    assert any('"price":72500.10,"change":-50,"change_percent":-0.10' in line for line in lines)
    account = ran.stderr.decode().splitlines()
    assert account[0].startswith("received ")
    assert account[-1] == "violations 0"


async def test_a_message_is_one_line_whatever_its_white_space(
    server: Server, nursery: trio.Nursery
) -> None:
    """A producer may publish JSON that is indented, with any line ends."""
    members = {"type": "price_update", "timestamp": "2024-08-09T00:00:00Z", "a": "\u2028"}
    indented = json.dumps(json.loads(PRICE) | members, indent=2, ensure_ascii=False)

    async def publish_indented() -> None:
        assert server.bus is not None
        while True:
            for line_end in ("\n", "\r\n", "\r"):
                text = indented.replace("\n", line_end).encode()
                server.bus.publish("stock:005930:price", text)
            await trio.sleep(PACE_SECONDS)

    nursery.start_soon(publish_indented)
    ran = await run(arguments(server, "stock:005930", "--count", "5", "--mode", "all"))
    assert ran.returncode == ExitCode.OK, ran.stderr
    lines = ran.stdout.splitlines()  # of bytes: at \n, \r and \r\n
    assert [json.loads(line)["a"] for line in lines] == ["\u2028"] * 5


async def test_with_delta_lines_are_what_changed(server: Server, nursery: trio.Nursery) -> None:
    """Deltas are written as they were received, and verified with their checksums."""
    nursery.start_soon(publish_without_end, server)
    options = ("--delta", "--depth", "5", "--count", "20", "--verify")
    ran = await run(arguments(server, "stock:005930", *options))
    assert ran.returncode == ExitCode.OK, ran.stderr
    types = [json.loads(line)["type"] for line in ran.stdout.splitlines()]
    assert {"price_update", "orderbook_update"} <= set(types)
    assert "price_delta" in types
    assert ran.stderr.decode().splitlines()[-1] == "violations 0"


@pytest.mark.parametrize("mode", ["all", "latest"])
async def test_the_mode_is_written_as_in_the_protocol(
    mode: str, server: Server, nursery: trio.Nursery
) -> None:
    """The command accepts it, and mode all merges nothing."""
    nursery.start_soon(publish_without_end, server)
    ran = await run(arguments(server, "market:KOSPI", "--mode", mode, "--count", "5"))
    assert ran.returncode == ExitCode.OK, ran.stderr
    assert not any("previous" in json.loads(line) for line in ran.stdout.splitlines())


async def test_kinds_and_rate_are_kept(server: Server, nursery: trio.Nursery) -> None:
    """Only what was asked for comes, and no more often than asked for."""
    nursery.start_soon(publish_without_end, server)
    options = ("--kinds", "price", "--max-rate", "2", "--count", "3", "--compress", "--verify")
    ran = await run(arguments(server, "stock:005930", *options))
    assert ran.returncode == ExitCode.OK, ran.stderr
    lines = ran.stdout.decode().splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["price_update"] * 3
    assert b"violations 0" in ran.stderr
    (merged,) = re.findall(rb"merged by policy (\d+)", ran.stderr)
    assert int(merged) > len(lines)


async def test_it_ends_when_its_duration_is_over(server: Server) -> None:
    """It exits with success, even if nothing arrived."""
    ran = await run(arguments(server, "stock:005930", "--duration", "0.1"))
    assert (ran.returncode, ran.stdout) == (ExitCode.OK, b"")


async def interrupted(
    command: list[str], number: signal.Signals, stdout: int = subprocess.PIPE
) -> tuple[int, bytes]:
    """Send a signal after the first output; return the exit code and stderr."""
    with trio.fail_after(DEADLINE_SECONDS):
        process = await trio.lowlevel.open_process(command, stdout=stdout, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        async with trio.open_nursery() as nursery:
            assert await process.stdout.receive_some()
            process.send_signal(number)
            nursery.start_soon(drain, process.stdout)
            stderr = await drain(process.stderr)
        return await process.wait(), stderr


async def drain(stream: trio.abc.ReceiveStream) -> bytes:
    """Return everything up to the end."""
    async with stream:
        return b"".join([bytes(part) async for part in stream])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_with_the_account(
    number: signal.Signals, server: Server, nursery: trio.Nursery
) -> None:
    """A signal is the usual end, so the exit code is 0."""
    nursery.start_soon(publish_without_end, server)
    code, stderr = await interrupted(arguments(server, "stock:005930", "--verify"), number)
    assert code == ExitCode.OK, stderr
    assert stderr.endswith(b"violations 0\n")
    assert b"Traceback" not in stderr


async def test_a_signal_before_the_count_is_an_interruption(
    server: Server, nursery: trio.Nursery
) -> None:
    """The exit code tells a script that messages are missing."""
    nursery.start_soon(publish_without_end, server)
    command = arguments(server, "stock:005930", "--count", "1000000")
    code, stderr = await interrupted(command, signal.SIGINT)
    assert (code, stderr) == (ExitCode.INTERRUPTED, b"")


async def test_a_reader_that_has_seen_enough_ends_it(server: Server, nursery: trio.Nursery) -> None:
    """As in `| head -1`, there is no error and no traceback."""
    nursery.start_soon(publish_without_end, server)
    command = subprocess.list2cmdline(arguments(server, "stock:005930"))
    shell = ["/bin/sh", "-c", f"({command}; echo $? >&2) | head -1"]
    ran = await run(shell)
    assert ran.stdout.count(b"\n") == 1
    assert ran.stderr == b"0\n"


async def test_targets_that_are_refused_are_named(nursery: trio.Nursery) -> None:
    """The error is one line with the reason."""
    settings = Settings(memory=True, port=0, http_port=0, max_subscriptions=1)
    server = await nursery.start(serve, settings)
    ran = await run(arguments(server, "stock:005930", "market:KOSPI"))
    assert ran.returncode == ExitCode.FAILURE
    (line,) = ran.stderr.decode().splitlines()
    assert line.startswith("streamer: error: market:KOSPI rejected: ")


async def test_a_broken_contract_is_a_failure(nursery: trio.Nursery) -> None:
    """The account has the violation, and the exit code is 1."""

    async def lose_one(request: trio_websocket.WebSocketRequest) -> None:
        socket = await request.accept()
        greeting = {"session_id": "s", "protocol": 1, "heartbeat_interval": 25, "limits": {}}
        await socket.send_message(json.dumps({"type": "connected"} | greeting))
        asked = json.loads(await socket.get_message())
        position = {"epoch": "e", "sequence": 1}
        answer = {"targets": ["005930"], "rejected": [], "positions": {"005930": position}}
        await socket.send_message(json.dumps(asked | answer | {"type": "subscribed"}))
        price = {"type": "price_update", "timestamp": "t", "sequence": 3}
        await socket.send_message(json.dumps(json.loads(PRICE) | price))
        with pytest.raises(trio_websocket.ConnectionClosed):
            await socket.get_message()

    listening = await nursery.start(
        partial(trio_websocket.serve_websocket, lose_one, "127.0.0.1", 0, None)
    )
    url = f"ws://127.0.0.1:{listening.port}"
    listen = [sys.executable, "-m", "streamer", "listen", "stock:005930", "--url", url]
    ran = await run([*listen, "--count", "1", "--verify"])
    assert ran.returncode == ExitCode.FAILURE
    assert ran.stderr.decode().splitlines()[-3:] == [
        "violations 1",
        "  unannounced hole: stock:005930: 2 missing before 3",
        "streamer: error: the server broke its contract 1 times",
    ]
    ran = await run([*listen, "--count", "1"])
    assert (ran.returncode, ran.stderr) == (ExitCode.OK, b"")


async def test_a_connection_that_ends_for_good_is_a_failure(
    server: Server, nursery: trio.Nursery
) -> None:
    """The account of the messages before it is printed."""
    nursery.start_soon(publish_without_end, server)

    async def close_once_there() -> None:
        await eventually(lambda: server._acceptor.sessions)
        for session in list(server._acceptor.sessions.values()):
            session.end(ABUSE)

    nursery.start_soon(close_once_there)
    ran = await run(arguments(server, "stock:005930", "--verify"))
    assert ran.returncode == ExitCode.FAILURE
    assert ran.stderr.endswith(
        b"streamer: error: the server closed the connection: rate limit exceeded (1008)\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["005930"], "'005930' is not TYPE:TARGET with a type of stock, market, sector, watchlist"),
        (["stock:a*"], "invalid target 'a*'"),
        ([], "Missing argument 'TOPIC...'"),
        (["stock:1", "--kinds", "prices"], "kinds are price, orderbook, status, not 'prices'"),
        (["stock:1", "--url", "http://h"], "'http://h' is no URL with the scheme ws or wss"),
        (["stock:1", "--url", "ws://h:x"], "'ws://h:x' is no URL"),
        (["stock:1", "--url", "ws://h/a b"], "'ws://h/a b' is no URL"),
        (["stock:1", "--url", "ws://h/é"], "'ws://h/é' is no URL"),
        (["stock:1", "--count", "0"], "Invalid value for '--count'"),
        (["stock:1", "--duration", "0"], "Invalid value for '--duration'"),
        (["stock:1", "--max-rate", "0"], "Invalid value for '--max-rate'"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is one line, before a connection is made."""
    assert main(["listen", *options]) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert error.startswith(f"streamer: error: {message}")
    assert error.count("\n") == 1


async def test_kinds_that_a_topic_does_not_carry_are_a_usage_error(server: Server) -> None:
    """Listening to nothing would look like a quiet market."""
    ran = await run(arguments(server, "market:KOSPI", "--kinds", "price"))
    assert ran.returncode == ExitCode.USAGE
    assert ran.stderr == b"streamer: error: kinds of market are status\n"


def test_the_url_can_be_a_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the URL of the variable."""
    monkeypatch.setenv("STREAMER_URL", "ws://127.0.0.1:1/v1/ws")
    assert main(["listen", "stock:1"]) == ExitCode.FAILURE
    error = capsys.readouterr().err
    assert error == (
        "streamer: error: cannot connect to ws://127.0.0.1:1/v1/ws: Connection refused\n"
    )


async def test_a_token_brings_the_alerts_of_its_user(nursery: trio.Nursery, tmp_path: Path) -> None:
    """Without a topic; the file is read when the client connects."""
    settings = Settings(memory=True, port=0, http_port=0, **identity_settings(tmp_path))
    server: Server = await nursery.start(serve, settings)
    token_file = tmp_path / "token.txt"
    token_file.write_text(token("ann") + "\n")

    async def publish_alerts() -> None:
        assert server.bus is not None
        while True:
            server.bus.publish("alerts:bob", ALERT.replace(b"7", b"8"))
            server.bus.publish("alerts:ann", ALERT)
            await trio.sleep(PACE_SECONDS)

    nursery.start_soon(publish_alerts)
    result = await run(
        arguments(server, "--token-file", str(token_file), "--count", "2", "--verify")
    )
    nursery.cancel_scope.cancel()
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["alert_id"], line["target"]) for line in lines] == [(7, "ann")] * 2
    assert b"violations 0" in result.stderr
    assert result.returncode == 0


def test_without_a_token_a_topic_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    """There would be nothing to receive."""
    assert main(["listen"]) == ExitCode.USAGE
    assert "TOPIC" in capsys.readouterr().err
