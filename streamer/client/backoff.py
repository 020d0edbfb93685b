"""When to try again."""

import random

import attrs


@attrs.define
class Backoff:
    """Exponential backoff with full jitter: anywhere between now and a bound that doubles.

    Full jitter, because clients that lost the same server at the same moment must not come back
    at the same moment (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """

    first_seconds: float = 0.5
    """The bound of the first delay."""
    max_seconds: float = 30.0
    """The bound that is not doubled any more."""
    failures: int = attrs.field(default=0, init=False)

    def next_delay(self) -> float:
        """Seconds to wait now, after one more failure."""
        # 2.0 ** 1024 would overflow, and long before it the bound is reached.
        bound = min(self.max_seconds, self.first_seconds * 2.0 ** min(self.failures, 64))
        self.failures += 1
        return random.uniform(0, bound)  # noqa: S311 - spreads load, hides nothing

    def reset(self) -> None:
        """Begin anew, after a success that lasted."""
        self.failures = 0
