"""Delays between attempts."""

import random

import attrs


@attrs.define
class Backoff:
    """Exponential backoff with full jitter: a random delay below a bound that doubles.

    Clients that lost the same server at the same moment must not all come back at the same moment
    (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """

    first_seconds: float = 0.5
    """The bound of the first delay."""
    max_seconds: float = 30.0
    """The largest bound."""
    failures: int = attrs.field(default=0, init=False)

    def next_delay(self) -> float:
        """Count a failure; return the seconds to wait before the next attempt."""
        # 2.0 ** 1024 would overflow, and long before it the bound is reached.
        bound = min(self.max_seconds, self.first_seconds * 2.0 ** min(self.failures, 64))
        self.failures += 1
        return random.uniform(0, bound)  # noqa: S311 - spreads load, hides nothing

    def reset(self) -> None:
        """Forget the failures, after a success that lasted."""
        self.failures = 0
