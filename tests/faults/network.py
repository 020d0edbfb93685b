"""What is between clients and servers, and may fail without a word."""

import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

_NO_LINGER: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: with no time to linger, close() sends RST and no FIN."""


@attrs.define(eq=False)
class _Link:
    client: trio.SocketStream
    server: trio.SocketStream
    forwarding: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    open: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    @property
    def is_cut(self) -> bool:
        return self.forwarding.cancel_called or self.open.cancel_called

    async def forward(self) -> None:
        with self.open:
            with self.forwarding:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._copy, self.client, self.server)
                    nursery.start_soon(self._copy, self.server, self.client)
            await trio.sleep_forever()  # silenced: neither end is told

    async def _copy(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            while data := await source.receive_some(65536):
                await sink.send_all(data)
        except trio.BrokenResourceError:
            pass
        self.open.cancel()

    def break_off(self) -> None:
        for stream in (self.client, self.server):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.open.cancel()


class Network:
    """Takes connections to its own port on to `server_port`, which may change."""

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self.server_port = server_port
        self._links: set[_Link] = set()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Listen on 127.0.0.1 inside the block; `port` says where."""
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = listener.socket.getsockname()[1]
            await nursery.start(trio.serve_listeners, self._serve, [listener])
            yield
            nursery.cancel_scope.cancel()

    def silence(self, count: int) -> None:
        """Take nothing more from one end to the other on some of the connections."""
        for link in self._some(count):
            link.forwarding.cancel()

    def break_off(self, count: int) -> None:
        """Break some of the connections: RST to both ends."""
        for link in self._some(count):
            link.break_off()

    def _some(self, count: int) -> list[_Link]:
        whole = [link for link in self._links if not link.is_cut]
        return random.sample(whole, count)

    async def _serve(self, client: trio.SocketStream) -> None:
        async with client, await trio.open_tcp_stream("127.0.0.1", self.server_port) as server:
            link = _Link(client, server)
            self._links.add(link)
            await link.forward()
            self._links.remove(link)
