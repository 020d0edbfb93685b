"""Statistics, metrics, connections and health for the operator: HTTP on a port of its own.

The requests that change something are in `streamer.admin.api`, the page for people in
`streamer.admin.operator`.

It is Starlette on Hypercorn, both of which run on Trio. It shows addresses of clients, so it
listens on 127.0.0.1 by default. A web page that an operator visits may make its own name resolve to
that address (DNS rebinding), so only requests are served whose Host is an address, localhost, or a
name from the settings.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_address
from typing import Any, Final, TypeVar

import attrs
import orjson
import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from streamer.admin import assets
from streamer.admin.api import Api, api_routes, http_error, json_response, server_error
from streamer.admin.metrics import exposition
from streamer.admin.operator import operator_routes
from streamer.admin.recent import INTERVAL_SECONDS, Recent
from streamer.bounded_log import BoundedLog
from streamer.listen_error import ListenError, place_of
from streamer.nursery import first_of

T = TypeVar("T")

log = structlog.get_logger()

_CONNECTIONS_PER_TURN: Final = 500
"""Connections written as JSON in a turn of the event loop, each on a line of its own."""

_READS_AT_A_TIME: Final = 4
"""Requests for statistics, metrics or connections that are answered at a time: each takes some
milliseconds, and all that arrive together would hold up the clients for as long."""

Handler = Callable[[Request], Awaitable[Response]]


@attrs.frozen
class Readiness:
    """Whether a load balancer should send clients here, and if not, why."""

    ready: bool
    reason: str | None = None


@attrs.frozen
class Report:
    """The functions that make the answers, called for each request; they return JSON types.

    They are async, since the parent of several workers has to ask these.
    """

    statistics: Callable[[], Awaitable[dict[str, Any]]]
    connections: Callable[[], Awaitable[list[dict[str, Any]]]]
    readiness: Callable[[], Awaitable[Readiness]]


def at_once(function: Callable[[], T]) -> Callable[[], Awaitable[T]]:
    """Wrap a synchronous function as an async one, for `Report`."""

    async def answer() -> T:
        return function()

    return answer


def make_app(
    report: Report,
    recent: Recent,
    *,
    api: Api | None = None,
    pages: Sequence[Route] = (),
    allowed_hosts: Collection[str] | None,
) -> ASGIApp:
    """Return all pages as an ASGI application; with `allowed_hosts` None, any Host is served.

    `pages` are served besides.
    """

    async def statistics(_request: Request) -> Response:
        return json_response(await report.statistics())

    async def metrics(request: Request) -> Response:
        body, content_type = exposition(
            await report.statistics(), request.headers.get("accept", "")
        )
        return Response(body, headers={"Cache-Control": "no-store", "Content-Type": content_type})

    async def connections(_request: Request) -> Response:
        listed = await report.connections()
        parts = []
        for first in range(0, len(listed), _CONNECTIONS_PER_TURN):
            part = listed[first : first + _CONNECTIONS_PER_TURN]
            parts.append(b",\n".join(map(orjson.dumps, part)))
            await trio.lowlevel.checkpoint()
        body = b'{"count":%d,"connections":[\n%b\n]}\n' % (len(listed), b",\n".join(parts))
        headers = {"Cache-Control": "no-store"}
        return Response(body, headers=headers, media_type="application/json")

    async def samples(request: Request) -> Response:
        try:
            since_seconds = float(request.query_params.get("since", "0"))
        except ValueError:
            return json_response({"error": "since: must be seconds since 1970"}, 400)
        listed = [attrs.asdict(sample) for sample in recent.since(since_seconds)]
        return json_response({"interval_seconds": INTERVAL_SECONDS, "samples": listed})

    async def healthz(_request: Request) -> Response:
        """Answer; any answer proves that the event loop runs."""
        return json_response({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        readiness = await report.readiness()
        return json_response(attrs.asdict(readiness), 200 if readiness.ready else 503)

    limiter = trio.CapacityLimiter(_READS_AT_A_TIME)
    app = Starlette(
        routes=[
            Route("/v1/ws/stats", _limited(statistics, limiter)),
            Route("/metrics", _limited(metrics, limiter)),
            Route("/v1/ws/connections", _limited(connections, limiter)),
            Route("/v1/ws/recent", _limited(samples, limiter)),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            *assets.routes(),
            *operator_routes(),
            *api_routes(api),
            *pages,
        ],
        exception_handlers={HTTPException: http_error, Exception: server_error},
    )
    return app if allowed_hosts is None else _CheckHost(app, allowed_hosts)


def _limited(handler: Handler, limiter: trio.CapacityLimiter) -> Handler:
    """Wrap a handler so that requests wait for their turn."""

    async def answer(request: Request) -> Response:
        async with limiter:
            return await handler(request)

    return answer


class _CheckHost:
    """Refuses requests whose Host names neither an address nor an allowed host."""

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str]) -> None:
        self._app = app
        self._allowed_hosts = frozenset(_host_name(host) for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 421 (RFC 9110, 15.5.20), or pass the request on."""
        if scope["type"] == "http" and not self._is_allowed(scope):
            refusal = json_response({"error": "this host is not among http_allowed_hosts"}, 421)
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        return all(self._is_allowed_host(host.decode("latin-1")) for host in hosts)

    def _is_allowed_host(self, host: str) -> bool:
        name = _host_name(host)
        if name == "localhost" or name in self._allowed_hosts:
            return True
        try:
            ip_address(name.strip("[]").partition("%")[0])
        except ValueError:
            return False
        return True


def _host_name(host: str) -> str:
    """Return a Host without its port and trailing dot, in lower case."""
    return re.sub(r":\d*$", "", host.strip()).removesuffix(".").lower()


@asynccontextmanager
async def _quiet_listener() -> AsyncIterator[None]:
    """Log at a bounded rate, without a traceback, that no connection can be accepted.

    Without a free file descriptor, trio's listener tries again ten times a second.
    """
    warn = BoundedLog(log.warning)

    def take(record: logging.LogRecord) -> bool:
        warn("accept", f"operator's port: {record.getMessage()}")
        return False

    logger = logging.getLogger("trio.serve_listeners")
    logger.addFilter(take)
    try:
        yield
    finally:
        logger.removeFilter(take)


async def serve_http(
    report: Report,
    host: str,
    port: int,
    *,
    api: Api | None = None,
    pages: Sequence[Route] = (),
    allowed_hosts: Collection[str] = (),
    task_status: trio.TaskStatus[str],
) -> None:
    """Serve all pages until cancelled; started with their URL, which has the real port.

    Without `api`, all below /v1/api is 404. `pages` are served besides.

    A `host` of unix:PATH listens on a unix socket there; then the port is ignored, and any Host is
    served, since no web page can reach it. `allowed_hosts` are the names that a Host may have
    besides addresses and localhost. Raises ListenError, in an exception group.
    """
    config = Config()
    is_unix = host.startswith("unix:")
    place = host if is_unix else place_of(host, port)
    config.bind = [place]
    config.errorlog = logging.getLogger("streamer.http")
    config.errorlog.setLevel(logging.WARNING)  # no second line with the address
    config.graceful_timeout = 1.0
    hosts = None if is_unix else (*allowed_hosts, host)
    recent = Recent(report.statistics)
    app = make_app(report, recent, api=api, pages=pages, allowed_hosts=hosts)
    async with _quiet_listener(), trio.open_nursery() as nursery:
        try:
            binds = await nursery.start(partial(serve, mode="asgi"), app, config)
        except* OSError as group:
            error = first_of(group)
            assert isinstance(error, OSError)
            raise ListenError(place, ("http_host", "http_port"), error) from None
        nursery.start_soon(recent.run)
        task_status.started(binds[0])
