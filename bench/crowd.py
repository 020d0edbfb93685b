"""Processes that have many clients each, which come back when they are dismissed."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import random
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import attrs

from bench.rig import Core, RigError, compiled

CLIENTS_PER_PROCESS = 17_000
"""Below the limit of open files that a process has on many systems (20,000)."""
FIRST_SOURCE = ipaddress.IPv4Address("127.1.0.1")
SOURCES_PER_PROCESS = 8
"""Addresses that the clients of one process come from: one has 28,000 ports to a destination."""
ANSWER_TIMEOUT_SECONDS = 60.0

FAULTS = (
    "lost",
    "repeated",
    "gaps",
    "errors",
    "malformed",
    "unrestored",
    "incomplete",
)
"""Counts of what a client must never see; `cut` is counted apart, since a drain has a deadline."""

_STEP_BITS = 6


@attrs.frozen
class Mix:
    """A part of the clients, and how many topics each of them has."""

    topics: int
    share: float

    @classmethod
    def parse(cls, text: str) -> Mix:
        """Read `TOPICS:SHARE`; raises ValueError."""
        topics, _, share = text.partition(":")
        return cls(int(topics), float(share))


def subscriptions(clients: int, topics: int, mix: Sequence[Mix]) -> list[list[int]]:
    """Return each client's topics, the same in each run: every topic has as many, by chance.

    Clients with few and with many are in no order, so that all processes have the same.
    """
    chosen = random.Random(1)
    counts: list[int] = []
    for part in mix:
        counts += [part.topics] * round(part.share * clients)
    counts = (counts + [mix[0].topics] * clients)[:clients]
    chosen.shuffle(counts)
    return [sorted(chosen.sample(range(topics), min(count, topics))) for count in counts]


@attrs.frozen
class Histogram:
    """Counts of values in nanoseconds, by the buckets of loadclient/histogram.c."""

    buckets: Mapping[int, int]

    def percentile_ms(self, share: float) -> float:
        """Return the value that this share of all does not exceed; 0 if there are none."""
        wanted, seen = share * sum(self.buckets.values()), 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= wanted:
                return bucket_end(bucket) / 1e6
        return 0.0


def bucket_end(bucket: int) -> int:
    """Return the largest value of a bucket."""
    if bucket < 2 << _STEP_BITS:
        return bucket
    shift = (bucket >> _STEP_BITS) - 1
    step = bucket - (shift << _STEP_BITS)
    return ((step + 1) << shift) - 1


@attrs.frozen
class Status:
    """The counts of all processes together."""

    counts: Mapping[str, float]
    latency: Histogram
    handshake: Histogram
    away: Histogram
    """For how long clients that returned had no connection with their subscriptions."""

    def __getitem__(self, name: str) -> float:
        """Return a count."""
        return self.counts[name]

    @property
    def faults(self) -> dict[str, int]:
        """The counts of what no client must see, where there are any."""
        return {name: int(self.counts[name]) for name in FAULTS if self.counts[name]}


def added(answers: Sequence[Mapping[str, Any]]) -> Status:
    """Add up the answers of the processes."""
    counts: Counter[str] = Counter()
    buckets: dict[str, Counter[int]] = {}
    for answer in answers:
        for name, value in answer.items():
            if isinstance(value, Mapping):
                of_all = buckets.setdefault(name, Counter())
                for bucket, count in value["buckets"]:
                    of_all[bucket] += count
            else:
                counts[name] += value
    latency, handshake, away = (
        Histogram(buckets.get(name, {})) for name in ("latency_ms", "handshake_ms", "away_ms")
    )
    return Status(counts, latency, handshake, away)


class Crowd:
    """The processes; made by `running_crowd`. They connect all clients, and reconnect them."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]], logs: Sequence[Path]) -> None:
        self._processes = processes
        self._logs = logs

    def ask(self, command: str) -> list[dict[str, Any]]:
        """Send a command to each process, and return the answers.

        Raises:
            RigError: a process has ended.
        """
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(command + "\n")
                process.stdin.flush()
        return [
            self._answer(process, log)
            for process, log in zip(self._processes, self._logs, strict=True)
        ]

    @staticmethod
    def _answer(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RigError(f"A load client ended: {log.read_text().strip() or process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def status(self) -> Status:
        """Return the counts until now."""
        return added(self.ask("status"))

    def begin_window(self) -> None:
        """Measure latencies from now on."""
        self.ask("window")

    def behind(self, published: int) -> Counter[str]:
        """Return how many updates of so many published ones have not arrived, and at how many."""
        total: Counter[str] = Counter()
        for answer in self.ask(f"check {published}"):
            total.update(answer)
        return total

    def warnings(self) -> str:
        """Return the first warnings of each process."""
        return "\n".join(filter(None, (log.read_text().strip() for log in self._logs)))

    def pids(self) -> list[int]:
        """Return their process ids."""
        return [process.pid for process in self._processes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.communicate()


def running_crowd(
    directory: Path,
    port: int,
    topics: int,
    wanted: Sequence[Sequence[int]],
    *,
    in_flight: int,
    core: Core,
    first_source: ipaddress.IPv4Address = FIRST_SOURCE,
) -> Crowd:
    """Start as many processes as the clients need; a context manager that ends them.

    Args:
        directory: for their files.
        port: the server's, on 127.0.0.1.
        topics: how many there are.
        wanted: each client's topics.
        in_flight: the most handshakes under way at a time, of all clients.
        core: the core to run on.
        first_source: the first of the addresses that the clients have.
    """
    here = Path(__file__).parent
    sources = sorted((here / "scaleclient").glob("*.[ch]"))
    shared = [here / "loadclient" / name for name in ("scan.c", "histogram.c")]
    binary = compiled("scaleclient", [*sources, *shared])
    count = -(-len(wanted) // CLIENTS_PER_PROCESS)
    processes, logs = [], []
    for number, part in enumerate(_parts(wanted, count)):
        path, log = directory / f"clients-{number}", directory / f"clients-{number}.log"
        path.write_text("".join(",".join(map(str, one)) + "\n" for one in part))
        options = {
            "clients": path,
            "topics": topics,
            "port": port,
            "source": first_source + 256 * number,
            "sources": SOURCES_PER_PROCESS,
            "in-flight": max(1, in_flight // count),
        }
        command = [str(binary), *(f"--{name}={value}" for name, value in options.items())]
        with log.open("w") as output:
            processes.append(
                subprocess.Popen(
                    core.command(command),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    text=True,
                    start_new_session=True,
                )
            )
        logs.append(log)
    return Crowd(processes, logs)


def _parts(wanted: Sequence[Sequence[int]], count: int) -> Iterator[Sequence[Sequence[int]]]:
    for number in range(count):
        yield wanted[number::count]
