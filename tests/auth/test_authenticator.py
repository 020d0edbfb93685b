"""The authenticator: tokens that are accepted, and what is wrong with the others.

Covers streamer.auth.claims, streamer.auth.errors, streamer.auth.jwks, streamer.auth.key_files,
streamer.auth.keys, streamer.auth.refresh, streamer.auth.requests, streamer.auth.revocations and
streamer.auth.signing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamer.auth.authenticator import Authenticator
from streamer.auth.errors import TokenError
from streamer.config import Settings
from streamer.protocol.errors import ErrorCode
from tests.auth.tokens import NOW, secret_file, signed


def authenticator(directory: Path, **settings: Any) -> Authenticator:
    """An authenticator with one shared secret, whose clock is NOW."""
    return Authenticator(
        Settings(auth="required", auth_secret_file=secret_file(directory), **settings),
        clock=lambda: NOW,
    )


async def test_a_token_gives_an_identity(tmp_path: Path) -> None:
    """User, times and patterns are the claims; afterwards the token is known."""
    parts = authenticator(tmp_path)
    token = signed(jti="1", topics=["stock:*", "watchlist:7/*"])
    assert parts.known(token) is None
    identity = await parts.authenticate(token)
    assert (identity.user_id, identity.token_id) == ("42", "1")
    assert (identity.issued_at, identity.expires_at) == (int(NOW), int(NOW) + 3600)
    assert [str(pattern) for pattern in identity.patterns] == ["stock:*", "watchlist:7/*"]
    assert parts.known(token) is identity


async def test_an_expired_token_says_so(tmp_path: Path) -> None:
    """It is not final: a new token helps."""
    with pytest.raises(TokenError, match="expired") as refused:
        await authenticator(tmp_path).authenticate(signed(exp=int(NOW) - 31))
    assert refused.value.code is ErrorCode.TOKEN_EXPIRED
    assert not refused.value.is_final
