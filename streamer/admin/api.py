"""The operator's API over HTTP: POST with JSON at /v1/api/…, for those who have a key.

Everything that does not depend on the endpoint is here: keys, bounds, JSON, and statuses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

import attrs
import orjson
import structlog
import trio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from streamer.admin.keys import ApiKeys
from streamer.admin.models import REQUESTS, ApiError, structure
from streamer.admin.openapi import open_api
from streamer.bounded_log import BoundedLog
from streamer.protocol.codec import CONVERTER
from streamer.protocol.json_text import split_members

PATH: Final = "/v1/api"

_BODY_SECONDS: Final = 10.0
"""How long the body of a request may take to arrive."""

_ROOM_BYTES: Final = 16_384
"""The room for the rest of a request, beside the publication in it."""

_DISCARDED_BYTES: Final = 4_194_304
"""Bytes of a body beyond the bound that are read, and dropped: a client that is still sending would
not see the answer."""

_FAILURE_SECONDS: Final = 1.0
"""How long the answer to a wrong key is delayed, so that guessing takes time."""

_MAX_FAILURES: Final = 64
"""Wrong keys that may wait at a time; the others are answered at once, with 429."""

_SUBJECTS: Final = ("user", "session", "topic", "jti")
"""The fields of requests that the log shows."""

log = structlog.get_logger()

CarryOut = Callable[[Any, Mapping[str, str]], Awaitable[Any]]
"""Takes a request's model, and the text of each member of its body; returns the answer's model.
Raises ApiError."""

Forward = Callable[[str, bytes, str], Awaitable[tuple[int, bytes]]]
"""Takes an endpoint's name, a body and a key; returns the status and body of another's answer."""


@attrs.frozen
class Api:
    """The API of one process: its keys, and who carries requests out."""

    keys: ApiKeys
    max_publication_bytes: int
    carry_out: CarryOut | None = None
    forward: Forward | None = None
    """Where this process does nothing itself: the parent of workers lets one of them do it."""


def api_routes(api: Api | None) -> list[BaseRoute]:
    """Return the routes of the API; without `api` there are none, and all is 404."""
    if api is None:
        return []
    handlers = [
        Route(f"/{name}", partial(_Endpoints(api).answer, name), methods=["POST"])
        for name in REQUESTS
    ]
    document = Route("/openapi.json", _document, methods=["GET"])
    return [Mount(PATH, routes=[*handlers, document])]


async def http_error(_request: Request, error: Exception) -> Response:
    """Answer an error of the routing, such as 404 or 405, in JSON."""
    assert isinstance(error, HTTPException)
    return json_response({"error": error.detail}, error.status_code, dict(error.headers or {}))


async def server_error(_request: Request, _error: Exception) -> Response:
    """Answer a fault, which Hypercorn logs, in JSON."""
    return json_response({"error": "a fault of this server, which is logged"}, 500)


def json_response(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an answer in JSON, indented for people."""
    body = orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return Response(
        body,
        status,
        headers={"Cache-Control": "no-store", **(headers or {})},
        media_type="application/json",
    )


async def _document(_request: Request) -> Response:
    return json_response(open_api())


class _Endpoints:
    """Answers all endpoints."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._failures = 0
        self._warn = BoundedLog(log.warning)

    async def answer(self, name: str, request: Request) -> Response:
        """Answer a request to one endpoint."""
        headers: dict[str, str] = {}
        try:
            return await self._answer(name, request)
        except ApiError as error:
            if error.status == 401:
                headers["WWW-Authenticate"] = "Bearer"
            return json_response(error.to_json(), error.status, headers)
        except ClientDisconnect:
            return json_response({"error": "the client is gone"}, 400)  # nobody reads it

    async def _answer(self, name: str, request: Request) -> Response:
        key, operator = await self._check_key(request)
        body = await self._read(request)
        if self._api.forward is not None:
            status, answer = await self._api.forward(name, body, key)
            return Response(
                answer,
                status,
                headers={"Cache-Control": "no-store"},
                media_type="application/json",
            )
        # Who did what: neither tokens nor messages are in it.
        entry: dict[str, Any] = {"key": operator, "request": name, "status": 200}
        try:
            answer = await self._carry_out(name, body, entry)
        except ApiError as error:
            entry["status"] = error.status
            raise
        finally:
            log.info("operator", **entry)
        return json_response(answer)

    async def _check_key(self, request: Request) -> tuple[str, str]:
        """Return the key and its name."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise ApiError(401, "a key is required: Authorization: Bearer KEY")
        name = self._api.keys.name_of(key)
        if name is None:
            address = request.client.host if request.client is not None else "unix socket"
            self._warn("key", "wrong key for the operator's API", address=address)
            if self._failures >= _MAX_FAILURES:
                raise ApiError(429, "too many wrong keys at a time")
            self._failures += 1
            try:
                await trio.sleep(_FAILURE_SECONDS)
            finally:
                self._failures -= 1
            raise ApiError(403, "the key is not one of this server's")
        return key, name

    async def _read(self, request: Request) -> bytes:
        """Read the body, within bounds of size and time."""
        content_type = request.headers.get("content-type", "application/json")
        if content_type.partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body has to be application/json")
        most_bytes = self._api.max_publication_bytes + _ROOM_BYTES
        body = bytearray()
        read_bytes = 0
        with trio.move_on_after(_BODY_SECONDS):
            async for chunk in request.stream():
                read_bytes += len(chunk)
                if read_bytes <= most_bytes:
                    body += chunk
                elif read_bytes > most_bytes + _DISCARDED_BYTES:
                    break
            if read_bytes > most_bytes:
                raise ApiError(413, f"the body has more than {most_bytes} bytes")
            return bytes(body)
        raise ApiError(408, f"the body did not arrive within {_BODY_SECONDS:g} s")

    async def _carry_out(self, name: str, body: bytes, entry: dict[str, Any]) -> Any:
        try:
            decoded = orjson.loads(body or b"{}")
        except ValueError as error:
            raise ApiError(400, f"the body is not JSON: {error}") from None
        request = structure(REQUESTS[name][0], decoded)
        entry |= {
            subject: value
            for subject in _SUBJECTS
            if (value := getattr(request, subject, None)) is not None
        }
        assert self._api.carry_out is not None  # one of the two is given
        try:
            members = dict(split_members(body.decode())) if body else {}
        except ValueError as error:
            raise ApiError(400, f"the body is not JSON: {error}") from None
        return CONVERTER.unstructure(await self._api.carry_out(request, members))
