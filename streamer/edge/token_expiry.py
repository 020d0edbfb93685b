"""The ends of all clients' tokens, from one task.

A client is notified before its token ends, so that it needs no timer; after the end it has some
time left to present a new token, and is then closed. Tokens of many clients often end together, as
after a deployment. The server sees all of them, so it chooses the moment of each notice: at random
between a third and a tenth of the token's life before its end.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import random
import time
from collections.abc import Callable
from typing import Final, NoReturn, Protocol

import attrs
import structlog
import trio

from streamer.auth.identity import Identity
from streamer.bounded_log import BoundedLog
from streamer.edge.session_ids import short_hash
from streamer.protocol import errors, messages
from streamer.protocol.errors import CloseReason, ErrorCode

_EARLIEST: Final = 1 / 3
_LATEST: Final = 1 / 10
"""The parts of a token's life, before its end, between which its client is notified."""
_MAX_LEAD_SECONDS: Final = 300.0
"""The longest time before the end at which a client is notified."""

_PER_TURN: Final = 100
"""Clients that are notified or closed before other tasks have a turn: about a millisecond."""
_STALE_ENTRIES: Final = 1000
"""Entries out of date that are kept before the heap is built anew."""

log = structlog.get_logger()


class TokenHolder(Protocol):
    """A session, as far as its token is concerned."""

    @property
    def session_id(self) -> str:
        """The id of the session."""

    @property
    def is_ending(self) -> bool:
        """Whether the connection is broken or being closed."""

    def send_event(self, message: messages.ServerMessage) -> None:
        """Send a message that answers no request."""

    def end(self, reason: CloseReason, farewell: messages.ServerMessage | None = None) -> None:
        """Close the connection, after a last message."""


class _Step(enum.Enum):
    NOTIFY = enum.auto()
    """Notify the client that its token ends soon."""
    CLOSE = enum.auto()
    """Close the connection: the token has ended, and so has the time to present another."""
    GIVE_UP = enum.auto()
    """Close the connection: the client has not presented any token."""


@attrs.frozen
class _Next:
    """The next step for a session, and when."""

    number: int
    """That of its entry in the heap; others of the session are out of date."""
    step: _Step
    due_seconds: float
    ends_seconds: float
    """When the token ends; both on trio's clock."""


class TokenExpiry:
    """Notifies clients whose tokens end soon, and closes those that do not present another."""

    def __init__(
        self,
        *,
        grace_seconds: float,
        timeout_seconds: float,
        clock: Callable[[], float] = time.time,
        random_part: Callable[[], float] = random.random,
    ) -> None:
        """`timeout_seconds` is the time to present the first token, where one is required.

        `clock` gives seconds since the epoch of Unix, `random_part` a number from 0 to 1.
        """
        self._grace_seconds = grace_seconds
        self._timeout_seconds = timeout_seconds
        self._log = BoundedLog(log.info)
        self._clock = clock
        self._random_part = random_part
        self._next: dict[TokenHolder, _Next] = {}
        self._sessions: dict[int, TokenHolder] = {}
        """The session of each entry that is not out of date."""
        self._heap: list[tuple[float, int]] = []
        """When a step is due, and the number of its entry. It does not name the session: entries
        out of date stay for a while, and would keep sessions that have ended."""
        self._numbers = itertools.count(1)
        self._earlier = trio.Event()

    def remaining_seconds(self, identity: Identity) -> float | None:
        """Return the seconds until a token ends, 0 if it has ended; None if it has no end."""
        if identity.expires_at is None:
            return None
        return round(max(identity.expires_at - self._clock(), 0.0), 3)

    def expect(self, session: TokenHolder) -> None:
        """Close a session unless it presents a token in time."""
        now = trio.current_time()
        self._schedule(session, _Step.GIVE_UP, now + self._timeout_seconds, now)

    def watch(self, session: TokenHolder, identity: Identity) -> None:
        """Take note of the token that a session uses from now on."""
        remaining_seconds = self.remaining_seconds(identity)
        if identity.expires_at is None or remaining_seconds is None:
            self.forget(session)
            return
        issued_at = identity.issued_at
        life_seconds = remaining_seconds
        if issued_at is not None:
            life_seconds = max(identity.expires_at - issued_at, 0.0)
        lead = lead_seconds(life_seconds, remaining_seconds, self._random_part())
        ends = trio.current_time() + remaining_seconds
        self._schedule(session, _Step.NOTIFY, ends - lead, ends)

    def forget(self, session: TokenHolder) -> None:
        """Forget a session that has ended, or whose token has no end."""
        former = self._next.pop(session, None)
        if former is not None:
            del self._sessions[former.number]
        self._drop_stale()

    def _drop_stale(self) -> None:
        if len(self._heap) > 2 * len(self._next) + _STALE_ENTRIES:
            self._heap = [entry for entry in self._heap if entry[1] in self._sessions]
            heapq.heapify(self._heap)

    def _schedule(self, session: TokenHolder, step: _Step, due: float, ends: float) -> None:
        self.forget(session)
        number = next(self._numbers)
        self._next[session] = _Next(number, step, due, ends)
        self._sessions[number] = session
        is_first = not self._heap or due < self._heap[0][0]
        heapq.heappush(self._heap, (due, number))
        self._drop_stale()
        if is_first:
            self._earlier.set()

    async def run(self) -> NoReturn:
        """Notify and close, each at its time, until cancelled."""
        while True:
            await self._take_due()
            until = self._heap[0][0] if self._heap else trio.current_time() + _MAX_LEAD_SECONDS
            self._earlier = trio.Event()
            with trio.move_on_at(until):
                await self._earlier.wait()

    async def _take_due(self) -> None:
        taken = 0
        while self._heap and self._heap[0][0] <= trio.current_time():
            _, number = heapq.heappop(self._heap)
            session = self._sessions.pop(number, None)
            if session is None:
                continue
            self._take(session, self._next.pop(session))
            taken += 1
            if taken % _PER_TURN == 0:
                await trio.lowlevel.checkpoint()

    def _take(self, session: TokenHolder, due: _Next) -> None:
        if session.is_ending:
            return
        match due.step:
            case _Step.NOTIFY:
                left = max(due.ends_seconds - trio.current_time(), 0.0)
                session.send_event(messages.TokenExpiring(round(left, 3)))
                close_at = due.ends_seconds + self._grace_seconds
                self._schedule(session, _Step.CLOSE, close_at, due.ends_seconds)
            case _Step.CLOSE:
                self._log("expired", "token expired", session=short_hash(session.session_id))
                session.end(
                    errors.TOKEN_EXPIRED,
                    messages.Error(ErrorCode.TOKEN_EXPIRED, "the token has expired"),
                )
            case _Step.GIVE_UP:
                session.end(
                    errors.UNAUTHENTICATED,
                    messages.Error(ErrorCode.INVALID_TOKEN, "no token was presented in time"),
                )


def lead_seconds(life_seconds: float, remaining_seconds: float, part: float) -> float:
    """Return how long before the end of its token a client is notified.

    `part`, from 0 to 1, chooses between the latest and the earliest moment. These keep their
    proportion where the earliest is limited, by the longest lead or by what remains of a token that
    is presented late: otherwise such clients would all be notified at once.
    """
    earliest = min(life_seconds * _EARLIEST, _MAX_LEAD_SECONDS, remaining_seconds)
    latest = earliest * (_LATEST / _EARLIEST)
    return latest + part * (earliest - latest)
