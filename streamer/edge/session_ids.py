"""Ids of sessions: secrets, since whoever knows one can restore the session."""

from __future__ import annotations

import hashlib
import secrets


def new_session_id() -> str:
    """An id that nobody can guess."""
    return f"s-{secrets.token_urlsafe(12)}"


def short_hash(session_id: str) -> str:
    """Eight hexadecimal digits that tell sessions apart in logs and lists, without their ids."""
    return hashlib.sha256(session_id.encode()).hexdigest()[:8]
