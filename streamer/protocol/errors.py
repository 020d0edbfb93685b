"""Error codes and close codes, whose fault each is, and how a client should react to it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

import attrs


class ErrorCode(enum.StrEnum):
    """The `code` of an `error` message, or of one rejected target."""

    INVALID_JSON = "INVALID_JSON"
    MISSING_TYPE = "MISSING_TYPE"
    UNKNOWN_MESSAGE_TYPE = "UNKNOWN_MESSAGE_TYPE"
    INVALID_MESSAGE = "INVALID_MESSAGE"
    INVALID_TARGET = "INVALID_TARGET"
    TOO_MANY_TARGETS = "TOO_MANY_TARGETS"
    SUBSCRIPTION_LIMIT_EXCEEDED = "SUBSCRIPTION_LIMIT_EXCEEDED"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    RATE_LIMIT_EXCEEDED = "RATE_LIMIT_EXCEEDED"
    INVALID_TOKEN = "INVALID_TOKEN"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"
    FORBIDDEN = "FORBIDDEN"
    SESSION_RESTORATION_FAILED = "SESSION_RESTORATION_FAILED"
    INTERNAL_ERROR = "INTERNAL_ERROR"


ERROR_MEANINGS: Final[Mapping[ErrorCode, str]] = {
    ErrorCode.INVALID_JSON: "The message is not JSON; send one JSON object per text message.",
    ErrorCode.MISSING_TYPE: "The message has no `type`.",
    ErrorCode.UNKNOWN_MESSAGE_TYPE: "The `type` is none that a client may send.",
    ErrorCode.INVALID_MESSAGE: "A field is missing or of the wrong type; `details` names it.",
    ErrorCode.INVALID_TARGET: "A target has a character or a length that no topic has.",
    ErrorCode.TOO_MANY_TARGETS: "One request names more targets than `limits` allows; split it.",
    ErrorCode.SUBSCRIPTION_LIMIT_EXCEEDED: "The connection holds all the subscriptions it may.",
    ErrorCode.MESSAGE_TOO_LARGE: "The message is larger than `limits` allows; 1009 follows.",
    ErrorCode.RATE_LIMIT_EXCEEDED: "Too many messages a second; this one was not carried out.",
    ErrorCode.INVALID_TOKEN: "The token is not valid here.",
    ErrorCode.TOKEN_EXPIRED: "The token has expired; get a new one.",
    ErrorCode.FORBIDDEN: "The client may not have this topic, or the server may not read it.",
    ErrorCode.SESSION_RESTORATION_FAILED: "The session is unknown or has expired; subscribe again.",
    ErrorCode.INTERNAL_ERROR: "An internal fault of the server; the connection continues.",
}
"""One sentence for each code; the protocol reference is generated from it."""


class ProtocolError(Exception):
    """A client's message that cannot be carried out.

    It is answered with an `error` message; no other client is affected.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        details: Mapping[str, object] | None = None,
        request_id: str | int | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.details = details
        self.request_id = request_id


class InvalidPublicationError(ValueError):
    """A publication does not fit its channel; the text says why."""


@attrs.frozen
class CloseReason:
    """A way for the server to end a connection."""

    code: int
    reason: str
    """Sent in the close frame, so at most 123 bytes (RFC 6455, 5.5)."""
    meaning: str
    client_should: str


NORMAL: Final = CloseReason(1000, "closed", "the client closed", "nothing")
SHUTTING_DOWN: Final = CloseReason(
    1001,
    "server shutting down",
    "the server is shutting down; `server_shutdown` with retry_after_ms came first",
    "reconnect after that delay, with session_id",
)
PROTOCOL_VIOLATION: Final = CloseReason(
    1002, "protocol error", "the bytes are not WebSocket frames (RFC 6455)", "not reconnect"
)
INVALID_UTF8: Final = CloseReason(
    1007, "invalid UTF-8", "a text message is not UTF-8 (RFC 6455)", "not reconnect"
)
INVALID_DEFLATE: Final = CloseReason(
    1007,
    "invalid compressed data",
    "a compressed message cannot be inflated (RFC 7692)",
    "not reconnect",
)
ORIGIN: Final = CloseReason(
    1008,
    "origin not allowed",
    "the page's origin is not among those that may connect",
    "not reconnect",
)
ABUSE: Final = CloseReason(
    1008,
    "rate limit exceeded",
    "the client kept sending after its messages had been refused",
    "not reconnect",
)
TOO_LARGE: Final = CloseReason(
    1009, "message too large", "a client message is larger than the limit", "not reconnect"
)
OVERLOADED: Final = CloseReason(
    1013, "too many connections", "the server is full", "reconnect with backoff"
)
ADDRESS_FULL: Final = CloseReason(
    1013,
    "too many connections from this address",
    "the client's address has all the connections that one address may have",
    "reconnect with backoff",
)
USER_FULL: Final = CloseReason(
    1013,
    "too many connections of this user",
    "the user has all the connections that one user may have",
    "reconnect with backoff",
)
UNAUTHENTICATED: Final = CloseReason(
    4001,
    "authentication required",
    "the server requires a token, and none came in time, or it cannot verify tokens now",
    "reconnect with a new token",
)
TOKEN_EXPIRED: Final = CloseReason(
    4001,
    "token expired",
    "the client's token has ended; `error` TOKEN_EXPIRED came first",
    "reconnect with a new token",
)
INVALID_TOKEN: Final = CloseReason(
    4500,
    "token invalid",
    "the token of the handshake is not valid, or was revoked; `error` INVALID_TOKEN came first",
    "not reconnect",
)
DISCONNECTED: Final = CloseReason(
    4003,
    "disconnected by the operator",
    "the operator ended the connection; `disconnected` came first and says whether to come back",
    "do as `disconnected` says",
)
TOO_SLOW: Final = CloseReason(
    4008,
    "too slow",
    "the client could not keep up, even conflated",
    "reconnect, with session_id",
)

CLOSE_REASONS: Final = (
    NORMAL,
    SHUTTING_DOWN,
    PROTOCOL_VIOLATION,
    INVALID_UTF8,
    INVALID_DEFLATE,
    ORIGIN,
    ABUSE,
    TOO_LARGE,
    OVERLOADED,
    ADDRESS_FULL,
    USER_FULL,
    UNAUTHENTICATED,
    TOKEN_EXPIRED,
    DISCONNECTED,
    TOO_SLOW,
    INVALID_TOKEN,
)
