"""A service manager starts `streamer serve`: its sockets are used, and it hears of the state.

The processes are started as sd_listen_fds(3) and sd_notify(3) say that systemd does.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from streamer.cli.errors import ExitCode
from tests.cli.test_serve import HANDSHAKE, Serving, errors, read_until
from tests.cli.test_workers import Workers
from tests.helpers.clients import client_frame
from tests.helpers.timing import DEADLINE_SECONDS, FLOW_DEADLINE_SECONDS

ACTIVATE: Final = """
import os, sys
given, *arguments = sys.argv[1:]
descriptors = [int(number) for number in given.split(",") if number]
for number, descriptor in enumerate(descriptors, 3):
    os.dup2(descriptor, number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(descriptors))}
os.execv(sys.executable, [sys.executable, "-m", "streamer", "serve", *arguments])
"""
"""A program that becomes `streamer serve` with some descriptors as 3 and up."""


class Activated(Workers):
    """A `streamer serve` process that is started with sockets."""

    def __init__(self, directory: Path, *arguments: str, sockets: list[socket.socket]) -> None:
        self._log = directory / "stderr.txt"
        given = [str(one.fileno()) for one in sockets]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", ACTIVATE, ",".join(given), "--http-port", "0", *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                pass_fds=[one.fileno() for one in sockets],
            )
        self._deadline = threading.Timer(FLOW_DEADLINE_SECONDS, self.process.kill)
        self._deadline.start()
        self.pids = []


Activate = Callable[..., Activated]


@pytest.fixture
def activate(tmp_path: Path) -> Iterator[Activate]:
    """Return a function that starts a server with some sockets."""
    running: list[Activated] = []

    def start(*arguments: str, sockets: list[socket.socket]) -> Activated:
        running.append(Activated(tmp_path, *arguments, sockets=sockets))
        return running[-1]

    yield start
    for serving in running:
        with serving:
            pass


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A socket that listens on a free port, with a descriptor that is none of the first."""
    with socket.create_server(("127.0.0.1", 0)) as low:
        high = os.dup(low.fileno())
        os.dup2(low.fileno(), 100)
        os.close(high)
        with socket.socket(fileno=100) as one:
            yield one


def connect(listening: socket.socket) -> socket.socket:
    """Ask the owner of a socket for a WebSocket, whether anybody accepts it yet or not."""
    client = socket.create_connection(listening.getsockname(), FLOW_DEADLINE_SECONDS)
    client.sendall(HANDSHAKE)
    return client


def test_clients_that_came_before_the_server_are_served(
    activate: Activate, listening: socket.socket
) -> None:
    """The socket is that of the service manager, also after the server has ended."""
    with connect(listening) as early:
        first = activate("--memory", "--port", "1", sockets=[listening])
        websocket, _http = first.addresses()
        port = listening.getsockname()[1]
        assert websocket == f"ws://127.0.0.1:{port}/v1/ws"
        read_until(early, b'"connected"')
        early.sendall(client_frame(0x88, b"\x03\xe8"))
        first.process.send_signal(signal.SIGTERM)
        first.ends_with(ExitCode.OK)
    with connect(listening) as between:
        activate("--memory", sockets=[listening])
        read_until(between, b'"connected"')


def test_workers_share_the_socket_and_so_does_a_replacement(
    activate: Activate, listening: socket.socket, redis_url: str
) -> None:
    """Whoever dies, the socket stays."""
    arguments = ("--workers", "2", "--redis", redis_url)
    serving = activate(*arguments, sockets=[listening])
    serving.started()
    for _ in range(4):
        with connect(listening) as client:
            read_until(client, b'"connected"')
    for pid in serving.pids:
        os.kill(pid, signal.SIGKILL)
    with connect(listening) as client:
        read_until(client, b'"connected"')
    serving.process.send_signal(signal.SIGTERM)
    serving.ends_with(ExitCode.OK)


def test_what_is_no_listening_tcp_socket_is_refused_by_its_number(activate: Activate) -> None:
    """In one line, before anything is served."""
    with socket.create_server(("127.0.0.1", 0)) as good, socket.socket() as idle:
        serving = activate("--memory", sockets=[good, idle])
        serving.ends_with(ExitCode.CANNOT_LISTEN)
    assert errors(serving.log) == [
        "streamer: error: LISTEN_FDS: descriptor 4 is no TCP socket that listens"
    ]


def test_sockets_for_another_process_are_left_alone(tmp_path: Path) -> None:
    """The variables may have been inherited."""
    with Serving(tmp_path, "--memory", shell="LISTEN_PID=1 LISTEN_FDS=1") as serving:
        serving.addresses()


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a service manager that takes messages."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE_SECONDS)
        yield manager


def next_state(manager: socket.socket) -> dict[str, str]:
    """Return the next message that is no sign of life."""
    while True:
        lines = manager.recv(4096).decode().splitlines()
        state = dict(line.split("=", 1) for line in lines)
        if "WATCHDOG" not in state:
            return state


@pytest.mark.parametrize("workers", [1, 2])
def test_the_service_manager_hears_of_each_state(
    notified: socket.socket, tmp_path: Path, redis_url: str, workers: int
) -> None:
    """Ready once it listens, reloading and ready again, and stopping. Workers say nothing."""
    shell = f"NOTIFY_SOCKET={notified.getsockname()}"
    arguments = ("--workers", str(workers), "--redis", redis_url)
    with Serving(tmp_path, *arguments, shell=shell) as serving:
        websocket, _http = serving.addresses()
        assert next_state(notified) == {"READY": "1", "STATUS": websocket}
        serving.process.send_signal(signal.SIGHUP)
        reloading = next_state(notified)
        assert reloading.keys() == {"RELOADING", "MONOTONIC_USEC"}
        assert next_state(notified)["READY"] == "1"
        serving.process.send_signal(signal.SIGTERM)
        assert next_state(notified)["STOPPING"] == "1"
        serving.ends_with(ExitCode.OK)
        notified.setblocking(False)
        with pytest.raises(BlockingIOError):
            notified.recv(4096)


def test_a_watched_server_gives_signs_of_life(notified: socket.socket, tmp_path: Path) -> None:
    """Several within the time that the manager allows between two of them."""
    shell = f"NOTIFY_SOCKET={notified.getsockname()} WATCHDOG_USEC=20000"
    with Serving(tmp_path, "--memory", shell=shell) as serving:
        serving.addresses()
        signs = 0
        while signs < 3:
            signs += notified.recv(4096) == b"WATCHDOG=1"


def test_a_service_manager_that_has_gone_stops_nothing(tmp_path: Path) -> None:
    """The server logs it and serves; in the abstract namespace as well."""
    for address in tmp_path / "none", f"@streamer-{os.getpid()}":
        with Serving(tmp_path, "--memory", shell=f"NOTIFY_SOCKET={address}") as serving:
            serving.addresses()
            serving.process.send_signal(signal.SIGTERM)
            serving.ends_with(ExitCode.OK)
        assert "the service manager takes no messages" in serving.log
