"""The interface of a store of client sessions that all servers share."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class StoreUnavailableError(Exception):
    """Records cannot be written or read now."""


class SessionStore(Protocol):
    """Keeps a record of each session, as opaque bytes.

    Its methods raise StoreUnavailableError.
    """

    async def save(self, records: Mapping[str, bytes]) -> None:
        """Keep records by session id, each for the session lifetime from now on."""

    async def forget(self, session_ids: Sequence[str]) -> None:
        """Delete records before their time."""

    async def load(self, session_id: str) -> bytes | None:
        """Return the record of a session, or None if there is none."""
