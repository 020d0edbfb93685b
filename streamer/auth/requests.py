"""Requests to an identity provider, with bounds on time and size."""

from __future__ import annotations

import logging
from typing import Final

import httpx2

TIMEOUT_SECONDS: Final = 10.0
"""How long a provider may take: clients wait, and most end their own requests after 10 to 30 s."""

logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs each request


class HttpProblem(Exception):  # noqa: N818 - reads as what it says
    """A request without a usable answer; the message says why, without the request's content."""


async def bounded_body(
    client: httpx2.AsyncClient, request: httpx2.Request, *, max_bytes: int
) -> tuple[int, bytes]:
    """Send a request; return the status and the body. Raises HttpProblem."""
    try:
        response = await client.send(request, stream=True)
        try:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > max_bytes:
                    raise HttpProblem(f"answered with more than {max_bytes} bytes")
            return response.status_code, bytes(body)
        finally:
            await response.aclose()
    except httpx2.HTTPError as error:
        raise HttpProblem(f"cannot be reached: {type(error).__name__}") from None
