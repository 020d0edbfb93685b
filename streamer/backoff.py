"""Delays between attempts: exponential backoff with full jitter. No I/O."""

import random
from typing import Final

import attrs

_MAX_DOUBLINGS: Final = 64
"""Beyond any bound that makes sense, and below the 1024 at which a float overflows."""


@attrs.define
class Backoff:
    """Delays drawn between 0 and a bound that doubles with each failure.

    Full jitter: peers that lost the same server together must not reconnect together (M. Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """

    first_seconds: float = 0.5
    """Bound of the first delay."""
    max_seconds: float = 30.0
    """Largest bound."""
    failures: int = attrs.field(default=0, init=False)

    def next_bound(self) -> float:
        """Count one more failure; return the longest delay in seconds that may follow it."""
        doublings = min(self.failures, _MAX_DOUBLINGS)
        self.failures += 1
        return min(self.max_seconds, self.first_seconds * 2.0**doublings)

    def next_delay(self) -> float:
        """Count one more failure; return the seconds to wait before the next attempt."""
        return random.uniform(0, self.next_bound())  # noqa: S311 - spreads load, guards nothing

    def reset(self) -> None:
        """Start over with the first bound, after a success that lasted."""
        self.failures = 0
