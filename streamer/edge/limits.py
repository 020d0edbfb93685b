"""The rate limit of one client."""

from __future__ import annotations

from typing import Final

VIOLATION_WINDOW_SECONDS: Final = 10.0
"""Refusals are forgotten after this long without one: one burst is a mistake, more are abuse."""


class RateLimiter:
    """A token bucket for the frames of one connection: `rate` per second, `burst` at once."""

    __slots__ = (
        "_burst",
        "_last_refusal_seconds",
        "_max_violations",
        "_rate",
        "_refilled_seconds",
        "_tokens",
        "refused",
        "violations",
    )

    def __init__(
        self, *, rate: float, burst: float, max_violations: int, now_seconds: float
    ) -> None:
        """With a rate of 0 there is no limit."""
        self._rate = rate
        self._burst = burst
        self._max_violations = max_violations
        self._tokens = burst
        self._refilled_seconds = now_seconds
        self._last_refusal_seconds = now_seconds
        self.refused = 0
        """Refusals since the beginning."""
        self.violations = 0
        """Refusals without a pause of VIOLATION_WINDOW_SECONDS between two of them."""

    @property
    def is_abused(self) -> bool:
        """Whether the client was refused so often that its connection should end."""
        return self.violations > self._max_violations

    def allow(self, now_seconds: float) -> bool:
        """Take one token; False if there is none, which counts as a refusal."""
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
