"""The client for browsers, streamer.js, as static files of the HTTP port.

Any page may load them, from any origin: they are the same for everybody and have no data in them.
"""

from __future__ import annotations

import gzip
import hashlib
from functools import partial
from importlib import resources
from typing import Final

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MODULES: Final = ("streamer.js",)
"""The files that are served, each at the path of its name."""


@attrs.frozen
class _Asset:
    """A file, read and compressed once."""

    body: bytes
    gzipped: bytes
    etag: str
    """Changes with the content (RFC 9110, 8.8.3); weak, since both encodings have the same."""


def routes() -> list[Route]:
    """Return a route for each file."""
    return [Route(f"/{name}", partial(_serve, _load(name))) for name in MODULES]


def _load(name: str) -> _Asset:
    body = resources.files("streamer").joinpath("web", name).read_bytes()
    etag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
    return _Asset(body, gzip.compress(body, mtime=0), etag)


async def _serve(asset: _Asset, request: Request) -> Response:
    """Answer 304 (RFC 9110, 15.4.5) if the browser has this version, else the file."""
    headers = {
        "Access-Control-Allow-Origin": "*",
        "Cache-Control": "no-cache",  # kept, and asked about at each use
        "Cross-Origin-Resource-Policy": "cross-origin",
        "ETag": asset.etag,
        "Vary": "Accept-Encoding",
        "X-Content-Type-Options": "nosniff",
    }
    known = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.etag in known:
        return Response(status_code=304, headers=headers)
    body = asset.body
    if "gzip" in request.headers.get("accept-encoding", ""):
        body = asset.gzipped
        headers["Content-Encoding"] = "gzip"
    return Response(body, headers=headers, media_type="text/javascript")
