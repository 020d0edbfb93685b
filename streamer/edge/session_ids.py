"""Ids of sessions: secrets, since a session can be restored by its id alone."""

from __future__ import annotations

import hashlib
import secrets


def new_session_id() -> str:
    """Return an id that cannot be guessed."""
    return f"s-{secrets.token_urlsafe(12)}"


def short_hash(session_id: str) -> str:
    """Return eight hexadecimal digits that identify a session in logs without revealing its id."""
    return hashlib.sha256(session_id.encode()).hexdigest()[:8]
