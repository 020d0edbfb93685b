"""The bytes a second that one client asks to be sent at most."""

from __future__ import annotations

from typing import Final

_NEVER: Final = float("-inf")


class Bandwidth:
    """Spreads the bytes of one connection over time.

    A write is never cut: the next one waits until the time that the bytes so far take. So the
    average never exceeds the limit by more than one write.
    """

    __slots__ = ("_unpaid_bytes", "bytes_per_second", "due_seconds", "is_short")

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second
        self._unpaid_bytes = 0
        """Bytes written since the clock was last read."""
        self.due_seconds = _NEVER
        """When the next data may be written, on the hub's clock."""
        self.is_short = False
        """Whether data waits for the bandwidth: the client is then behind."""

    def spend(self, size_bytes: int) -> None:
        """Note bytes that are written to the socket."""
        self._unpaid_bytes += size_bytes

    def allows(self, now_seconds: float) -> bool:
        """Whether data may be written now."""
        if self._unpaid_bytes:
            start = max(self.due_seconds, now_seconds)
            self.due_seconds = start + self._unpaid_bytes / self.bytes_per_second
            self._unpaid_bytes = 0
        return self.due_seconds <= now_seconds
