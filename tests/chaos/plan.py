"""Which fault happens when: a function of the seed and of nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

import attrs

FAULTS: Final = {
    "redis_killed_keeps_data": 3,
    "redis_killed_loses_data": 1,
    "redis_goes_back": 2,
    "redis_frozen": 3,
    "redis_slow": 2,
    "redis_kills_clients": 4,
    "redis_network_cut": 4,
    "redis_network_silent": 2,
    "redis_network_deaf": 2,
    "redis_network_slow": 2,
    "network_cut": 4,
    "network_silent": 3,
    "network_slow": 2,
    "network_drips": 2,
    "clients_move": 3,
    "server_stopped": 3,
    "server_killed": 3,
    "server_frozen": 2,
    "client_stalls": 4,
    "client_changes_kinds": 5,
    "client_changes_topics": 5,
    "producer_restarts": 2,
    "second_producer_killed": 2,
}
"""Each fault and how often it is chosen in relation to the others."""
_MEAN_PAUSE_SECONDS: Final = 3.0
_MAX_DURATION_SECONDS: Final = 12.0


@attrs.frozen
class Step:
    """One fault."""

    at_seconds: float
    """Since the beginning. A fault whose part is busy with another waits for that."""
    fault: str
    duration_seconds: float
    choice: float
    """In [0, 1): which of several servers, networks or clients."""

    def __str__(self) -> str:
        return f"{self.at_seconds:7.1f} s  {self.fault} for {self.duration_seconds:.1f} s"


def plan(seed: int, duration_seconds: float) -> Iterator[Step]:
    """The faults of a run, in order of time."""
    chance = random.Random(seed)
    at_seconds = 0.0
    while True:
        at_seconds += chance.expovariate(1 / _MEAN_PAUSE_SECONDS)
        (fault,) = chance.choices(list(FAULTS), list(FAULTS.values()))
        step = Step(at_seconds, fault, chance.uniform(0, _MAX_DURATION_SECONDS), chance.random())
        if at_seconds > duration_seconds:
            return
        yield step
