"""Tokens that are revoked: not valid any more, although they have not expired."""

from __future__ import annotations

from typing import Protocol

from streamer.auth.identity import Identity


class Revocations(Protocol):
    """Knows which tokens were revoked. It never waits: it is asked for each token used."""

    def is_revoked(self, identity: Identity) -> bool:
        """Whether the token of this identity was revoked."""
        ...


class NoRevocations:
    """No token is revoked."""

    def is_revoked(self, identity: Identity) -> bool:
        """Return False."""
        del identity
        return False
