"""`streamer record` as a process: what it leaves, however it ends.

Covers streamer.cli.connect_options.
"""

from __future__ import annotations

import signal
import ssl
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
import trio_websocket
import trustme

from streamer.cli import main
from streamer.cli.errors import ExitCode
from streamer.feeds.recorded import recorded_feed
from streamer.feeds.recording_lines import read_lines
from tests.feeds.exchanges import (
    UPBIT_REQUEST,
    binance_snapshots,
    like_binance,
    like_upbit,
    ping_and_read,
    serving,
)
from tests.helpers.timing import eventually, real_deadline


def files(directory: Path) -> list[Path]:
    """Return what is in a directory."""
    return sorted(directory.iterdir())


def command(*arguments: str | Path) -> list[str]:
    """Return the command line."""
    return [sys.executable, "-m", "streamer", "record", *map(str, arguments)]


async def start(*arguments: str | Path) -> trio.Process:
    """Start recording."""
    return await trio.lowlevel.open_process(command(*arguments), stderr=subprocess.PIPE)


async def ended(process: trio.Process) -> str:
    """Return what a process writes to stderr up to its end."""
    assert process.stderr is not None
    async with process.stderr as stderr:
        text = b"".join([bytes(part) async for part in stderr]).decode()
    await process.wait()
    return text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_recording_of_reconnects_can_be_replayed(
    number: signal.Signals, tmp_path: Path
) -> None:
    """After each reconnect, the book is rebuilt from a fresh snapshot, and trades go on."""
    async with real_deadline(), serving(like_binance, snapshots=binance_snapshots()) as exchange:
        process = await start(
            "-o", tmp_path / "btc", "--fetch", exchange.snapshot_url, exchange.url
        )
        await eventually(lambda: exchange.connections == 3 and exchange.fetched >= 1)
        # The third connection stays; its snapshot comes after its first message.
        await eventually(lambda: exchange.pongs >= 4)
        fetched = exchange.fetched
        process.send_signal(number)
        errors = await ended(process)
    assert process.returncode == ExitCode.OK, errors
    (path,) = files(tmp_path)
    assert errors.splitlines()[-1] == str(path)
    assert "Recorded " in errors
    assert ", connections: 3" in errors
    assert "Traceback" not in errors
    feed = list(recorded_feed([path]))
    assert sum(b"price_update" in message.payload for message in feed) == 15
    origins = {line.origin.connection for line in read_lines(path)}
    assert origins == {1, 2, 3}
    assert fetched >= 1


async def test_a_killed_recorder_leaves_a_readable_file(tmp_path: Path) -> None:
    """All that was written before is there, and nothing is damaged."""
    async with real_deadline(), serving(like_upbit) as exchange:
        process = await start(
            *("-o", tmp_path / "upbit", "--subscribe", UPBIT_REQUEST),
            *("--heartbeat", "PING", "--heartbeat-seconds", "0.01", exchange.url),
        )
        await eventually(lambda: any(path.stat().st_size for path in files(tmp_path)))
        process.kill()
        await ended(process)
    (path,) = files(tmp_path)
    types = [b'"trade"' in line.text for line in read_lines(path)]
    assert any(types)
    assert not all(types)


async def test_each_url_has_files_of_its_own(tmp_path: Path) -> None:
    """A snapshot does not name its symbol, so that recordings of several must not be mixed."""
    async with real_deadline(), serving(like_upbit) as one, serving(like_upbit) as two:
        process = await start(
            *("-o", tmp_path / "krw", "--subscribe", UPBIT_REQUEST, one.url, two.url)
        )
        await eventually(lambda: len(files(tmp_path)) == 2)
        process.send_signal(signal.SIGINT)
        await ended(process)
    names = sorted(path.name.rpartition("-")[0] for path in files(tmp_path))
    assert names == ["krw-1", "krw-2"]


async def test_it_ends_after_its_duration(tmp_path: Path) -> None:
    """A feed that has said nothing leaves no file."""
    async with real_deadline(), serving(ping_and_read) as exchange:
        process = await start("-o", tmp_path / "r", "--duration", "0.1", exchange.url)
        errors = await ended(process)
    assert process.returncode == ExitCode.OK
    assert errors.splitlines()[-1].startswith("Recorded 0 messages (0 bytes compressed)")
    assert files(tmp_path) == []


async def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """It is noticed with the first messages, and named."""
    async with real_deadline(), serving(like_binance) as exchange:
        process = await start("-o", tmp_path / "none" / "r", exchange.url)
        errors = await ended(process)
    assert process.returncode == ExitCode.FAILURE
    assert errors.splitlines()[-1].startswith("streamer: error: [Errno 2] No such file")
    assert "Traceback" not in errors


async def test_an_authority_of_ones_own_is_trusted(tmp_path: Path) -> None:
    """--ca names the authority that has signed the feed's certificate; no other is trusted."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)

    async def send_one(request: trio_websocket.WebSocketRequest) -> None:
        socket = await request.accept()
        await socket.send_message("{}")
        with pytest.raises(trio_websocket.ConnectionClosed):
            await socket.get_message()

    async with real_deadline(), trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(trio_websocket.serve_websocket, send_one, "127.0.0.1", 0, context)
        )
        url = f"wss://localhost:{server.port}/"
        process = await start("-o", tmp_path / "r", "--ca", tmp_path / "ca.pem", url)
        await eventually(lambda: list(tmp_path.glob("r-*.gz")))
        process.send_signal(signal.SIGINT)
        await ended(process)
        refused = await start("-o", tmp_path / "x", url)
        errors = await ended(refused)
        nursery.cancel_scope.cancel()
    assert process.returncode == ExitCode.OK
    assert refused.returncode == ExitCode.FAILURE
    assert "certificate" in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Missing argument 'URL...'"),
        (["http://h"], "'http://h' is no URL with the scheme ws or wss"),
        (["ws://h", "--fetch", "ws://h"], "'ws://h' is no URL with the scheme http or https"),
        (["ws://h", "--max-file-bytes", "0"], "Invalid value for '--max-file-bytes'"),
        (["ws://h", "--ca", __file__], f"{__file__}: no certificates in PEM format"),
    ],
)
def test_what_makes_no_sense_is_an_error(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is one line, before a connection is made."""
    assert main(["record", *options]) != ExitCode.OK
    error = capsys.readouterr().err
    assert error.startswith(f"streamer: error: {message}")
    assert error.count("\n") == 1
