"""Servers that ask for tokens, and clients that have one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from streamer.server import Server
from tests.auth.tokens import secret_file, signed
from tests.helpers.clients import Client, connected
from tests.helpers.server import running_server


def token(user_id: str = "ann", **claims: Any) -> str:
    """A token of a user that holds for an hour, with these claims."""
    now = int(time.time())
    defaults: dict[str, Any] = {"sub": user_id, "iat": now, "exp": now + 3600}
    return signed(**(defaults | claims))


def bearer(user_id: str = "ann", **claims: Any) -> list[tuple[bytes, bytes]]:
    """The header with such a token."""
    return [(b"Authorization", f"Bearer {token(user_id, **claims)}".encode())]


def identity_settings(directory: Path) -> dict[str, Any]:
    """Settings of a server that takes the tokens of `token`."""
    return {"auth": "optional", "auth_secret_file": secret_file(directory)}


@asynccontextmanager
async def identifying_server(directory: Path, **settings: Any) -> AsyncIterator[Server]:
    """A server that takes the tokens of `token`, and clients without one as well."""
    async with running_server(**(identity_settings(directory) | settings)) as server:
        yield server


@asynccontextmanager
async def user(server: Server, user_id: str = "ann", **claims: Any) -> AsyncIterator[Client]:
    """A client of a user, past its greeting."""
    async with connected(server, headers=bearer(user_id, **claims)) as client:
        yield client
