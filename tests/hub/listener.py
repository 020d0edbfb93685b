"""A client of a hub that wants to hear everything, and what it hears."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from wsproto.frame_protocol import FrameProtocol, Opcode

from streamer.hub.fanout import FlushProgress
from streamer.hub.hub import Hub
from streamer.hub.outbox import Outbox
from streamer.hub.recovery import RecoveryPlan, subscribe
from streamer.hub.renditions import WHOLE, Detail
from streamer.hub.subscription import Subscription, SubscriptionOptions, Want
from streamer.protocol.messages import Mode, Position
from streamer.protocol.topics import Kind, Topic
from streamer.wire.json import WebSocketJson
from tests.helpers.rebuild import read_exactly

Message = dict[str, Any]

WIRE: Final = WebSocketJson(lambda: "2026-01-02T03:04:05.678Z")
"""One for all, so that they may share a group."""


class Listener:
    """A client in mode all, with a real socket that is never full."""

    def __init__(
        self,
        hub: Hub,
        server_end: socket.socket,
        client_end: socket.socket,
        *,
        max_queued_bytes: int,
    ) -> None:
        self.hub = hub
        self.outbox = Outbox(
            "listener",
            server_end.fileno(),
            self,
            WIRE,
            max_queued_bytes=max_queued_bytes,
        )
        self._client_end = client_end
        self._frames = FrameProtocol(client=True, extensions=[])
        self._text = ""
        hub.add(self.outbox)

    def on_blocked(self) -> None:
        """A writer task would start: tests that fill the socket resume by themselves."""

    def on_broken(self) -> None:
        """Nothing breaks the socket, nor is anything too much."""
        raise AssertionError

    on_overflow = on_broken

    def subscribe(
        self, topic: Topic, *kinds: Kind, mode: Mode = Mode.ALL, detail: Detail = WHOLE
    ) -> Subscription:
        """Hear a topic, or only some kinds of it."""
        want = Want(topic, SubscriptionOptions(mode, frozenset(kinds), detail=detail))
        ((subscription, _),) = self.hub.subscribe(self.outbox, [want])
        return subscription

    def recover(
        self,
        topic: Topic,
        since: Position,
        *kinds: Kind,
        max_replay_bytes: int = 1 << 20,
        detail: Detail = WHOLE,
    ) -> RecoveryPlan:
        """Subscribe to a topic from a position on."""
        options = SubscriptionOptions(Mode.ALL, frozenset(kinds), detail=detail)
        want = Want(topic, options, since)
        recovery = subscribe(self.hub, self.outbox, [want], max_replay_bytes=max_replay_bytes)
        self.hub.fanout.start_replays(self.outbox)
        return recovery

    def subscription(self, topic: Topic) -> Subscription:
        """The subscription to a topic."""
        return self.outbox.subscriptions[self.hub.stream(topic)]

    def flush(self) -> None:
        """Play a whole flush."""
        for _ in self.hub.fanout.flush(FlushProgress(), stretched=False):
            pass

    def heard(self) -> list[Message]:
        """Return the messages since the last call, batches unpacked."""
        self.flush()
        self._frames.receive_bytes(self.waiting())
        messages: list[Message] = []
        for frame in self._frames.received_frames():
            if frame.opcode is not Opcode.TEXT:
                continue
            self._text += str(frame.payload)
            if not frame.message_finished:
                continue
            message, self._text = read_exactly(self._text), ""
            messages += message["messages"] if message["type"] == "batch" else [message]
        return messages

    def waiting(self) -> bytes:
        """The bytes that have been written to the client and not been read yet."""
        try:
            return self._client_end.recv(1 << 20)
        except BlockingIOError:
            return b""


@contextmanager
def listening(
    hub: Hub, *, max_queued_bytes: int = 1 << 20, send_buffer_bytes: int | None = None
) -> Iterator[Listener]:
    """A client that has subscribed to nothing yet; the kernel makes the least buffer of 1 byte."""
    server_end, client_end = socket.socketpair()
    with server_end, client_end:
        server_end.setblocking(False)
        client_end.setblocking(False)
        if send_buffer_bytes is not None:
            server_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        yield Listener(hub, server_end, client_end, max_queued_bytes=max_queued_bytes)
