"""The client for browsers, streamer.js, as static files of the HTTP port.

Any page may load them, from any origin: they are the same for everybody and have no data in them.
"""

from __future__ import annotations

import gzip
import hashlib
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MODULES: Final = ("streamer.js", "streamer-shared.js", "streamer-sse.js")
"""The files that are served, each at the path of its name."""


def routes() -> list[Route]:
    """Return a route for each file."""
    return [_route(name) for name in MODULES]


def _route(name: str) -> Route:
    body = resources.files("streamer").joinpath("web", name).read_bytes()
    gzipped = gzip.compress(body, mtime=0)
    headers = {
        "Access-Control-Allow-Origin": "*",
        "Cache-Control": "no-cache",  # kept, and revalidated at each use
        "Cross-Origin-Resource-Policy": "cross-origin",
        # Weak (RFC 9110, 8.8.3), since both encodings have the same one.
        "ETag": f'W/"{hashlib.sha256(body).hexdigest()[:32]}"',
        "Vary": "Accept-Encoding",
        "X-Content-Type-Options": "nosniff",
    }

    async def serve(request: Request) -> Response:
        """Answer 304 (RFC 9110, 15.4.5) if the browser has this version, else the file."""
        known = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
        if headers["ETag"] in known:
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(body, headers=headers, media_type="text/javascript")
        encoded = headers | {"Content-Encoding": "gzip"}
        return Response(gzipped, headers=encoded, media_type="text/javascript")

    return Route(f"/{name}", serve)
