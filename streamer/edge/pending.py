"""Connections that are accepted and not served yet: their handshake is not finished.

Each costs a descriptor and a task before anything is known of the client, so they are bounded, in
total and by address. If there are too many, the slowest is cut: an ordinary client finishes its
handshake long before those that only hold connections open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

import attrs
import trio

_CUT_PER_TURN: Final = 32
"""Connections that are cut in one turn of the loop; each costs about a tenth of a millisecond."""


@attrs.define(eq=False)
class Pending:
    """One connection whose handshake is not finished."""

    address: str
    """The address by which limits are counted (`addresses.counted_address`)."""
    is_proxy: bool
    """Whether the address is that of a proxy, so far, and does not count: a client behind it that
    holds connections open must not take the places of the others."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)


class PendingConnections:
    """Bounds the number of unfinished handshakes and the time that each may take."""

    def __init__(
        self,
        *,
        max_total: int,
        max_per_address: int,
        timeout_seconds: float,
        on_cut: Callable[[Pending], None],
    ) -> None:
        """A limit of 0 is none. `on_cut` is called for each connection that is cut."""
        self._max_total = max_total
        self._max_per_address = max_per_address
        self._timeout_seconds = timeout_seconds
        self._on_cut = on_cut
        self._deadlines: dict[Pending, float] = {}
        """In the order of arrival, and so of the deadlines."""
        self._by_address: dict[str, dict[Pending, None]] = {}
        self._earlier = trio.Event()

    def __len__(self) -> int:
        return len(self._deadlines)

    def enter(self, address: str, *, is_proxy: bool = False) -> Pending:
        """Add a connection, and cut the slowest if there are now too many.

        One from a proxy counts in total alone, until `identify`.
        """
        pending = Pending(address, is_proxy)
        self._deadlines[pending] = trio.current_time() + self._timeout_seconds
        was_cut = not is_proxy and self._count(pending)
        if not was_cut and self._max_total and len(self) > self._max_total:
            self.cut_slowest()
        return pending

    def identify(self, pending: Pending, address: str) -> None:
        """Count a connection from a proxy by its client's address, now that this is known."""
        if pending.is_proxy and pending in self._deadlines:
            pending.address = address
            pending.is_proxy = False
            self._count(pending)

    def _count(self, pending: Pending) -> bool:
        """Count a connection by its address; return whether the slowest from there was cut."""
        same = self._by_address.setdefault(pending.address, {})
        same[pending] = None
        if not self._max_per_address or len(same) <= self._max_per_address:
            return False
        self._cut(next(iter(same)))
        return True

    def leave(self, pending: Pending) -> None:
        """Remove a connection that is served now, or has ended."""
        if self._deadlines.pop(pending, None) is not None and not pending.is_proxy:
            same = self._by_address[pending.address]
            del same[pending]
            if not same:
                del self._by_address[pending.address]

    def cut_slowest(self) -> bool:
        """Cut the connection that has taken the longest; False if there is none."""
        if not self._deadlines:
            return False
        self._cut(next(iter(self._deadlines)))
        return True

    def _cut(self, pending: Pending) -> None:
        self.leave(pending)
        pending.scope.cancel()
        self._on_cut(pending)

    def shorten(self, timeout_seconds: float) -> None:
        """Shorten the timeout, for present and later connections."""
        self._timeout_seconds = min(self._timeout_seconds, timeout_seconds)
        latest = trio.current_time() + self._timeout_seconds
        for pending, deadline in self._deadlines.items():
            self._deadlines[pending] = min(deadline, latest)
        self._earlier.set()

    async def run(self) -> NoReturn:
        """Cut connections that take too long, some in each turn, until cancelled."""
        while True:
            now = trio.current_time()
            cut = 0
            while self._deadlines and next(iter(self._deadlines.values())) <= now:
                self.cut_slowest()
                cut += 1
                if cut % _CUT_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
            # A connection that arrives during the sleep is due after its end.
            until = next(iter(self._deadlines.values()), now + self._timeout_seconds)
            with trio.move_on_at(until):
                await self._earlier.wait()
                self._earlier = trio.Event()
