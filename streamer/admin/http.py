"""The operator's page: statistics, metrics, connections and health over HTTP, on a port of its own.

Starlette on Hypercorn, both of which run on Trio. It is for operators and not for clients: it names
addresses, so it listens on 127.0.0.1 unless told otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import attrs
import orjson
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streamer.admin.metrics import exposition

T = TypeVar("T")


@attrs.frozen
class Readiness:
    """Whether clients should be sent here, and if not, why."""

    ready: bool
    reason: str | None = None


@attrs.frozen
class Report:
    """Where the page gets what it shows. Each is called for each request and gives JSON types.

    They are awaited, since one that speaks for several processes has to ask these.
    """

    statistics: Callable[[], Awaitable[dict[str, Any]]]
    connections: Callable[[], Awaitable[list[dict[str, Any]]]]
    readiness: Callable[[], Awaitable[Readiness]]


def at_once(function: Callable[[], T]) -> Callable[[], Awaitable[T]]:
    """What waits for nothing, for `Report`."""

    async def answer() -> T:
        return function()

    return answer


def make_app(report: Report) -> Starlette:
    """The page as an ASGI application."""

    async def statistics(_request: Request) -> Response:
        return _json(await report.statistics())

    async def metrics(request: Request) -> Response:
        body, content_type = exposition(
            await report.statistics(), request.headers.get("accept", "")
        )
        return Response(body, headers={"Cache-Control": "no-store", "Content-Type": content_type})

    async def connections(_request: Request) -> Response:
        listed = await report.connections()
        return _json({"count": len(listed), "connections": listed})

    async def healthz(_request: Request) -> Response:
        """The loop turns: whoever reads this has the proof."""
        return _json({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        readiness = await report.readiness()
        return _json(attrs.asdict(readiness), 200 if readiness.ready else 503)

    return Starlette(
        routes=[
            Route("/v1/ws/stats", statistics),
            Route("/metrics", metrics),
            Route("/v1/ws/connections", connections),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ]
    )


def _json(content: object, status: int = 200) -> Response:
    body = orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return Response(
        body, status, headers={"Cache-Control": "no-store"}, media_type="application/json"
    )


async def serve_http(
    report: Report,
    host: str,
    port: int,
    *,
    task_status: trio.TaskStatus[str],
) -> None:
    """Serve the page until cancelled; started with its URL, whose port is the real one.

    A `host` of unix:PATH listens on a unix socket there, and the port means nothing.
    Raises OSError where it cannot listen.
    """
    config = Config()
    config.bind = [host if host.startswith("unix:") else f"{host}:{port}"]
    config.errorlog = logging.getLogger("streamer.http")
    config.errorlog.setLevel(logging.WARNING)  # Hypercorn announces its address, and so do we
    config.graceful_timeout = 1.0
    async with trio.open_nursery() as nursery:
        binds = await nursery.start(partial(serve, mode="asgi"), make_app(report), config)
        task_status.started(binds[0])
