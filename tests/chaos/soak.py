"""A steady load with clients that come and go: `python -m tests.chaos.soak --minutes 20`.

Some clients stay and are verified, some read slowly, some change what they hold, and others come
and go all the time. The first quarter fills what is bounded (histories, ended sessions); from then
on the memory of the server must be flat. Exit code 1 where it grows, or where an account does not
add up.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

import trio

from tests.chaos.clients import Member, Returner
from tests.chaos.producer import Order
from tests.chaos.world import (
    PASSING,
    PLAIN,
    POSITIONED,
    RATE,
    SHARED,
    ProducerProcess,
    wait_up_to_date,
)
from tests.faults.processes import ServerProcess
from tests.helpers.memory import memory_bytes
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import DEADLINE_SECONDS

MAX_GROWTH: Final = 0.03
"""The most that memory may grow by, from the end of the first quarter to the end: the medians of a
twentieth of the samples each."""
_MEMBERS: Final = 16
_RETURNERS: Final = 12
_SAMPLE_SECONDS: Final = 2.0
_REPORT_SECONDS: Final = 60.0
_TOPICS: Final = (*POSITIONED, *PLAIN)
_ARGUMENTS: Final = (
    *("--history-seconds", "60", "--session-lifetime-seconds", "60"),
    *("--heartbeat-interval-seconds", "5", "--max-outbound-bytes", "65536"),
)


async def _change(member: Member, chance: random.Random) -> None:
    """Stall and change subscriptions, in turn, for ever."""
    while True:
        seconds = chance.uniform(0.5, 5)
        await chance.choice([member.stall, member.change_kinds, member.change_topics])(seconds)


async def run(seconds: float, directory: Path) -> list[str]:
    """Run the load; returns what was wrong."""
    members = [
        Member(
            f"member {number}",
            [_TOPICS[(number + step) % len(_TOPICS)] for step in range(3)],
            [*PASSING, *SHARED],
        )
        for number in range(_MEMBERS)
    ]
    returners = [Returner(f"returner {number}", _TOPICS[:3]) for number in range(_RETURNERS)]
    samples: list[int] = []
    with RedisServer() as redis:
        numbers = dict.fromkeys((*POSITIONED, *PASSING, *SHARED), 0)
        order = Order(redis.url, numbers, dict.fromkeys(PLAIN, 0), RATE, 1000)
        server = ServerProcess(directory, "--redis", redis.url, *_ARGUMENTS)
        async with server, trio.open_nursery() as nursery:
            for member in members:
                await nursery.start(member.run, server.url)
            producer = await ProducerProcess.start(order)
            for number, returner in enumerate(returners):
                nursery.start_soon(returner.run, server.url, 0.5 + number / 4)
            await _sample(server, members, seconds, samples)
            numbers = await producer.finish()
            with trio.move_on_after(DEADLINE_SECONDS):
                await wait_up_to_date(members, numbers)
            clients: list[Member | Returner] = [*members, *returners]
            problems = [problem for client in clients for problem in client.problems()]
            problems += [
                f"{member.name} is not up to date"
                for member in members
                if not member.is_up_to_date(numbers, plain=())
            ]
            nursery.cancel_scope.cancel()
        if "Traceback" in server.log:
            problems.append(f"a traceback in the log {directory}")
    restored = sum(returner.restored for returner in returners)
    received = sum(a.received for member in members for a in member.ledger.topics.values())
    growth = _growth(samples)
    print(f"{received} publications received, {restored} sessions restored, growth {growth:+.1%}")
    if growth > MAX_GROWTH:
        problems.append(f"memory has grown by {growth:.1%}")
    return problems


async def _sample(
    server: ServerProcess, members: Sequence[Member], seconds: float, samples: list[int]
) -> None:
    """Sample the memory of the server while the load runs; members change until near the end."""
    assert server.process is not None
    began_seconds = reported_seconds = trio.current_time()
    chance = random.Random(1)
    async with trio.open_nursery() as changes:
        for member in members[::2]:
            changes.start_soon(_change, member, chance)
        while (now := trio.current_time()) < began_seconds + seconds:
            samples.append(memory_bytes(server.process.pid))
            if now > reported_seconds + _REPORT_SECONDS:
                reported_seconds = now
                minutes = (now - began_seconds) / 60
                print(f"{minutes:5.1f} min  {samples[-1] / 2**20:.1f} MiB", flush=True)
            await trio.sleep(_SAMPLE_SECONDS)
        changes.cancel_scope.cancel()
    for member in members:
        member.wake()
        await member.widen()


def _growth(samples: Sequence[int]) -> float:
    part = max(len(samples) // 20, 1)
    quarter = len(samples) // 4
    before = median(samples[quarter : quarter + part])
    return median(samples[-part:]) / before - 1


def main() -> None:
    """Run the soak and say how it went."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    problems = trio.run(run, options.minutes * 60, directory)
    print(*problems[:50], f"{len(problems)} problems", sep="\n")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
