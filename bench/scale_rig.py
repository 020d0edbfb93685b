"""The server with its workers and the publisher of `bench.scale`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from bench.crowd import Mix
from bench.rig import Core, Process, RigError, running, wait_for
from bench.servers import STREAMER, announced

STATISTICS_TIMEOUT_SECONDS = 30.0


@attrs.frozen
class Plan:
    """The parameters of a run."""

    clients: int
    workers: int
    topics: int
    rate_per_second: float
    mix: Sequence[Mix]
    seconds: float
    flush_interval_ms: float
    in_flight: int
    drain_timeout_seconds: float
    absence_seconds: float
    niceness: int

    @property
    def updates_per_second(self) -> float:
        """Updates due to all clients, each second."""
        per_client = sum(part.topics * part.share for part in self.mix)
        return self.clients * per_client * self.rate_per_second / self.topics


@attrs.frozen
class Pauses:
    """The longest turn of the event loop of each worker, in milliseconds."""

    each_ms: Sequence[float]

    @property
    def longest_ms(self) -> float:
        """That of the worst worker."""
        return max(self.each_ms, default=0.0)


class Publisher:
    """The process that publishes; see `bench.scale_publisher`."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self._popen = popen

    def wait_ready(self) -> None:
        """Wait until each topic has a publication."""
        self._read()

    def start(self) -> None:
        """Publish from now on."""
        self._write()

    def stop(self) -> int:
        """Stop, and return how much was published."""
        self._write()
        published: int = self._read()["published"]
        return published

    def _write(self) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write("\n")
        self._popen.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise RigError("The publisher ended.")
        report: dict[str, Any] = json.loads(line)
        return report


@contextlib.contextmanager
def running_publisher(plan: Plan, url: str, core: Core) -> Iterator[Publisher]:
    """Run the publisher until the block ends."""
    command = [sys.executable, "-m", "bench.scale_publisher", "--redis", url]
    command += ["--topics", str(plan.topics), "--rate", str(plan.rate_per_second)]
    # What a new server replays comes from Redis, where only the producer says for how long it is.
    command += ["--history-seconds", str(plan.absence_seconds)]
    with subprocess.Popen(
        core.command(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as popen:
        try:
            publisher = Publisher(popen)
            publisher.wait_ready()
            yield publisher
        finally:
            popen.terminate()


@attrs.frozen
class Serving:
    """A server that serves."""

    process: Process
    http_url: str

    def pauses(self, figure: str) -> Pauses:
        """Return a figure of the loop's statistics of each worker."""
        url = f"{self.http_url}/v1/ws/stats"
        with urllib.request.urlopen(url, timeout=STATISTICS_TIMEOUT_SECONDS) as answer:
            report = json.load(answer)
        workers = [one["statistics"] for one in report["workers"] if one["statistics"]]
        return Pauses([1000 * one["loop"][figure] for one in workers])


@contextlib.contextmanager
def serving(plan: Plan, url: str, port: int, log: Path, core: Core) -> Iterator[Serving]:
    """Run a server with its workers until the block ends."""
    options = {
        "redis": url,
        "port": port,
        "http-port": 0,
        "workers": plan.workers,
        "max-connections-per-address": 0,
        "flush-interval-ms": f"{plan.flush_interval_ms:g}",
        "drain-timeout-seconds": f"{plan.drain_timeout_seconds:g}",
        "session-lifetime-seconds": f"{plan.absence_seconds:g}",
        "history-seconds": f"{plan.absence_seconds:g}",
    }
    command = [*STREAMER, "serve"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    with running(command, core=core, log=log) as process:
        _, http_url = wait_for("streamer serve", process, announced(process))
        yield Serving(process, http_url)
