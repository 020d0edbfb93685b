"""Errors of communication with Redis."""

from typing import Any, Final

_SHOWN_CHARACTERS: Final = 100


class RedisConnectionError(Exception):
    """Redis could not be reached, or the connection to it was lost."""


class RedisTimeoutError(RedisConnectionError):
    """Redis did not accept the connection in time, or accepted it and did not answer in time."""


class RedisUnreachableError(RedisConnectionError):
    """No server of a Cluster accepted a connection, so that nothing is known of its state."""


class RedisReplyError(Exception):
    """Redis answered a command with an error; the connection is intact."""


def unexpected_reply(reply: Any) -> RedisConnectionError:
    """Return the error for a reply that Redis never gives to the command.

    The peer is not Redis, or replies and commands no longer match: the connection is unusable.
    """
    return RedisConnectionError(f"unexpected reply from Redis: {reply!r:.{_SHOWN_CHARACTERS}}")
