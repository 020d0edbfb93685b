"""`streamer serve --workers`: signals, and errors at the start.

Covers streamer.cli.worker.
"""

import json
import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import memory_stream_one_way_pair, wait_all_tasks_blocked

from streamer.cli import main
from streamer.cli import worker as worker_command
from streamer.cli.errors import ExitCode
from streamer.workers.assignment import Reload
from tests.cli.test_serve import Serving, connect, errors, read_until
from tests.helpers.timing import DEADLINE_SECONDS, wait_until


class Workers(Serving):
    """A `streamer serve --workers 2` process."""

    def __init__(self, directory: Path, *arguments: str, shell: str = "") -> None:
        super().__init__(directory, "--workers", "2", *arguments, shell=shell)
        self.pids: list[int] = []

    def started(self) -> str:
        """Return the URL for clients; from then on `pids` are those of the workers."""
        websocket, http = self.addresses()
        with urllib.request.urlopen(f"{http}/v1/ws/stats", timeout=DEADLINE_SECONDS) as response:
            statistics: dict[str, Any] = json.load(response)
        self.pids = [worker["pid"] for worker in statistics["workers"]]
        return websocket

    def workers_end(self) -> None:
        """Wait until no worker runs."""
        wait_until(lambda: not any(map(self._runs, self.pids)))

    @staticmethod
    def _runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False


@pytest.fixture
def serving(tmp_path: Path, redis_url: str) -> Iterator[Workers]:
    """Start two workers that wait long for clients that do not leave."""
    waiting = ("--close-timeout-seconds", "600", "--drain-timeout-seconds", "600")
    with Workers(tmp_path, "--redis", redis_url, *waiting) as workers:
        yield workers


def test_ctrl_c_reaches_parent_and_workers_and_stops_in_order(serving: Workers) -> None:
    """A signal to all processes at once is no second signal for a worker."""
    with connect(serving.started()) as client:
        for pid in (serving.process.pid, *serving.pids):
            os.kill(pid, signal.SIGINT)
        read_until(client, b'"server_shutdown"')
    serving.ends_with(ExitCode.OK)
    serving.workers_end()


def test_a_hangup_ends_neither_the_parent_nor_a_worker(serving: Workers) -> None:
    """SIGHUP, which is sent when a terminal closes, is ignored by all processes."""
    with connect(serving.started()) as client:
        for pid in (serving.process.pid, *serving.pids):
            os.kill(pid, signal.SIGHUP)
        serving.process.send_signal(signal.SIGTERM)
        read_until(client, b'"server_shutdown"')
    serving.ends_with(ExitCode.OK)
    serving.workers_end()


def test_a_second_signal_ends_all_at_once(serving: Workers) -> None:
    """The workers end with the parent, without waiting for a client."""
    with connect(serving.started()) as client:
        serving.process.send_signal(signal.SIGTERM)
        read_until(client, b'"server_shutdown"')
        serving.process.send_signal(signal.SIGTERM)
        serving.ends_with(ExitCode.INTERRUPTED)
        serving.workers_end()


def test_workers_whose_parent_died_let_their_clients_go(serving: Workers) -> None:
    """Without a parent they would not be replaced, and would keep the port."""
    with connect(serving.started()) as client:
        serving.process.kill()
        read_until(client, b'"server_shutdown"')
    serving.workers_end()


def test_what_no_worker_can_use_is_said_once(tmp_path: Path, redis_url: str) -> None:
    """The exit codes and errors are those of a single process."""
    pem = tmp_path / "pem"
    pem.write_text("no certificate")
    for arguments, code, said in (
        (("--tls-certificate", str(pem), "--tls-key", str(pem)), ExitCode.USAGE, "tls_certificate"),
        (
            ("--require-redis", "--redis", f"unix://{tmp_path}/absent.sock"),
            ExitCode.REDIS_REQUIRED,
            "Redis",
        ),
        (("--host", "192.0.2.1"), ExitCode.CANNOT_LISTEN, "cannot listen on"),
        (("--http-host", "192.0.2.1"), ExitCode.CANNOT_LISTEN, "cannot listen on"),
    ):
        with Workers(tmp_path, "--redis", redis_url, *arguments) as workers:
            workers.ends_with(code)
            (line,) = errors(workers.log)
        assert said in line


def test_a_worker_that_breaks_before_it_serves_is_a_failure(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unexpected error has no exit code of its own; the last line names it."""
    breaking = (sys.executable, "-c", "raise SystemExit(99)")
    monkeypatch.setattr("streamer.cli.serve._WORKER_COMMAND", breaking)
    places = ("--port", "0", "--http-port", "0")
    assert main(["serve", "--workers", "2", "--redis", redis_url, *places]) == ExitCode.FAILURE
    (line,) = errors(capsys.readouterr().err)
    assert "99" in line


def test_memory_and_workers_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    """A publication in one process would not reach the others."""
    assert main(["serve", "--memory", "--workers", "2"]) == ExitCode.USAGE
    (line,) = errors(capsys.readouterr().err)
    assert "workers" in line
    assert "memory" in line


async def test_a_reload_while_a_worker_starts_is_made_up_for() -> None:
    """It has read its certificate before, and would serve an outdated one."""
    reloads: list[None] = []
    server: Any = SimpleNamespace(
        reload=lambda: reloads.append(None), websocket_url="ws://127.0.0.1:1/v1/ws"
    )
    sender, stdin = memory_stream_one_way_pair()
    shutdown = trio.Event()
    child = worker_command._Child()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child._read, cast("trio.lowlevel.FdStream", stdin), shutdown)
        await sender.send_all(Reload("warning").to_json() + b"\n")
        await wait_all_tasks_blocked()
        child.report(server)
        assert len(reloads) == 1
        await sender.send_all(Reload("warning").to_json() + b"\n")
        await sender.aclose()
    assert len(reloads) == 2
