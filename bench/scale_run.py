"""The steps of `bench.scale`: all clients connect, receive, are dismissed, and come back."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from bench.crowd import Crowd, Histogram, Status, running_crowd, subscriptions
from bench.memory import KernelMemory, resident_bytes
from bench.rig import CLOCK_TICKS_PER_SECOND, Core, Process, RigError, free_port, running_redis
from bench.scale_rig import Pauses, Plan, Publisher, Serving, running_publisher, serving

POLL_SECONDS = 0.5
PROGRESS_SECONDS = 10.0
SETTLE_SECONDS = 3.0
WARM_UP_SECONDS = 5.0
ARRIVAL_SECONDS = 30.0
END_GRACE_SECONDS = 60.0
CONNECTS_PER_SECOND_AT_LEAST = 200
"""A crowd that connects more slowly is given up, after a minute more."""

Say = Callable[[str], None]
"""Reports progress."""


@attrs.frozen
class Memory:
    """Growth since before the clients came, in bytes for each client."""

    process: float
    """The memory of the server's processes."""
    kernel: float
    """The memory of sockets at the server's end: half of both ends, which this machine has."""


@attrs.frozen
class Connected:
    """All clients have connected."""

    seconds: float
    memory: Memory
    load_client: float
    """Memory of the load clients, in bytes for each client."""
    pauses: Pauses


@attrs.frozen
class Received:
    """All clients have received for a while."""

    seconds: float
    updates_per_second: float
    frames_per_second: float
    merged_share: float
    latency: Histogram
    memory: Memory
    server_cores: float
    """Processor time of all workers for each second."""
    waiting_share: float
    """The share of the time in which a worker could have run and had no core, on average."""
    load_client_cores: float
    redis_cores: float
    busy_share: float
    """The share of the machine's time that was used, by other programs, too."""
    pauses: Pauses


@attrs.frozen
class Returned:
    """All clients were dismissed, and have come back to another server."""

    drain_seconds: float
    """From SIGTERM until the server had ended."""
    dismissed: int
    start_seconds: float
    """From then until the next server served."""
    seconds: float
    """From then until all clients had their subscriptions again."""
    away: Histogram
    """For how long a client had no connection with its subscriptions."""
    pauses: Pauses


@attrs.frozen
class Result:
    """The figures of a run."""

    plan: Plan
    connected: Connected
    received: Received
    returned: Returned
    last: Status
    """The counts at the end."""
    published: int
    missing: int
    """Updates that had not arrived when the run ended."""
    warnings: str


@attrs.frozen
class _Use:
    """Processor time used until one moment, and the counts of the clients."""

    at_seconds: float
    server_seconds: float
    waiting_seconds: float
    redis_seconds: float
    idle_seconds: float
    cores: int
    status: Status

    @classmethod
    def now(cls, server: Process, redis: Process, crowd: Crowd) -> _Use:
        lines = Path("/proc/stat").read_text().splitlines()
        _, *ticks = lines[0].split()
        return cls(
            time.monotonic(),
            server.cpu_seconds(),
            server.waiting_seconds(),
            redis.cpu_seconds(),
            (int(ticks[3]) + int(ticks[4])) / CLOCK_TICKS_PER_SECOND,
            sum(line.startswith("cpu") for line in lines) - 1,
            crowd.status(),
        )


class Run:
    """One run: its steps, in their order."""

    def __init__(self, plan: Plan, stack: contextlib.ExitStack, say: Say) -> None:
        """Start Redis, the publisher and the server; `stack` ends them."""
        self._plan = plan
        self._stack = stack
        self._say = say
        self._core = Core(0, plan.niceness, pinned=False)
        self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scale-")))
        port, self._redis = stack.enter_context(running_redis(self._directory, self._core))
        self._url = f"redis://127.0.0.1:{port}"
        self._port = free_port()
        self._publisher: Publisher = stack.enter_context(
            running_publisher(plan, self._url, self._core)
        )
        self._first = stack.enter_context(contextlib.ExitStack())
        self._server = self._first.enter_context(self._serving("first"))
        time.sleep(SETTLE_SECONDS)
        self._kernel = KernelMemory.now()
        self._process_bytes = self._server.process.memory_bytes()

    def _serving(self, name: str) -> contextlib.AbstractContextManager[Serving]:
        log = self._directory / f"{name}.log"
        return serving(self._plan, self._url, self._port, log, self._core)

    def _memory(self) -> Memory:
        clients = self._plan.clients
        return Memory(
            (self._server.process.memory_bytes() - self._process_bytes) / clients,
            KernelMemory.now().sockets_bytes(self._kernel) / clients / 2,
        )

    def connect(self) -> Connected:
        """Connect all clients."""
        plan = self._plan
        self._say(f"{plan.clients:,} clients connect …")
        began = time.monotonic()
        self._crowd = self._stack.enter_context(
            running_crowd(
                self._directory,
                self._port,
                plan.topics,
                subscriptions(plan.clients, plan.topics, plan.mix),
                in_flight=plan.in_flight,
                core=self._core,
            )
        )
        status = self._wait_live("connected")
        seconds = time.monotonic() - began
        self._say(f"  in {seconds:.1f} s; faults {status.faults}")
        time.sleep(SETTLE_SECONDS)
        load_client = resident_bytes(self._crowd.pids()) / plan.clients
        memory, pauses = self._memory(), self._server.pauses("longest_pause_seconds")
        # Said at once: the last step of a run may fail.
        self._say(
            f"  {memory.process / 1024:.1f} KB a client in the processes and "
            f"{memory.kernel / 1024:.1f} KB in the kernel; longest pause {pauses.longest_ms:.0f} ms"
        )
        return Connected(seconds, memory, load_client, pauses)

    def receive(self) -> Received:
        """Publish, and measure what the clients receive."""
        plan, crowd = self._plan, self._crowd
        self._say(f"{plan.updates_per_second:,.0f} updates/s for {plan.seconds:g} s …")
        self._publisher.start()
        time.sleep(WARM_UP_SECONDS)
        crowd.begin_window()
        before = _Use.now(self._server.process, self._redis, crowd)
        time.sleep(plan.seconds)
        after = _Use.now(self._server.process, self._redis, crowd)
        latency, faults = after.status.latency, after.status.faults
        self._say(f"  p99 {latency.percentile_ms(0.99):.0f} ms; faults {faults}")
        wall = after.at_seconds - before.at_seconds

        def growth(name: str) -> float:
            return after.status[name] - before.status[name]

        waited = after.waiting_seconds - before.waiting_seconds
        return Received(
            seconds=wall,
            updates_per_second=growth("updates") / wall,
            frames_per_second=growth("frames") / wall,
            merged_share=growth("merged") / max(1, growth("merged") + growth("updates")),
            latency=latency,
            memory=self._memory(),
            server_cores=(after.server_seconds - before.server_seconds) / wall,
            waiting_share=waited / wall / plan.workers,
            load_client_cores=growth("cpu_seconds") / wall,
            redis_cores=(after.redis_seconds - before.redis_seconds) / wall,
            busy_share=1 - (after.idle_seconds - before.idle_seconds) / wall / after.cores,
            pauses=self._server.pauses("longest_pause_seconds_last_minute"),
        )

    def return_all(self) -> Returned:
        """Stop the server, start another one, and wait until all clients are back."""
        self._say("SIGTERM to the server …")
        began = time.monotonic()
        process = self._server.process.popen
        process.terminate()
        process.wait(self._plan.drain_timeout_seconds + END_GRACE_SECONDS)
        ended = time.monotonic()
        drained = self._crowd.status()
        self._say(
            f"  ended after {ended - began:.1f} s; {drained['dismissed']:,.0f} dismissed, "
            f"{drained['cut']:,.0f} cut"
        )
        self._first.close()
        self._server = self._stack.enter_context(self._serving("second"))
        served = time.monotonic()
        status = self._wait_live("back")
        seconds = time.monotonic() - served
        self._say(f"  all back in {seconds:.1f} s; faults {status.faults}")
        return Returned(
            drain_seconds=ended - began,
            dismissed=int(drained["dismissed"]),
            start_seconds=served - ended,
            seconds=seconds,
            away=status.away,
            pauses=self._server.pauses("longest_pause_seconds"),
        )

    def end(self) -> tuple[Status, int, int]:
        """Stop publishing; return the last counts, what was published, and what is missing."""
        time.sleep(SETTLE_SECONDS)
        published = self._publisher.stop()
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while True:
            found = self._crowd.behind(published)
            if not found["behind"] or time.monotonic() > deadline:
                return self._crowd.status(), published, found["behind"] + found["ahead"]
            time.sleep(POLL_SECONDS)

    @property
    def warnings(self) -> str:
        """The first warnings of the load clients."""
        return self._crowd.warnings()

    def _wait_live(self, verb: str) -> Status:
        """Wait until all clients have their subscriptions."""
        clients = self._plan.clients
        began = said = time.monotonic()
        deadline = began + 60 + clients / CONNECTS_PER_SECOND_AT_LEAST
        while True:
            status = self._crowd.status()
            if status["live"] == clients:
                return status
            now = time.monotonic()
            if now > deadline:
                raise RigError(
                    f"Only {status['live']:,.0f} of {clients:,} clients were {verb} after "
                    f"{now - began:.0f} s.\n{self._crowd.warnings()}"
                )
            if now - said > PROGRESS_SECONDS:
                self._say(f"  {status['live']:,.0f} {verb}, {now - began:.0f} s")
                said = now
            time.sleep(POLL_SECONDS)


def run(plan: Plan, say: Say) -> Result:
    """Run all steps.

    Raises:
        RigError: a part of the rig is not available or failed, or clients did not get connected.
    """
    with contextlib.ExitStack() as stack:
        one = Run(plan, stack, say)
        connected, received, returned = one.connect(), one.receive(), one.return_all()
        last, published, missing = one.end()
        return Result(plan, connected, received, returned, last, published, missing, one.warnings)
