"""Random faults for some minutes: `python -m tests.chaos --minutes 30 --seed 7`.

The seed decides which fault happens when and where. Exit code 1 where anything does not add up: a
message that breaks the contract, a loss that no gap announced, a client that ends or is not up to
date in the end, a server that ends by itself or logs a traceback.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

import trio

from tests.chaos.plan import plan
from tests.chaos.world import PLAIN, World, open_world, wait_up_to_date
from tests.helpers.timing import FLOW_DEADLINE_SECONDS

QUIET_SECONDS: Final = 20.0
"""After the last fault is healed, and before the producers end."""
_REPORT_SECONDS: Final = 60.0


async def run(seed: int, seconds: float, directory: Path) -> list[str]:
    """Carry the plan of a seed out; returns what did not add up."""
    async with open_world(directory) as world:
        began_seconds = trio.current_time()
        reported_seconds = 0.0
        async with trio.open_nursery() as faults:
            for step in plan(seed, seconds):
                await trio.sleep_until(began_seconds + step.at_seconds)
                say(str(step))
                faults.start_soon(world.carry_out, step)
                if step.at_seconds > reported_seconds + _REPORT_SECONDS:
                    reported_seconds = step.at_seconds
                    report(world)
        say("all faults are healed")
        await trio.sleep(QUIET_SECONDS)
        await world.finish_producers()
        with trio.move_on_after(FLOW_DEADLINE_SECONDS):
            await wait_up_to_date(world.members, world.numbers)
        for member in world.members:
            if not member.is_up_to_date(world.numbers, plain=PLAIN):
                held = {topic: member.ledger.topics[topic].number for topic in member.topics}
                last = {topic: world.numbers[topic] for topic in member.topics}
                world.problems.append(
                    f"{member.name} holds {held} of {last}: {member.client.statistics()}"
                )
        world.check_servers()
        world.check_clients()
        report(world)
        return world.problems


def report(world: World) -> None:
    """Print the accounts so far."""
    accounts = [a for member in world.members for a in member.ledger.topics.values()]
    gaps: Counter[str] = sum((Counter(a.gaps) for a in accounts), Counter())
    problems = [p for member in world.members for p in member.problems()]
    say(
        f"{world.done.total()} faults: {sum(a.received for a in accounts)} publications received, "
        f"{sum(a.merged for a in accounts)} merged, {sum(a.lost for a in accounts)} lost behind "
        f"announced gaps, gaps {dict(gaps)}, "
        f"{sum(m.client.statistics().connections for m in world.members)} connections, "
        f"{sum(r.restored for r in world.returners)} sessions restored, "
        f"{len(problems)} problems{''.join(f'{chr(10)}    {p}' for p in problems[:5])}"
    )


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def main() -> None:
    """Run the chaos and say how it went."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=None, help="a random one where none is given")
    parser.add_argument("--plan", action="store_true", help="print the plan of a seed, and end")
    options = parser.parse_args()
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    say(f"seed {seed}, {options.minutes:g} minutes")
    if options.plan:
        say("\n".join(map(str, plan(seed, options.minutes * 60))))
        return
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    problems = trio.run(run, seed, options.minutes * 60, directory)
    say(f"logs of the servers: {directory}")
    say("\n".join(problems[:50]))
    say(f"seed {seed}: {len(problems)} problems")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
