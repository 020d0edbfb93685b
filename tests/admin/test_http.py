"""The operator's HTTP listener: which hosts it may be asked by, and how much at a time."""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import Any

import httpx2
import pytest
import structlog
import trio

from streamer.admin.http import Readiness, Report, at_once, serve_http
from tests.helpers.http import http_client
from tests.helpers.server import get_page, running_server
from tests.helpers.timing import eventually, real_deadline


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8766", 200),
        ("[::1]:8766", 200),
        ("LOCALHOST:1", 200),
        ("Streamer.internal.:8766", 200),
        ("evil.example", 421),
        ("evil.example:8766", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
    ],
)
async def test_a_host_that_is_neither_an_address_nor_configured_is_refused(
    host: str, status: int
) -> None:
    """A web page whose name resolves to this address (DNS rebinding) reads nothing."""
    async with (
        running_server(http_allowed_hosts=("streamer.internal",)) as server,
        http_client(base_url=server.http_url) as client,
    ):
        response = await client.get("/v1/ws/connections", headers={"Host": host})
    assert response.status_code == status


async def test_that_nothing_can_be_accepted_is_logged_at_a_bounded_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a traceback; the port serves again when there is a descriptor."""
    async with running_server() as server:
        missed = 0

        async def accept(self: trio.SocketListener) -> trio.SocketStream:
            nonlocal missed
            await trio.lowlevel.wait_readable(self.socket)
            missed += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with structlog.testing.capture_logs() as logs, monkeypatch.context() as patched:
            patched.setattr(trio.SocketListener, "accept", accept)
            async with http_client(base_url=server.http_url) as client:
                # The accept that was under way takes this one.
                assert (await client.get("/healthz")).status_code == 200
            async with trio.open_nursery() as nursery:
                nursery.start_soon(get_page, server, "/healthz")
                await eventually(lambda: missed >= 3)
                patched.undo()
        assert [(line["log_level"], "EMFILE" in line["event"]) for line in logs] == [
            ("warning", True)
        ]


async def test_requests_for_statistics_wait_for_their_turn() -> None:
    """A crowd of them does not hold up clients; whether the server is healthy is said at once."""
    asked: list[trio.Event] = []
    statuses: list[int] = []
    crowd = 20

    async def statistics() -> dict[str, Any]:
        asked.append(trio.Event())
        await asked[-1].wait()
        return {}

    report = Report(statistics, at_once(list), at_once(lambda: Readiness(ready=True)))
    async with real_deadline(), trio.open_nursery() as nursery:
        url = await nursery.start(partial(serve_http, report, "127.0.0.1", 0))
        async with (
            httpx2.AsyncClient(base_url=url, timeout=None) as client,
            trio.open_nursery() as asking,
        ):

            async def ask() -> None:
                statuses.append((await client.get("/v1/ws/stats")).status_code)

            for _ in range(crowd):
                asking.start_soon(ask)
            while len(statuses) < crowd:
                for path in ("/healthz", "/readyz"):
                    assert (await client.get(path)).status_code == 200
                waiting = [event for event in asked if not event.is_set()]
                assert len(waiting) <= 5  # one of them for the samples
                for event in waiting:
                    event.set()
        nursery.cancel_scope.cancel()
