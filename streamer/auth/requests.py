"""Requests to an identity provider, with bounds on time and size."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

import httpx2
import trio

TIMEOUT_SECONDS: Final = 10.0
"""How long a provider may take: clients wait, and most end their own requests after 10 to 30 s."""

_HEADERS: Final = {"accept": "application/json", "accept-encoding": "identity"}
"""Uncompressed, so that what arrives bounds what is held."""

logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs each request


class HttpProblem(Exception):  # noqa: N818 - reads as what it says
    """A request without a usable answer; the message says why, without the request's content."""


async def request_json(
    client: httpx2.AsyncClient,
    method: str,
    url: str,
    *,
    max_bytes: int,
    form: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Send a request; return the status and the body. Raises HttpProblem."""
    try:
        request = client.build_request(method, url, data=form, headers=_HEADERS)
        with trio.fail_after(TIMEOUT_SECONDS):
            response = await client.send(request, stream=True)
            try:
                body = await _read(response, max_bytes)
            finally:
                await response.aclose()
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise HttpProblem(f"cannot be reached: {type(error).__name__}") from None
    except trio.TooSlowError:
        raise HttpProblem(f"has not answered within {TIMEOUT_SECONDS:g} s") from None
    if len(body) > max_bytes:
        raise HttpProblem(f"has answered with more than {max_bytes} bytes")
    return response.status_code, body


async def _read(response: httpx2.Response, max_bytes: int) -> bytes:
    """Read a body; one that is too large is read only a little further than `max_bytes`."""
    body = bytearray()
    # Cancelled from inside: generators of httpx2 that are left half-way are not closed.
    with trio.CancelScope() as scope:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > max_bytes:
                scope.cancel()
    return bytes(body)
