"""How a client can fail. What a new connection mends is not among it."""

from collections.abc import Mapping, Sequence
from typing import Any

from streamer.protocol.errors import ErrorCode
from streamer.protocol.messages import RejectedTarget, Subscribed
from streamer.protocol.topics import SubscriptionType

Rejected = tuple[SubscriptionType, RejectedTarget]


class ClientError(Exception):
    """What ends a client, or a request of its; the text is for people."""


class DecodeError(ClientError):
    """What was received is not what a server of this protocol sends."""


class ConnectError(ClientError):
    """There is no server of this protocol where the URL says."""


class ClosedError(ClientError):
    """The server closed the connection with a code that forbids coming back."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the server closed the connection: {reason or 'no reason'} ({code})")
        self.code = code
        self.reason = reason


class ConnectionLostError(ClientError):
    """The connection ended before the answer came; the client itself goes on."""


class RequestError(ClientError):
    """The server answered a request with an `error`."""

    def __init__(self, code: ErrorCode, message: str, details: Mapping[str, Any] | None) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.details = details


class SubscriptionRejectedError(ClientError):
    """Some targets were refused; those that were not are subscribed."""

    def __init__(self, rejected: Sequence[Rejected]) -> None:
        super().__init__(
            "; ".join(
                f"{subscription_type}:{target.target} rejected: {target.message} ({target.code})"
                for subscription_type, target in rejected
            )
        )
        self.rejected = rejected


def rejections(answer: Subscribed) -> list[Rejected]:
    """What an answer refuses, with the type that its targets are of."""
    return [(answer.subscription_type, target) for target in answer.rejected]
