"""The page of a live market, which `streamer demo` serves on the HTTP port.

Its files are static. What differs from server to server is in market.json, which the page loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import attrs
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from streamer.admin.api import json_response
from streamer.admin.pages import common_files, page_file
from streamer.protocol.endpoint import WEBSOCKET_PATH

MARKET_PATH: Final = "/market/"

_FILES: Final = ("index.html", "market.css", "market.js", "ladder.js", "line.js", "stock.js")
"""The files of the page; the first one is the page itself."""


@attrs.frozen
class ListedStock:
    """A stock of the page."""

    code: str
    name: str
    market: str
    sector: str


@attrs.frozen
class MarketPage:
    """The contents of the page: the topics that it shows."""

    stocks: Sequence[ListedStock]
    markets: Sequence[str]
    levels: int
    """Levels of each side of an order book."""
    token: str | None = None
    """The token of the user whose alerts it shows. Whoever can load the page gets it."""


PageRoute: TypeAlias = Route
"""A route of a page."""


def market_routes(page: MarketPage, *, websocket_port: int, encrypted: bool) -> list[PageRoute]:
    """Return the routes of the page.

    It connects to `websocket_port` of the host that it was loaded from.
    """
    contents: dict[str, Any] = attrs.asdict(page) | {
        "port": websocket_port,
        "path": WEBSOCKET_PATH,
        "encrypted": encrypted,
    }

    async def contents_json(_request: Request) -> Response:
        return json_response(contents)

    async def redirect(_request: Request) -> Response:
        return RedirectResponse(f"{MARKET_PATH.strip('/')}/")

    return [
        page_file(MARKET_PATH, f"market/{_FILES[0]}", to_websockets=True),
        *(page_file(f"{MARKET_PATH}{name}", f"market/{name}") for name in _FILES[1:]),
        *common_files(MARKET_PATH),
        Route(f"{MARKET_PATH}market.json", contents_json),
        Route(MARKET_PATH.removesuffix("/"), redirect),
    ]
