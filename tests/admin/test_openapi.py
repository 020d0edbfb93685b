"""The OpenAPI document describes the API: requests made from it get answers that it describes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx2
import hypothesis
import pytest
import schemathesis
import trio
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from streamer.admin.models import REQUESTS
from streamer.admin.openapi import open_api
from streamer.config import Settings
from streamer.server import Server, serve
from tests.helpers.operator import HEADERS, key_file
from tests.helpers.timing import DEADLINE_SECONDS

CHECKS: Final = [
    checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
EXAMPLES: Final = 15
"""Requests of each kind to each endpoint: enough that each field is wrong once."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with the API, in a thread: schemathesis blocks while it waits."""
    keys: Path = key_file(tmp_path_factory.mktemp("api"))
    settings = Settings(memory=True, port=0, http_port=0, api_key_file=keys)
    shutdown: list[Any] = []
    started = threading.Event()
    urls: list[str] = []

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(partial(serve, settings))
            token = trio.lowlevel.current_trio_token()
            shutdown.append(partial(token.run_sync_soon, server.shutdown))
            urls.append(server.http_url)
            started.set()

    thread = threading.Thread(target=trio.run, args=(run,), daemon=True)
    thread.start()
    assert started.wait(60)
    yield urls[0]
    shutdown[0]()
    thread.join()


def test_the_server_serves_the_document(url: str) -> None:
    """Without a key, since it is in the reference too."""
    response = httpx2.get(f"{url}/v1/api/openapi.json", timeout=DEADLINE_SECONDS)
    assert (response.status_code, response.json()) == (200, open_api())
    paths = {f"/v1/api/{name}" for name in REQUESTS}
    assert set(open_api()["paths"]) == paths


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("name", REQUESTS)
def test_answers_are_as_described(url: str, name: str, mode: GenerationMode) -> None:
    """Valid requests are carried out, or a field is named; others are refused; none is a fault."""
    document = schemathesis.openapi.from_dict(open_api())
    operation = document[f"/v1/api/{name}"]["POST"]

    @hypothesis.seed(1)
    @hypothesis.settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case[Any]) -> None:
        response = case.call(base_url=url, headers=HEADERS)
        case.validate_response(response, checks=CHECKS)
        if mode is GenerationMode.POSITIVE:
            assert response.status_code in {200, 422}, response.text

    check()
