"""Formats beside the first: the hub serves clients of several, and needs nothing changed for it."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from streamer.hub.fanout import FlushProgress
from streamer.hub.hub import Hub
from streamer.hub.outbox import Outbox
from streamer.hub.subscription import SubscriptionOptions, Want
from streamer.protocol import messages
from streamer.protocol.topics import Kind, Topic
from streamer.wire.format import Part, Positions, Sendable, Stream, WireFormat
from tests.hub.test_history import House

STOCK = Topic.parse("stock:A")


class Lines(WireFormat):
    """Texts on lines, each behind a name; it counts what it is asked to encode."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.encoded = self.written = 0

    def part(self, publication: Sendable, position: int, stream: Stream) -> Part:
        """The text of one publication."""
        return self.parts([publication], position, stream)[0]

    def parts(
        self,
        publications: Iterable[Sendable],
        position: int,  # noqa: ARG002
        stream: Stream,  # noqa: ARG002
    ) -> list[Part]:
        """The texts, whatever the receivers hold."""
        self.encoded += 1
        return [(p.order, p.text_following(p.sequence - 1), False) for p in publications]

    def snapshot(self, publication: Sendable) -> Part:
        """The text as the last known value."""
        return publication.order, publication.snapshot_text, False

    def data(self, parts: Sequence[Part], positions: Positions) -> bytes:  # noqa: ARG002
        """A line each."""
        self.written += 1
        return b"".join(b"%b:%b\n" % (self.name, text) for _, text, _ in parts)

    def answer(self, message: messages.ServerMessage) -> bytes:
        """Only the type."""
        return self.name + b":" + message.type.encode() + b"\n"

    def ping(self, payload: bytes) -> bytes:
        """A comment."""
        return b"#" + payload + b"\n"

    pong = ping

    def close(self, code: int, reason: str) -> bytes:  # noqa: ARG002
        """The last line."""
        return b"%d\n" % code


class PerGroup(Lines):
    """A format with a state of its own for each group, as a compressor would have."""

    def __init__(self, name: bytes) -> None:
        super().__init__(name)
        self.groups: list[OneGroup] = []

    def for_group(self, members: int, *, has_newcomer: bool) -> WireFormat:
        """A new one for each group."""
        self.groups.append(OneGroup(b"%b%d" % (self.name, len(self.groups))))
        return self.groups[-1].for_group(members, has_newcomer=has_newcomer)


class OneGroup(Lines):
    """The format of one group; it notes what it is asked to adapt to."""

    def __init__(self, name: bytes) -> None:
        super().__init__(name)
        self.members: list[tuple[int, bool]] = []

    def for_group(self, members: int, *, has_newcomer: bool) -> WireFormat:
        """Note it, and stay."""
        self.members.append((members, has_newcomer))
        return self


class Receiver:
    """A client of any format."""

    def __init__(
        self, hub: Hub, wire: WireFormat, server_end: socket.socket, client_end: socket.socket
    ) -> None:
        self.outbox = Outbox("r", server_end.fileno(), self, wire, max_queued_bytes=1 << 20)
        self._client_end = client_end
        hub.add(self.outbox)

    def on_blocked(self) -> None:
        """Not with so little."""
        raise AssertionError

    on_broken = on_overflow = on_blocked

    def received(self) -> list[bytes]:
        """The lines since the last call."""
        try:
            return self._client_end.recv(1 << 20).splitlines()
        except BlockingIOError:
            return []


@contextmanager
def receivers(hub: Hub, *formats: WireFormat) -> Iterator[list[Receiver]]:
    """Clients, each with a format."""
    pairs = [socket.socketpair() for _ in formats]
    try:
        for pair in pairs:
            for end in pair:
                end.setblocking(False)
        yield [Receiver(hub, wire, *pair) for wire, pair in zip(formats, pairs, strict=True)]
    finally:
        for pair in pairs:
            for end in pair:
                end.close()


def flush(hub: Hub) -> None:
    """A whole flush."""
    for _ in hub.fanout.flush(FlushProgress(), stretched=False):
        pass


def test_a_publication_is_encoded_once_for_each_format() -> None:
    """However many clients hold the topic, and in whatever groups."""
    house = House()
    one, two = Lines(b"one"), Lines(b"two")
    other = Topic.parse("stock:B")
    with receivers(house.hub, one, one, one, two, two) as clients:
        for client in clients:
            house.hub.subscribe(client.outbox, [Want(STOCK)])
        house.hub.subscribe(clients[0].outbox, [Want(other)])
        assert house.hub.fanout.groups == 3
        house.hub.publishing.publish(house.hub.stream(STOCK), Kind.PRICE, b'{"n":1}')
        flush(house.hub)
        for client, name in zip(clients, [b"one"] * 3 + [b"two"] * 2, strict=True):
            assert client.received() == [name + b':{"n":1,"sequence":1}']
        assert (one.encoded, two.encoded) == (1, 1)
        assert (one.written, two.written) == (1, 1), "groups share the frames of one format"


def test_a_format_may_keep_a_state_for_each_group() -> None:
    """Groups then share nothing, each learns of its members, and a client alone has its own."""
    house = House()
    wire = PerGroup(b"g")
    other = Topic.parse("stock:B")
    with receivers(house.hub, wire, wire, wire) as clients:
        for client in clients:
            house.hub.subscribe(client.outbox, [Want(STOCK)])
        house.hub.subscribe(clients[0].outbox, [Want(other)])
        assert wire.groups == [], "nothing is made before there is something to send"
        house.hub.publishing.publish(house.hub.stream(STOCK), Kind.PRICE, b'{"n":1}')
        flush(house.hub)
        names = [client.received()[0].partition(b":")[0] for client in clients]
        assert names == [b"g1", b"g0", b"g0"]
        assert [group.members for group in wire.groups] == [[(2, True)], [(1, True)]]
        house.hub.subscribe(
            clients[1].outbox, [Want(other, SubscriptionOptions(interval_seconds=1.0))]
        )
        house.hub.publishing.publish(house.hub.stream(STOCK), Kind.PRICE, b'{"n":2}')
        flush(house.hub)
        assert [client.received()[0].partition(b":")[0] for client in clients] == [
            b"g1",
            b"g",
            b"g0",
        ]
        assert [group.members[1:] for group in wire.groups] == [[(1, False)], []]


def test_an_empty_group_is_forgotten_with_its_state() -> None:
    """Who comes later begins in a new one."""
    house = House()
    wire = PerGroup(b"g")
    with receivers(house.hub, wire) as (client,):
        for _ in range(2):
            house.hub.subscribe(client.outbox, [Want(STOCK)])
            flush(house.hub)
            house.hub.unsubscribe(client.outbox, [STOCK])
        assert house.hub.fanout.groups == 0
        assert [group.members for group in wire.groups] == [[(1, True), (0, False)]] * 2
