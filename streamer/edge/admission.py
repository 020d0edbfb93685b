"""Admission: which connections are served, and how many at a time."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import structlog
import trio

from streamer.bounded_log import BoundedLog
from streamer.config import Settings
from streamer.edge.served import Served
from streamer.protocol import errors
from streamer.protocol.errors import CloseReason

log = structlog.get_logger()


class Cause(enum.StrEnum):
    """Why a connection was refused or closed; a label in metrics and logs."""

    ORIGIN = "origin"
    """The page's origin is not allowed."""
    SERVER_FULL = "server_full"
    """All places of the server are taken."""
    ADDRESS_FULL = "address_full"
    """All places of the address are taken."""
    USER_FULL = "user_full"
    """All places of the user are taken."""
    HANDSHAKE = "handshake"
    """No valid WebSocket handshake came, or not in time, or others waited for its place."""
    PROXY_PROTOCOL = "proxy_protocol"
    """No valid header of the PROXY protocol came, or not from a trusted proxy."""
    ABUSE = "abuse"
    """The client kept sending over the rate limit."""
    TOKEN = "token"
    """The token of its handshake is not valid, or has expired."""
    DESCRIPTORS = "descriptors"
    """The process has no file descriptor left for it."""


CLOSE_REASON_BY_CAUSE: Final[Mapping[Cause, CloseReason]] = MappingProxyType(
    {
        Cause.ORIGIN: errors.ORIGIN,
        Cause.SERVER_FULL: errors.OVERLOADED,
        Cause.ADDRESS_FULL: errors.ADDRESS_FULL,
        Cause.USER_FULL: errors.USER_FULL,
    }
)
"""The close codes and reasons of connections that are refused after their handshake."""


class Refusals:
    """Counts refused connections by their cause, and logs them at a bounded rate."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(Cause, 0)
        self._log = BoundedLog(log.warning)

    def add(self, cause: Cause, address: str, detail: str | None = None) -> None:
        """Count one refusal."""
        self.counts[cause] += 1
        fields = {} if detail is None else {"detail": detail}
        self._log(cause, "connection refused", cause=cause.value, address=address, **fields)


class Admission:
    """Counts the connections that are served, in total and by address (IPv6: /64 network).

    Those whose user is known are counted by user as well.
    """

    def __init__(self, settings: Settings) -> None:
        self._max_connections = settings.max_connections
        self._max_connections_per_address = settings.max_connections_per_address
        # Dictionaries, not lists: all clients may have one address, that of a proxy.
        self._by_address: dict[str, dict[Served, None]] = {}
        """The sessions of each address."""
        self._beginning: Counter[str] = Counter()
        """The places of each address whose session has not begun."""
        self._max_connections_per_user = settings.max_connections_per_user
        self._by_user: dict[str, list[Served]] = {}
        self._users: dict[Served, str] = {}
        """The user of each session in `_by_user`."""
        self._total = 0
        self._left: trio.Event | None = None
        """Set when a place is given back; None while nobody waits for one."""

    def enter(self, address: str) -> Cause | None:
        """Take a place, to be given back with `leave`; return the cause if there is none."""
        limit = self._max_connections_per_address
        if limit and self._places(address) >= limit:
            return Cause.ADDRESS_FULL
        if self._max_connections and self._total >= self._max_connections:
            return Cause.SERVER_FULL
        self._total += 1
        self._beginning[address] += 1
        return None

    def _places(self, address: str) -> int:
        return len(self._by_address.get(address, ())) + self._beginning[address]

    def serve(self, address: str, session: Served) -> None:
        """Assign a session to the place that its connection has taken."""
        self._begin(address)
        self._by_address.setdefault(address, {})[session] = None

    def _begin(self, address: str) -> None:
        self._beginning[address] -= 1
        if not self._beginning[address]:
            del self._beginning[address]

    def leave(self, address: str, session: Served | None) -> None:
        """Give back a place; `session` is None if none has been assigned to it."""
        self._total -= 1
        if session is None:
            self._begin(address)
        else:
            sessions = self._by_address[address]
            del sessions[session]
            if not sessions:
                del self._by_address[address]
            self._leave_user(session)
        if self._left is not None:
            self._left.set()
            self._left = None

    def enter_user(self, user_id: str, session: Served) -> Cause | None:
        """Count a session that is served for its user; return the cause if there is no place.

        The place ends with that of the address. A session has one user at most.
        """
        limit = self._max_connections_per_user
        if not limit or session in self._users:
            return None
        places = self._by_user.get(user_id, ())
        if len(places) >= limit:
            return Cause.USER_FULL
        self._by_user.setdefault(user_id, []).append(session)
        self._users[session] = user_id
        return None

    def _leave_user(self, session: Served) -> None:
        user_id = self._users.pop(session, None)
        if user_id is not None:
            places = self._by_user[user_id]
            places.remove(session)
            if not places:
                del self._by_user[user_id]

    async def wait_left(self) -> None:
        """Wait until some connection has given back its place."""
        if self._left is None:
            self._left = trio.Event()
        await self._left.wait()

    def sessions(self, address: str) -> Sequence[Served]:
        """The sessions of an address."""
        return list(self._by_address.get(address, ()))

    def user_sessions(self, user_id: str) -> Sequence[Served]:
        """The sessions of a user."""
        return list(self._by_user.get(user_id, ()))
