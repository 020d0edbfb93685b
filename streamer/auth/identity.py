"""The user that a verified token names."""

from __future__ import annotations

import attrs

from streamer.protocol.patterns import TopicPattern


@attrs.frozen
class Identity:
    """A user, and what the token grants; times are seconds since the epoch of Unix."""

    user_id: str
    """The claim `sub`: a valid target, 1 to 64 characters."""
    expires_at: float | None = None
    """The claim `exp`, without leeway; None for a token that does not expire."""
    issued_at: float | None = None
    """The claim `iat`, if the token has it."""
    token_id: str | None = None
    """The claim `jti`, if the token has it."""
    patterns: tuple[TopicPattern, ...] = ()
    """The claim `topics`: what the token grants besides public topics and the user's own."""
