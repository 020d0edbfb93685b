"""The access token of a client: a fixed one, or a function that gets a new one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Final

import trio

Token = str | Callable[[], str | Awaitable[str]]
"""A token, or a function (async or not) that returns one and is called for each that is needed."""

_TOKEN: Final = re.compile("[!-~]+")
"""A token that a header can carry: visible ASCII (RFC 9110, 11.4), without spaces."""


class TokenSource:
    """Gets tokens, one at a time.

    A connection that is made while a token is being renewed uses the same one: two calls at a time
    would use a refresh token twice, which revokes it with many identity providers.
    """

    def __init__(self, token: Token | None) -> None:
        """Raises ValueError for a fixed token that no header can carry."""
        self._token = token if callable(token) else _checked(token)
        self._lock = trio.Lock()
        self._calls = 0
        self._last: str | None = None

    @property
    def renews(self) -> bool:
        """Whether it can get a new token."""
        return callable(self._token)

    async def get(self) -> str | None:
        """Return a token, a new one if possible; None if the client has none.

        Raises what the function raises, and ValueError if no header can carry what it returns.
        """
        if not callable(self._token):
            return self._token
        calls = self._calls
        async with self._lock:
            if self._calls == calls:
                token = self._token()
                self._last = _checked(await token if inspect.isawaitable(token) else token)
                self._calls += 1
            return self._last


def _checked(token: str | None) -> str | None:
    """Return a token. Raises ValueError, without its text, for one that no header can carry."""
    if token is not None and not _TOKEN.fullmatch(token):
        raise ValueError("the token is empty, or has spaces, line ends or other invalid characters")
    return token
