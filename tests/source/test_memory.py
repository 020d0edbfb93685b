"""The bus inside the process."""

from __future__ import annotations

from collections.abc import Iterable

from streamer.source.memory import MemoryBus


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, bytes]] = []

    def on_messages(self, messages: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep them."""
        self.messages.extend(messages)

    def on_connected(self) -> None:
        """Never called: it is always connected."""

    def on_lost(self, reason: str) -> None:
        """Never called: it is always connected."""

    def on_refused(self, channel: bytes, reason: str) -> None:
        """Never called: there are no permissions."""

    def on_accepted(self, channel: bytes) -> None:
        """Never called: there are no permissions."""


def test_only_what_is_subscribed_is_heard_and_its_last_message_at_once() -> None:
    """`publish` tells how many heard it, as PUBLISH does; who subscribes gets the last value."""
    heard = Heard()
    bus = MemoryBus(heard)
    assert bus.connected
    assert bus.publish("a", b"1") == 0
    bus.subscribe(["a", "b"])
    assert bus.is_settled(["a", "b"])
    assert heard.messages == [(b"a", b"1")]
    bus.subscribe(["a"])
    assert bus.publish("b", b"2") == 1
    bus.unsubscribe(["a", "never"])
    assert bus.publish("a", b"3") == 0
    bus.subscribe(["a"])
    assert heard.messages == [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")]


def test_an_event_is_not_repeated_to_a_later_subscriber() -> None:
    """An alert that comes again at the next subscription would look like another."""
    heard = Heard()
    bus = MemoryBus(heard)
    for channel in ("alerts:ann", "notifications:ann"):
        bus.publish(channel, b"1")
        bus.subscribe([channel])
    assert heard.messages == []
    assert bus.publish("alerts:ann", b"2") == 1
    assert heard.messages == [(b"alerts:ann", b"2")]
