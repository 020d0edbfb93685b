"""A connected client, as the table of connections and the limits see it."""

from __future__ import annotations

import enum
from typing import Protocol

import attrs

from streamer.auth.identity import Identity
from streamer.hub.outbox import Outbox, OutboxStatistics
from streamer.protocol import messages
from streamer.protocol.errors import CloseReason


class Transport(enum.StrEnum):
    """How a client is served; a label in metrics."""

    WEBSOCKET = "websocket"
    HTTP = "http"
    """A stream of server-sent events."""


@attrs.frozen
class ConnectionInfo:
    """One connection, as the list of connections shows it."""

    session: str
    """A short hash of the session's id, which cannot be used to restore it; logs show the same."""
    transport: Transport
    user_id: str | None
    """The user that the client has proved to be; null for an anonymous client."""
    remote_address: str
    user_agent: str | None
    connected_at: str
    connected_seconds: float
    idle_seconds: float
    """Seconds since anything came from the client."""
    subscriptions: list[str]
    messages_received: int
    messages_refused: int
    """Frames over the rate limit."""
    outbox: OutboxStatistics


class Served(Protocol):
    """A session of a WebSocket, or a stream over HTTP."""

    @property
    def session_id(self) -> str:
        """The id of the session."""

    @property
    def outbox(self) -> Outbox:
        """The way to the client."""

    @property
    def transport(self) -> Transport:
        """How the client is served."""

    @property
    def is_ending(self) -> bool:
        """Whether the connection is broken or being closed."""

    @property
    def last_received_seconds(self) -> float:
        """When the client last gave a sign of life, on trio's clock."""

    @property
    def remote_address(self) -> str:
        """The address of the client."""

    @property
    def connected_at(self) -> str:
        """When it connected: RFC 3339, in UTC."""

    @property
    def identity(self) -> Identity | None:
        """The identity in the client's token; None for an anonymous client."""

    @property
    def messages_received(self) -> int:
        """Messages from the client so far."""

    @property
    def messages_refused(self) -> int:
        """Messages over the rate limit."""

    async def run(self, opening: bytes) -> CloseReason | None:
        """Serve the client until one side closes; return why the server did, if it did."""

    def end(self, reason: CloseReason, farewell: messages.ServerMessage | None = None) -> None:
        """Close the connection with a reason, and a message before it. Does not wait."""

    def ping(self) -> None:
        """Ask the client for a sign of life."""

    def is_silent_since(self, seconds: float) -> bool:
        """Whether the client has given no sign of life since then, on trio's clock."""

    def is_confirmation_due(self, now_seconds: float) -> bool:
        """Whether the client should be pinged before its heartbeat."""

    def give_up(self) -> None:
        """Cut the connection."""

    def info(self) -> ConnectionInfo:
        """Return the present state of the connection."""
