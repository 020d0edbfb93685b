"""An attack: a function that does harm for some seconds, and how the server is set up for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import attrs

USUAL_SECONDS: Final = 6.0


@attrs.frozen
class Target:
    """The server that is attacked, as its attackers know it."""

    port: int
    http_port: int
    redis_url: str
    redis_pid: int
    seconds: float
    """How long the attack is to last."""
    sentinel_pids: tuple[int, ...] = ()
    """The Sentinels that the server asks for its Redis, if it is behind any."""

    @property
    def path(self) -> str:
        """The path of the WebSocket."""
        return "/v1/ws"


Function = Callable[[Target], Awaitable[str | None]]
"""Attacks, and returns what was wrong with the answers of the server, or None."""


@attrs.frozen
class Attack:
    """One line of the list of what no client, producer or Redis may cost another."""

    name: str
    function: Function
    arguments: tuple[str, ...]
    seconds: float
    judges_delays: bool
    descriptors: int
    redis_user: tuple[str, ...]
    max_log_lines: int
    sentinels: int

    @property
    def line(self) -> str:
        """A sentence on the attack."""
        return (self.function.__doc__ or "").partition("\n")[0]


ATTACKS: Final[dict[str, Attack]] = {}
"""All of them by name, in the order of their definition."""


def attack(
    *arguments: str,
    seconds: float = USUAL_SECONDS,
    judges_delays: bool = True,
    descriptors: int = 0,
    redis_user: tuple[str, ...] = (),
    max_log_lines: int = 0,
    sentinels: int = 0,
) -> Callable[[Function], Function]:
    """Register a function as an attack.

    `arguments` are for the server. `judges_delays`: whether publications can arrive in time at all,
    which they cannot where Redis is silent. `descriptors`: as many as the server may open, 0 for no
    limit. `redis_user`: rules of the Redis user that the server connects as. `max_log_lines`: the
    most lines that the server may log for it, 0 for no limit. `sentinels`: how many Sentinels the
    server asks for its Redis, 0 for none.
    """

    def register(function: Function) -> Function:
        name = getattr(function, "__name__", "")
        ATTACKS[name] = Attack(
            name,
            function,
            arguments,
            seconds,
            judges_delays,
            descriptors,
            redis_user,
            max_log_lines,
            sentinels,
        )
        return function

    return register
