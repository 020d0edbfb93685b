"""The error for a token that is not accepted."""

from __future__ import annotations

from streamer.protocol.errors import ErrorCode


class TokenError(Exception):
    """A token that is not accepted; the message says why, and never contains any of the token."""

    def __init__(self, code: ErrorCode, message: str, *, is_final: bool = True) -> None:
        """`code` is INVALID_TOKEN or TOKEN_EXPIRED. `is_final` is explained at the attribute."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.is_final = is_final and code is not ErrorCode.TOKEN_EXPIRED
        """Whether the same or a new token cannot help soon.

        If true, the connection is closed with 4500. It is false for an expired token, and where the
        server cannot check tokens now (its keys are away): then it is closed with 4001.
        """


def invalid(message: str, *, is_final: bool = True) -> TokenError:
    """Make a TokenError with the code INVALID_TOKEN."""
    return TokenError(ErrorCode.INVALID_TOKEN, message, is_final=is_final)
