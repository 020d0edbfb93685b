"""Attack a server, one attack after another: `python -m tests.abuse [ATTACK …]`.

Each attack is a process of its own, on another core than the server where there are two, against a
server and a Redis of its own. Beside it a neighbour receives 50 messages a second: how late the
latest came and how long its pings took is measured, and held to the limits below. So is the memory
of the server once the attackers are gone. A control, in which nothing attacks, says what the
machine itself adds; an attack whose delays are too long is repeated once. Exit code 1 where
anything failed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import urlopen

import attrs
import cattrs
import trio
import trio_websocket

import tests.abuse.clients
import tests.abuse.redis
import tests.abuse.sentinels  # noqa: F401 - each registers its attacks
from streamer.publisher.publisher import Publisher, open_publisher
from tests.abuse.attack import ATTACKS, Attack, Target
from tests.abuse.flood import price
from tests.faults.processes import ServerProcess
from tests.helpers.memory import memory_bytes
from tests.helpers.redis_server import RedisServer
from tests.helpers.redis_topology import MASTER_NAME, Sentinel
from tests.helpers.timing import DEADLINE_SECONDS

MAX_DELAY_SECONDS: Final = 0.1
MAX_PING_SECONDS: Final = 0.25
MAX_MEMORY_BYTES: Final = 50 * 2**20
MESSAGES_PER_SECOND: Final = 50.0
_PINGS_PER_SECOND: Final = 5.0
_WARM_UP_SECONDS: Final = 2.0
_MEMORY_SECONDS: Final = 20.0
"""How long the memory of the server may take to come back."""
_LATE_SECONDS: Final = 2.0
"""The time after an attack within which the neighbour's last messages must arrive."""
_CONTROL: Final = "control"


async def _nothing(target: Target) -> None:
    """Nothing attacks."""
    await trio.sleep(target.seconds)


@attrs.define
class Outcome:
    """The measurements of one attack."""

    delay_seconds: float = 0.0
    """From the publication of a message to its arrival at the neighbour, the longest."""
    ping_seconds: float = 0.0
    """From a ping of the neighbour to its pong, the longest."""
    missing: int = 0
    """Messages that the neighbour has not received."""
    memory_bytes: int = 0
    """More than before, after the attack."""
    peak_bytes: int = 0
    """More than before, during the attack."""
    log_lines: int = 0
    problems: list[str] = attrs.field(factory=list)

    @property
    def is_slow(self) -> bool:
        """Whether a limit of time was passed."""
        return self.delay_seconds > MAX_DELAY_SECONDS or self.ping_seconds > MAX_PING_SECONDS


class Neighbour:
    """A client that receives messages of a topic, and the producer of these."""

    def __init__(self) -> None:
        self.delay_seconds = 0.0
        self.ping_seconds = 0.0
        self.published = 0
        self.received: set[int] = set()
        self.problem: str | None = None
        self._sent_at: dict[int, float] = {}
        self._measures = False

    @property
    def missing(self) -> int:
        """Messages that were published and have not come."""
        return len(set(range(1, self.published + 1)) - self.received)

    def begin(self) -> None:
        """Begin to measure."""
        self._measures = True

    async def publish(self, publisher: Publisher) -> None:
        """Publish until cancelled."""
        while True:
            self._sent_at[self.published + 1] = trio.current_time()
            await publisher.publish("stock:neighbour:price", price("neighbour", self.published + 1))
            self.published += 1
            await trio.sleep(1 / MESSAGES_PER_SECOND)

    async def receive(
        self, url: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Receive until cancelled."""
        try:
            async with trio_websocket.open_websocket_url(url) as connection:
                await connection.send_message(
                    '{"type":"subscribe","subscription_type":"stock","targets":["neighbour"],'
                    '"mode":"all"}'
                )
                await connection.get_message()
                await connection.get_message()
                task_status.started()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._ping, connection)
                    while True:
                        self._take(json.loads(await connection.get_message()))
        except* (trio_websocket.ConnectionClosed, OSError) as group:
            self.problem = f"the neighbour lost its connection: {group.exceptions}"

    def _take(self, message: dict[str, Any]) -> None:
        for one in message.get("messages", [message]):
            number = int(one.get("volume", 0))
            if one["type"] == "price_update" and number in self._sent_at:
                self.received.add(number)
                if self._measures:
                    waited = trio.current_time() - self._sent_at[number]
                    self.delay_seconds = max(self.delay_seconds, waited)

    async def _ping(self, connection: trio_websocket.WebSocketConnection) -> None:
        while True:
            began = trio.current_time()
            await connection.ping()
            if self._measures:
                self.ping_seconds = max(self.ping_seconds, trio.current_time() - began)
            await trio.sleep(1 / _PINGS_PER_SECOND)


async def measure(attack: Attack, cores: Sequence[int]) -> Outcome:
    """Carry one attack out."""
    outcome, neighbour = Outcome(), Neighbour()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="abuse-")))
        redis = stack.enter_context(RedisServer())
        sentinels = [
            stack.enter_context(Sentinel(redis.port, quorum=attack.sentinels, down_after_ms=500))
            for _ in range(attack.sentinels)
        ]
        for server_of_redis in (redis, *sentinels):
            os.sched_setaffinity(server_of_redis.pid, {cores[-1]})
        async with _server(redis, sentinels, directory, attack, cores) as server:
            target = Target(
                server.port,
                server.http_port,
                redis.url,
                redis.pid,
                attack.seconds,
                tuple(sentinel.pid for sentinel in sentinels),
            )
            await _measure(attack, target, server, neighbour, outcome, cores)
    outcome.delay_seconds = neighbour.delay_seconds
    outcome.ping_seconds = neighbour.ping_seconds
    outcome.missing = neighbour.missing
    if neighbour.problem:
        outcome.problems.append(neighbour.problem)
    if outcome.missing:
        outcome.problems.append(f"the neighbour misses {outcome.missing} messages")
    if outcome.memory_bytes > MAX_MEMORY_BYTES:
        outcome.problems.append("memory has not come back")
    if attack.max_log_lines and outcome.log_lines > attack.max_log_lines:
        outcome.problems.append(f"{outcome.log_lines} lines were logged")
    return outcome


@asynccontextmanager
async def _server(
    redis: RedisServer,
    sentinels: Sequence[Sentinel],
    directory: Path,
    attack: Attack,
    cores: Sequence[int],
) -> AsyncIterator[ServerProcess]:
    url = redis.url
    if attack.redis_user:
        with redis.connect() as operator:
            operator.execute_command(
                "ACL", "SETUSER", "limited", "on", ">secret", *attack.redis_user
            )
        url = url.replace("//", "//limited:secret@")
    if sentinels:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
        url = f"redis+sentinel://{hosts}/{MASTER_NAME}"
    arguments = ("--redis", url, "--max-connections-per-address", "5", *attack.arguments)
    async with ServerProcess(directory, *arguments) as server:
        assert server.process is not None
        os.sched_setaffinity(server.process.pid, {cores[0]})
        if attack.descriptors:
            limits = (attack.descriptors, attack.descriptors)
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
        yield server


async def _measure(
    attack: Attack,
    target: Target,
    server: ServerProcess,
    neighbour: Neighbour,
    outcome: Outcome,
    cores: Sequence[int],
) -> None:
    assert server.process is not None
    pid = server.process.pid
    async with open_publisher(target.redis_url) as publisher, trio.open_nursery() as nursery:
        await server.wait_for(lambda statistics: statistics["redis"]["ready"])
        with trio.fail_after(DEADLINE_SECONDS):
            await nursery.start(neighbour.receive, server.url)
        with trio.CancelScope() as publishing:
            async with trio.open_nursery() as inner:
                inner.start_soon(neighbour.publish, publisher)
                await trio.sleep(_WARM_UP_SECONDS)
                before_bytes = memory_bytes(pid)
                lines = server.log.count("\n")
                neighbour.begin()
                inner.start_soon(_watch_memory, pid, before_bytes, outcome)
                await _attack(attack, target, outcome, cores)
                outcome.log_lines = server.log.count("\n") - lines
                publishing.cancel()
        await trio.sleep(_LATE_SECONDS)
        if server.process.poll() is not None:
            outcome.problems.append(f"the server has ended with {server.process.returncode}")
        else:
            await _check_afterwards(server, pid, before_bytes, outcome)
        nursery.cancel_scope.cancel()
    if count := server.log.count("Traceback"):
        outcome.problems.append(f"{count} tracebacks in the log")


async def _watch_memory(pid: int, before_bytes: int, outcome: Outcome) -> None:
    with suppress(FileNotFoundError, ProcessLookupError, ValueError):
        while True:
            outcome.peak_bytes = max(outcome.peak_bytes, memory_bytes(pid) - before_bytes)
            await trio.sleep(0.5)


async def _check_afterwards(
    server: ServerProcess, pid: int, before_bytes: int, outcome: Outcome
) -> None:
    with trio.move_on_after(_MEMORY_SECONDS):
        while True:
            outcome.memory_bytes = memory_bytes(pid) - before_bytes
            if outcome.memory_bytes < MAX_MEMORY_BYTES:
                break
            await trio.sleep(0.5)
    status = 0
    with trio.move_on_after(_MEMORY_SECONDS):
        while status != 200:
            status = await trio.to_thread.run_sync(_readiness, server.http_port)
    if status != 200:
        outcome.problems.append(f"/readyz is {status}")


def _readiness(http_port: int) -> int:
    try:
        with urlopen(f"http://127.0.0.1:{http_port}/readyz", timeout=5) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code
    except OSError:
        return 0


async def _attack(attack: Attack, target: Target, outcome: Outcome, cores: Sequence[int]) -> None:
    """Run the attacker's process to its end."""
    command = [sys.executable, "-m", "tests.abuse", "--attack", attack.name]
    command += ["--target", json.dumps(cattrs.unstructure(target))]
    process = None
    with trio.move_on_after(attack.seconds + DEADLINE_SECONDS):
        process = await trio.run_process(
            command,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            preexec_fn=partial(_prepare_attacker, cores),
        )
    if process is None:
        outcome.problems.append("the attack did not come to its end")
    elif process.returncode:
        error = process.stderr.decode().strip()[-300:]
        outcome.problems.append(f"the attack failed: {error}")
    elif process.stdout:
        outcome.problems.append(process.stdout.decode().strip())


def _prepare_attacker(cores: Sequence[int]) -> None:
    os.sched_setaffinity(0, {cores[-1]})
    os.nice(2)  # the neighbour is on that core, too


def _name_problems(attack: Attack, outcome: Outcome) -> None:
    if attack.judges_delays and outcome.delay_seconds > MAX_DELAY_SECONDS:
        outcome.problems.append("a message came late")
    if outcome.ping_seconds > MAX_PING_SECONDS:
        outcome.problems.append("a ping was answered late")


def _say(name: str, outcome: Outcome) -> None:
    print(
        f"{name:<36} {outcome.delay_seconds * 1000:7.0f} {outcome.ping_seconds * 1000:7.0f} "
        f"{outcome.memory_bytes / 2**20:8.1f} {outcome.peak_bytes / 2**20:8.1f} "
        f"{outcome.log_lines:6}  {'; '.join(outcome.problems) or 'ok'}",
        flush=True,
    )


async def run(attacks: Sequence[Attack], *, judges_delays: bool = True) -> bool:
    """Carry attacks out, and print a line on each; returns whether all were withstood."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    print(f"{'':36} {'delay':>7} {'ping':>7} {'memory':>8} {'peak':>8} {'log':>6}")
    print(f"{'':36} {'ms':>7} {'ms':>7} {'MiB':>8} {'MiB':>8} {'lines':>6}")
    control = Attack(_CONTROL, _nothing, (), 6.0, True, 0, (), 0, 0)
    _say(_CONTROL, await measure(control, cores))
    failed = []
    for attack in attacks:
        outcome = await measure(attack, cores)
        if outcome.is_slow and attack.judges_delays and judges_delays:
            _say(f"{_CONTROL}", await measure(control, cores))
            _say(f"{attack.name} (first)", outcome)
            outcome = await measure(attack, cores)
        if judges_delays:
            _name_problems(attack, outcome)
        _say(attack.name, outcome)
        if outcome.problems:
            failed.append(attack.name)
    print(f"{len(attacks) - len(failed)} of {len(attacks)} attacks withstood", *failed, sep="\n")
    return not failed


def main() -> None:
    """Run the suite, or as a child one attack."""
    parser = argparse.ArgumentParser(prog="python -m tests.abuse", description=__doc__)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help="all where none is given")
    parser.add_argument("--list", action="store_true", help="print all attacks, and end")
    parser.add_argument(
        "--ignore-delays",
        action="store_true",
        help="do not judge delays, which say nothing on a machine that is busy otherwise",
    )
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        for attack in ATTACKS.values():
            print(f"{attack.name:<36} {attack.line}")
    elif options.attack == _CONTROL or options.attack:
        function = ATTACKS[options.attack].function if options.attack in ATTACKS else _nothing
        target = cattrs.structure(json.loads(options.target), Target)
        if problem := trio.run(function, target):
            print(problem)
    else:
        names = options.attacks or list(ATTACKS)
        attacks = [ATTACKS[name] for name in names]
        withstood = trio.run(partial(run, attacks, judges_delays=not options.ignore_delays))
        sys.exit(not withstood)


if __name__ == "__main__":
    main()
