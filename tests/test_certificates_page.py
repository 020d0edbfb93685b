"""The certificate for development of docs/how-to/certificates.md is one that a server can use."""

from __future__ import annotations

import re
import shutil
import ssl
from pathlib import Path

import pytest
import trio

from streamer.client import open_client
from streamer.config import Settings
from tests.helpers.server import running_server

PAGE = Path(__file__).parents[1] / "docs/how-to/certificates.md"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
async def test_clients_that_trust_the_certificate_connect(tmp_path: Path) -> None:
    """By the command of the page, the server's options and the Python client's, for localhost."""
    (block,) = re.findall(
        r"^```sh\n(openssl req .*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    command, _, serve = block.partition("streamer serve ")
    await trio.run_process(["/bin/sh", "-ec", command], cwd=tmp_path, capture_stderr=True)
    words = serve.split()
    options = {
        name.removeprefix("--").replace("-", "_"): tmp_path / value
        for name, value in zip(words[::2], words[1::2], strict=True)
    }
    assert options.keys() == {"tls_certificate", "tls_key"} <= Settings.__annotations__.keys()
    context = ssl.create_default_context(cafile=str(tmp_path / "chain.pem"))
    async with running_server(**options) as server:
        url = server.websocket_url.replace("127.0.0.1", "localhost")
        async with open_client(url, ssl_context=context) as client:
            await client.subscribe(["stock:A"])
            assert server.statistics().subscriptions == 1
