"""How a connection ends, and whether and when the client reconnects."""

from __future__ import annotations

from typing import Final, Self

import attrs

from streamer.backoff import Backoff
from streamer.client.errors import ClientError, ClosedError
from streamer.client.websocket import WebSocketClosedError
from streamer.protocol import errors
from streamer.protocol.messages import Disconnected, ServerShutdown

ABNORMAL: Final = 1006
"""No close frame was received (RFC 6455, 7.1.5)."""

_FINAL: Final = frozenset(
    {
        errors.PROTOCOL_VIOLATION.code,
        errors.INVALID_UTF8.code,
        errors.ABUSE.code,
        errors.TOO_LARGE.code,
        errors.INVALID_TOKEN.code,
    }
)
"""Close codes after which a client does not reconnect."""

_MAX_DELAY_SECONDS: Final = 3600.0
"""The longest delay that a server may ask for: a longer one is more likely a mistake."""


@attrs.frozen
class Ending:
    """How a connection ended."""

    code: int
    """The WebSocket close code."""
    reason: str
    failure: ClientError | None = None
    """Why the client must not reconnect; None if it may."""

    @classmethod
    def of(cls, closed: WebSocketClosedError) -> Self:
        """Make the ending of a connection that has been closed."""
        return cls(closed.code, closed.reason or "the connection was cut")

    def __str__(self) -> str:
        return f"{self.reason} ({self.code})"


class ReturnPolicy:
    """Decides after each connection whether and when to open the next one."""

    def __init__(self, backoff: Backoff, *, renews_token: bool) -> None:
        """`renews_token`: whether each connection uses a new token."""
        self._backoff = backoff
        self._renews_token = renews_token
        self._announced: ServerShutdown | Disconnected | None = None

    def announce(self, message: ServerShutdown | Disconnected) -> None:
        """Take note of the server's message about the end of the connection."""
        self._announced = message

    def delay_seconds(self, ending: Ending, *, lasted_seconds: float) -> float:
        """Return the seconds to wait before the next attempt.

        Raises ClientError if there must not be one.
        """
        announced, self._announced = self._announced, None
        if ending.failure is not None:
            raise ending.failure
        needs_token = ending.code == errors.UNAUTHENTICATED.code and not self._renews_token
        is_banned = isinstance(announced, Disconnected) and not announced.reconnect
        if ending.code in _FINAL or needs_token or is_banned:
            reason = announced.reason if isinstance(announced, Disconnected) else ending.reason
            raise ClosedError(ending.code, reason)
        if lasted_seconds > self._backoff.max_seconds:
            self._backoff.reset()
        if announced is not None and announced.retry_after_ms is not None:
            return min(max(announced.retry_after_ms / 1000, 0.0), _MAX_DELAY_SECONDS)
        return self._backoff.next_delay()
