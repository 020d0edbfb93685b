"""The bus inside the process: for the demo, for tests in virtual time, and for one machine.

It keeps the last message of each channel, so that the first subscriber of a topic receives its last
known value, too. Alerts and notifications have none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from streamer.broker.reader import MessageHandler
from streamer.protocol.topics import Kind

_EVENT_PREFIXES: Final = tuple(f"{kind}:" for kind in Kind if kind.is_event)
"""How the names of channels without a last known value begin."""


class MemoryBus:
    """Publish and subscribe by channel name. It is always connected: nothing waits or fails."""

    def __init__(self, listener: MessageHandler) -> None:
        self._listener = listener
        self._channels: set[str] = set()
        self._last: dict[str, bytes] = {}

    @property
    def connected(self) -> bool:
        """Always true."""
        return True

    def publish(self, channel: str, payload: bytes) -> int:
        """Publish one message; returns how many received it (0 or 1), as Redis does."""
        if not channel.startswith(_EVENT_PREFIXES):
            self._last[channel] = payload
        if channel not in self._channels:
            return 0
        self._listener.on_messages([(channel.encode(), payload)])
        return 1

    def subscribe(self, channels: Iterable[str]) -> None:
        """Subscribe to channels; the last message of each is delivered at once."""
        new = [channel for channel in channels if channel not in self._channels]
        self._channels.update(new)
        self._listener.on_messages(
            [(channel.encode(), self._last[channel]) for channel in new if channel in self._last]
        )

    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Unsubscribe from channels."""
        self._channels.difference_update(channels)

    def is_settled(self, channels: Iterable[str]) -> bool:
        """Whether all of these channels are subscribed; no confirmation is needed."""
        return self._channels.issuperset(channels)

    async def wait_answer(self) -> None:
        """Return at once: no channel is ever unconfirmed."""

    @property
    def refuses_some(self) -> bool:
        """Always false."""
        return False

    def is_refused(self, channel: str) -> bool:  # noqa: ARG002 - the interface of a bus
        """Return False: there are no permissions."""
        return False
