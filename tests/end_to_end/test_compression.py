"""Compression with clients that are not ours: they inflate what a shared compressor has made.

Each joins a group of a client that has long been there, is sent more, leaves its group and joins it
again, and must have read every publication as it was.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import pytest
import trio
from websockets.sync.client import connect

from streamer.client import open_client
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually
from tests.web.driver import node

PUBLICATIONS: Final = 30
SUBSCRIBE: Final = json.dumps(
    {"type": "subscribe", "subscription_type": "stock", "targets": ["A"], "kinds": ["price"]}
)
AGAIN: Final = json.dumps(json.loads(SUBSCRIBE) | {"snapshot": False})
"""With it a client leaves its group and joins it again."""

NODE_PROGRAM: Final = """
const socket = new WebSocket(process.argv[1]);
const messages = [];
socket.onmessage = (event) => {
  const message = JSON.parse(event.data);
  if (message.type === "connected") socket.send(process.argv[2]);
  const inner = message.messages ?? [message];
  messages.push(...inner.filter((one) => one.type === "price_update" && !one.snapshot));
  if (messages.length === 10) socket.send(process.argv[3]);
  if (messages.length >= Number(process.argv[4])) {
    socket.onmessage = socket.onerror = null;
    console.log(JSON.stringify({ extensions: socket.extensions, messages }));
    socket.close();
  }
};
socket.onerror = (event) => { console.error(event.message); process.exit(1); };
"""


def with_websockets(url: str) -> tuple[str, list[dict[str, Any]]]:
    """The extension and the messages that websockets gets."""
    received: list[dict[str, Any]] = []
    with connect(url) as socket:
        assert socket.response is not None
        extension = socket.response.headers["Sec-WebSocket-Extensions"]
        socket.send(SUBSCRIBE)
        while len(received) < PUBLICATIONS:
            _take(received, socket.recv())
            if len(received) == 10:
                socket.send(AGAIN)
    return extension, received


def with_aiohttp(url: str) -> tuple[str, list[dict[str, Any]]]:
    """The extension and the messages that aiohttp gets."""

    async def run() -> tuple[str, list[dict[str, Any]]]:
        received: list[dict[str, Any]] = []
        async with aiohttp.ClientSession() as session, session.ws_connect(url, compress=15) as ws:
            extension = ws._response.headers["Sec-WebSocket-Extensions"]  # it has no other way
            await ws.send_str(SUBSCRIBE)
            while len(received) < PUBLICATIONS:
                _take(received, (await ws.receive_str()))
                if len(received) == 10:
                    await ws.send_str(AGAIN)
        return extension, received

    return asyncio.run(run())


def with_node(url: str) -> tuple[str, list[dict[str, Any]]]:
    """The extension and the messages that the WebSocket of Node (undici) gets."""
    command = [str(node()), "--no-warnings", "--eval", NODE_PROGRAM, url, SUBSCRIBE, AGAIN]
    done = subprocess.run(
        [*command, str(PUBLICATIONS)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done
    result = json.loads(done.stdout)
    return result["extensions"], result["messages"]


def _take(received: list[dict[str, Any]], text: str | bytes) -> None:
    message = json.loads(text)
    received.extend(
        one
        for one in message.get("messages", [message])
        if one["type"] == "price_update" and not one.get("snapshot")
    )


@pytest.mark.parametrize("client", [with_websockets, with_aiohttp, with_node])
async def test_other_clients_inflate_what_a_shared_compressor_makes(
    client: Callable[[str], tuple[str, list[dict[str, Any]]]],
) -> None:
    """All that was published while they were there, whatever the window held before they came."""
    async with (
        running_server(
            compression_min_members=1, compression_stretch_limit_ms=60_000, flush_interval_ms=0
        ) as server,
        open_client(server.websocket_url, compress=True) as resident,
        trio.open_nursery() as nursery,
    ):
        await resident.subscribe(["stock:A"], kinds=["price"])
        results = []

        async def run() -> None:
            results.append(await trio.to_thread.run_sync(client, server.websocket_url))

        for number in range(20):
            publish(server, "stock:A:price", price("A", number))
        nursery.start_soon(run)
        await eventually(lambda: server.statistics().subscriptions == 2)
        number = 20
        while not results:
            publish(server, "stock:A:price", price("A", number))
            await resident.receive()
            number += 1
            await trio.lowlevel.checkpoint()
        ((extension, received),) = results
        assert extension.startswith("permessage-deflate; client_no_context_takeover")
        assert [message["sequence"] - message["price"] for message in received] == [1] * len(
            received
        )
        sequences = [message["sequence"] for message in received]
        assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
        compression = server.statistics().compression
        assert compression is not None
        assert compression.full_flushes >= 2
