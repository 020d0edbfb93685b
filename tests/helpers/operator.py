"""The operator's API, as a test uses it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx2

from streamer.server import Server
from tests.helpers.http import http_client
from tests.helpers.server import running_server

KEY: Final = "an-operator-key-of-32-characters"
HEADERS: Final = {"Authorization": f"Bearer {KEY}"}


def key_file(directory: Path) -> Path:
    """Write a file with one key, `alice`'s."""
    path = directory / "keys"
    path.write_text(f"# the operators\n\nalice:{KEY}\n")
    return path


class Operator:
    """Somebody with a key."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.client = client

    async def post(self, name: str, **body: Any) -> tuple[int, dict[str, Any]]:
        """Post a request; return the status and the answer."""
        response = await self.client.post(f"/v1/api/{name}", json=body)
        return response.status_code, response.json()

    async def done(self, name: str, **body: Any) -> dict[str, Any]:
        """Post a request that must be carried out; return the answer."""
        status, answer = await self.post(name, **body)
        assert status == 200, answer
        return answer


@asynccontextmanager
async def operator_of(http_url: str) -> AsyncIterator[Operator]:
    """An operator of the server with this URL."""
    async with http_client(base_url=http_url, headers=HEADERS) as client:
        yield Operator(client)


@asynccontextmanager
async def two_servers(
    redis_url: str, keys: Path, **settings: Any
) -> AsyncIterator[tuple[Server, Server]]:
    """Two servers on one Redis, which hear each other."""
    chosen = {"redis": redis_url, "api_key_file": keys, "api_timeout_seconds": 30} | settings
    async with running_server(**chosen) as one, running_server(**chosen) as other:
        await until_heard(one, 2)
        yield one, other


async def until_heard(server: Server, processes: int) -> None:
    """Wait until a server reaches so many processes."""
    async with operator_of(server.http_url) as operator:
        while (await operator.done("info"))["answered"] < processes:
            pass
