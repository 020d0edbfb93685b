"""The errors that a client raises. A lost connection raises none: the client reconnects."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from streamer.protocol.errors import ErrorCode
from streamer.protocol.messages import RejectedTarget, Subscribed
from streamer.protocol.topics import SubscriptionType

Rejected = tuple[SubscriptionType, RejectedTarget]

_PASSING: Final = frozenset({ErrorCode.RATE_LIMIT_EXCEEDED, ErrorCode.INTERNAL_ERROR})
"""Error codes after which the same request may succeed."""


class ClientError(Exception):
    """A client, or one of its requests, has failed; the text is for people."""


class DecodeError(ClientError):
    """A message that the client needs cannot be read: a greeting, or the answer to a request."""


class ConnectError(ClientError):
    """There is no server of this protocol at the URL."""


class ClosedError(ClientError):
    """The server closed the connection with a code that forbids reconnecting."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the server closed the connection: {reason or 'no reason'} ({code})")
        self.code = code
        self.reason = reason


class ConnectionLostError(ClientError):
    """The connection ended before the answer arrived; the client itself continues."""


class RequestError(ClientError):
    """The server answered a request with an `error`."""

    def __init__(
        self, code: ErrorCode | str, message: str, details: Mapping[str, Any] | None
    ) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.details = details

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.code in _PASSING


class SubscriptionRejectedError(ClientError):
    """Some targets were rejected; the others are subscribed to."""

    def __init__(self, rejected: Sequence[Rejected]) -> None:
        super().__init__(
            "; ".join(
                f"{subscription_type}:{target.target} rejected: {target.message} ({target.code})"
                for subscription_type, target in rejected
            )
        )
        self.rejected = rejected


def rejections(answer: Subscribed) -> list[Rejected]:
    """Return the rejected targets of an answer, each with its subscription type."""
    return [(answer.subscription_type, target) for target in answer.rejected]
