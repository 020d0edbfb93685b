"""Who may come in: limits that are checked when a connection opens."""

from __future__ import annotations

from collections import Counter

from streamer.config import Settings
from streamer.protocol.errors import OVERLOADED, POLICY, CloseReason


class Admission:
    """Counts connections, by address and in all."""

    def __init__(self, settings: Settings) -> None:
        self._max_connections = settings.max_connections
        self._max_connections_per_address = settings.max_connections_per_address
        self._allowed_origins = frozenset(settings.allowed_origins)
        self._by_address: Counter[str] = Counter()
        self._total = 0
        self.refused = 0
        """Connections that were closed right after their handshake."""

    def enter(self, address: str, origin: str | None) -> CloseReason | None:
        """Count a connection, which has to `leave`; returns why it is refused instead, or None."""
        refusal = self._refusal(address, origin)
        if refusal is not None:
            self.refused += 1
            return refusal
        self._total += 1
        self._by_address[address] += 1
        return None

    def leave(self, address: str) -> None:
        """A connection that was let in has gone."""
        self._total -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def _refusal(self, address: str, origin: str | None) -> CloseReason | None:
        # A client that is no browser sends no Origin, and nobody else's page can make it connect.
        if self._allowed_origins and origin is not None and origin not in self._allowed_origins:
            return POLICY
        limit = self._max_connections_per_address
        if limit and self._by_address[address] >= limit:
            return POLICY
        if self._max_connections and self._total >= self._max_connections:
            return OVERLOADED
        return None
