"""The heartbeat of all connections, from one task.

A task for each client that only waits would cost more memory than all else that a quiet client
needs. All intervals are equal, so two queues in order of time are enough: who is to be pinged next,
and who is to have answered next.
"""

from __future__ import annotations

from collections import deque
from typing import NoReturn

import trio

from streamer.edge.session import Session


class Heartbeat:
    """Pings every client and drops those that stay silent."""

    def __init__(self, *, interval_seconds: float, timeout_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._timeout_seconds = timeout_seconds
        self._to_ping: deque[tuple[float, Session]] = deque()
        self._to_judge: deque[tuple[float, Session]] = deque()

    def add(self, session: Session) -> None:
        """Begin with a client that has just connected."""
        self._to_ping.append((trio.current_time() + self._interval_seconds, session))

    async def run(self) -> NoReturn:
        """Ping and judge, for ever."""
        while True:
            now = trio.current_time()
            while self._to_judge and self._to_judge[0][0] <= now:
                self._judge(*self._to_judge.popleft(), now)
            while self._to_ping and self._to_ping[0][0] <= now:
                _, session = self._to_ping.popleft()
                if not session.outbox.closed:
                    session.ping()
                    self._to_judge.append((now + self._timeout_seconds, session))
            # Whoever is added while this sleeps is due later than it wakes.
            dues = [queue[0][0] for queue in (self._to_ping, self._to_judge) if queue]
            soonest = now + min(self._interval_seconds, self._timeout_seconds)
            await trio.sleep_until(min(dues, default=soonest))

    def _judge(self, deadline: float, session: Session, now: float) -> None:
        if session.outbox.closed:
            return
        if session.last_received_seconds < deadline - self._timeout_seconds:
            session.give_up()
        else:
            wait_seconds = max(self._interval_seconds - self._timeout_seconds, 0.0)
            self._to_ping.append((now + wait_seconds, session))
