"""How much a client may ask."""

from __future__ import annotations

from typing import Final

VIOLATION_WINDOW_SECONDS: Final = 10.0
"""Refusals are forgiven after this long without one: a burst is a mistake, going on is abuse."""


class RateLimiter:
    """A token bucket for one connection: `rate` messages a second, `burst` of them at once."""

    __slots__ = (
        "_burst",
        "_last_refusal_seconds",
        "_rate",
        "_refilled_seconds",
        "_tokens",
        "refused",
        "violations",
    )

    def __init__(self, *, rate: float, burst: float, now_seconds: float) -> None:
        """With a rate of 0 there is no limit."""
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._refilled_seconds = now_seconds
        self._last_refusal_seconds = now_seconds
        self.refused = 0
        """In all."""
        self.violations = 0
        """Refusals with never VIOLATION_WINDOW_SECONDS between two of them."""

    def allow(self, now_seconds: float) -> bool:
        """Take one message, or refuse it."""
        if not self._rate:
            return True
        elapsed = now_seconds - self._refilled_seconds
        self._refilled_seconds = now_seconds
        self._tokens = min(self._burst, self._tokens + elapsed * self._rate)
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return True
        if now_seconds - self._last_refusal_seconds > VIOLATION_WINDOW_SECONDS:
            self.violations = 0
        self._last_refusal_seconds = now_seconds
        self.violations += 1
        self.refused += 1
        return False
