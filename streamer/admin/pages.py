"""Static files of the pages on the HTTP port, with headers that keep everything else out."""

from __future__ import annotations

from importlib import resources
from pathlib import PurePosixPath
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_MEDIA_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

_COMMON: Final = ("page.css", "page.js", "icon.svg")
"""Files that all pages share; each page has them beside its own."""


def common_files(path: str) -> list[Route]:
    """Return routes below `path`, which ends with a slash, for the files that all pages share."""
    return [page_file(f"{path}{name}", f"common/{name}") for name in _COMMON]


def page_file(path: str, file: str, *, to_websockets: bool = False) -> Route:
    """Return the route of a file in streamer/web, read once.

    Pages may connect to the server that they come from, and with `to_websockets` to WebSockets on
    any port of its host.
    """
    body = resources.files("streamer").joinpath("web", *file.split("/")).read_bytes()
    media_type = _MEDIA_TYPES[PurePosixPath(file).suffix]

    async def serve(request: Request) -> Response:
        connections = "'self'"
        if to_websockets:
            host = request.url.hostname or ""
            shown_host = f"[{host}]" if ":" in host else host
            connections += f" ws://{shown_host}:* wss://{shown_host}:*"
        return Response(
            body,
            media_type=media_type,
            headers={
                "Cache-Control": "no-cache",
                # Nothing from elsewhere, and nothing in the page itself that a message could bring
                # in.
                "Content-Security-Policy": (
                    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
                    f"connect-src {connections}; "
                    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
                ),
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
            },
        )

    return Route(path, serve)
