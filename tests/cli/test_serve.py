"""`streamer serve` as a process: output, signals and exit codes."""

import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

import pytest
import trio

from streamer.cli import main
from streamer.cli.errors import ExitCode
from streamer.config import Settings
from streamer.server import Server
from tests.helpers.timing import DEADLINE_SECONDS

HANDSHAKE: Final = (
    b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Serving:
    """A `streamer serve` process on free ports; it does not outlive its test."""

    def __init__(self, directory: Path, *arguments: str, shell: str = "") -> None:
        self._log = directory / "stderr.txt"
        python = f'{shell} exec "$0" -m streamer serve --port 0 --http-port 0 "$@"'
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", python, sys.executable, *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        # What hangs fails: its output then ends.
        self._deadline = threading.Timer(DEADLINE_SECONDS, self.process.kill)
        self._deadline.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._deadline.cancel()
        self.process.kill()
        self.process.communicate()

    @property
    def log(self) -> str:
        """The text on stderr so far."""
        return self._log.read_text()

    def addresses(self) -> tuple[str, str]:
        """Return the URLs for clients and for the operator, when they are printed."""
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline() for _ in range(2)]
        websocket = re.fullmatch(r"WebSocket  (wss?://127\.0\.0\.1:\d+/v1/ws)\n", lines[0])
        http = re.fullmatch(r"HTTP       (http://127\.0\.0\.1:\d+)\n", lines[1])
        assert websocket is not None, (lines, self.log)
        assert http is not None, (lines, self.log)
        return websocket[1], http[1]

    def ends_with(self, code: ExitCode) -> None:
        """Wait until the process has ended; it must not have written a traceback."""
        assert self.process.wait() == code, self.log
        assert "Traceback" not in self.log


Serve = Callable[..., Serving]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a function that starts a server with some arguments."""
    running: list[Serving] = []

    def start(*arguments: str, shell: str = "") -> Serving:
        running.append(Serving(tmp_path, *arguments, shell=shell))
        return running[-1]

    yield start
    for serving in running:
        with serving:
            pass


def status(url: str) -> int:
    """Return the HTTP status of a GET."""
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def connect(url: str) -> socket.socket:
    """A WebSocket client that reads but never answers, not even a close frame."""
    address = urlsplit(url)
    assert address.hostname is not None
    client = socket.create_connection((address.hostname, address.port or 0), DEADLINE_SECONDS)
    client.sendall(HANDSHAKE)
    read_until(client, b'"connected"')
    return client


def read_until(client: socket.socket, wanted: bytes) -> None:
    """Read until these bytes are received."""
    received = b""
    while wanted not in received:
        received += (data := client.recv(65536))
        assert data, received


def errors(log: str) -> list[str]:
    """Run a command; return the lines on stderr."""
    return [line for line in log.splitlines() if line.startswith("streamer: error: ")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_stops_in_order(serve: Serve, number: signal.Signals) -> None:
    """Free ports are chosen and printed, they answer, and one signal ends it with success."""
    serving = serve("--memory")
    websocket, http = serving.addresses()
    assert status(f"{http}/healthz") == 200
    with connect(websocket) as client:
        client.shutdown(socket.SHUT_WR)
    serving.process.send_signal(number)
    serving.ends_with(ExitCode.OK)
    assert number.name in serving.log


def test_a_hangup_does_not_end_it(serve: Serve) -> None:
    """SIGHUP, which is sent when a terminal closes, is ignored."""
    serving = serve("--memory")
    websocket, _http = serving.addresses()
    with connect(websocket) as client:
        serving.process.send_signal(signal.SIGHUP)
        serving.process.send_signal(signal.SIGTERM)
        read_until(client, b'"server_shutdown"')
    serving.ends_with(ExitCode.OK)


def test_a_second_signal_ends_at_once(serve: Serve) -> None:
    """A client that does not leave is not waited for."""
    serving = serve("--memory", "--close-timeout-seconds", "600", "--drain-timeout-seconds", "600")
    websocket, _http = serving.addresses()
    with connect(websocket) as client:
        serving.process.send_signal(signal.SIGTERM)
        read_until(client, b'"server_shutdown"')
        serving.process.send_signal(signal.SIGTERM)
        serving.ends_with(ExitCode.INTERRUPTED)


@pytest.mark.parametrize("flag", ["--port", "--http-port"])
def test_an_address_in_use_has_a_code_of_its_own(serve: Serve, flag: str) -> None:
    """One line names the address and its flags, and the process ends."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        serving = serve("--memory", flag, str(port))
        serving.ends_with(ExitCode.CANNOT_LISTEN)
    (line,) = errors(serving.log)
    address = f"127.0.0.1:{port}: Address already in use"
    flags = f"(from {flag.replace('port', 'host')} and {flag})"
    assert line.endswith(f"cannot listen on {address} {flags}")


def test_required_redis_that_is_absent_has_a_code_of_its_own(serve: Serve, tmp_path: Path) -> None:
    """The exit code differs from that of a bug."""
    serving = serve("--require-redis", "--redis", f"unix://{tmp_path}/absent.sock")
    serving.ends_with(ExitCode.REDIS_REQUIRED)
    (line,) = errors(serving.log)
    assert "Redis" in line


def test_absent_redis_is_told_and_waited_for(serve: Serve, tmp_path: Path) -> None:
    """Without --require-redis the server is up but not ready."""
    serving = serve("--redis", f"unix://{tmp_path}/absent.sock", "--log-format", "json")
    _websocket, http = serving.addresses()
    assert (status(f"{http}/healthz"), status(f"{http}/readyz")) == (200, 503)
    serving.process.send_signal(signal.SIGTERM)
    serving.ends_with(ExitCode.OK)
    entries = [json.loads(line) for line in serving.log.splitlines()]
    assert any("redis" in json.dumps(entry).lower() for entry in entries)


def test_what_is_no_certificate_is_a_usage_error(serve: Serve, tmp_path: Path) -> None:
    """The error names the settings."""
    pem = tmp_path / "pem"
    pem.write_text("no certificate")
    serving = serve("--memory", "--tls-certificate", str(pem), "--tls-key", str(pem))
    serving.ends_with(ExitCode.USAGE)
    (line,) = errors(serving.log)
    assert "tls_certificate and tls_key" in line


def test_an_unusable_key_file_is_a_usage_error(serve: Serve, tmp_path: Path) -> None:
    """The error names the setting, and shows nothing of the file."""
    path = tmp_path / "secret"
    path.write_text("hunter2")
    for workers in ("1", "2"):
        source = ["--memory"] if workers == "1" else ["--workers", workers]
        serving = serve(*source, "--auth", "required", "--auth-secret-file", str(path))
        serving.ends_with(ExitCode.USAGE)
        assert f"auth_secret_file {path} has a secret of fewer than 32 bytes" in serving.log
        assert "Traceback" not in serving.log
        assert "hunter2" not in serving.log


def test_an_unusable_file_of_operators_keys_is_a_usage_error(serve: Serve, tmp_path: Path) -> None:
    """The error names the setting and the line, and shows nothing of the file."""
    path = tmp_path / "operators"
    path.write_text("# keys\nhunter2\n")
    for source in (["--memory"], ["--workers", "2"]):
        serving = serve(*source, "--api-key-file", str(path))
        serving.ends_with(ExitCode.USAGE)
        (line,) = errors(serving.log)
        assert f"api_key_file {path} cannot be used: line 2 is not KEY or NAME:KEY" in line
        assert "Traceback" not in serving.log
        assert "hunter2" not in serving.log


OPEN: Final = "anybody who reaches the port may have every topic"


@pytest.mark.parametrize(
    ("host", "with_auth", "warns"),
    [
        ("0.0.0.0", False, True),
        ("127.0.0.1", False, False),
        ("localhost", False, False),
        ("0.0.0.0", True, False),
    ],
)
def test_it_warns_when_strangers_can_have_everything(
    serve: Serve, tmp_path: Path, host: str, with_auth: bool, warns: bool
) -> None:
    """In one line, when it listens beyond this machine and asks nobody who they are."""
    path = tmp_path / "secret"
    path.write_text("x" * 32)
    identity = ["--auth", "optional", "--auth-secret-file", str(path)] if with_auth else []
    serving = serve("--memory", "--host", host, *identity)
    assert serving.process.stdout is not None
    assert serving.process.stdout.readline().startswith("WebSocket")
    assert serving.log.count(OPEN) == warns


def test_open_files_are_not_what_limits_connections(serve: Serve) -> None:
    """The soft limit, 1,024 on most systems, is raised to the hard limit."""
    serving = serve("--memory", shell="ulimit -S -n 100;")
    serving.addresses()
    limits = Path(f"/proc/{serving.process.pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    soft, hard = line.split()[3:5]
    assert soft == hard
    assert soft != "100"


@pytest.mark.parametrize("error", [OSError("a disk"), ssl.SSLError("a record")])
def test_a_fault_while_serving_is_not_called_a_wrong_address(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OSError after the start is a bug, and is raised."""

    async def serve_and_fail(
        settings: Settings,
        *,
        shutdown: trio.Event,
        sockets: Sequence[socket.socket],
        task_status: trio.TaskStatus[Server],
    ) -> None:
        assert not sockets
        task_status.started(Server(settings, shutdown))
        await trio.lowlevel.checkpoint()
        raise error

    monkeypatch.setattr("streamer.server.serve", serve_and_fail)
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="a "), flatten_subgroups=True):
        main(["serve", "--memory"])
