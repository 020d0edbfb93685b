"""A TCP proxy in front of a server: it can use TLS, stop a direction, and break connections."""

from __future__ import annotations

import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

_NO_LINGER: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: with no time to linger, close() sends RST and no FIN."""


class Proxy:
    """Forwards both ways between its own port and `server_port`, which may change."""

    def __init__(self, server_port: int = 0, ssl_context: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self.server_port = server_port
        self._ssl_context = ssl_context
        self.delay_seconds = 0.0
        """How long each piece is held back before it is forwarded."""
        self.piece_bytes = 65536
        """The most that is forwarded at once."""
        self.withheld: bytes | None = None
        """A piece that has these bytes is dropped."""
        self._links: dict[_Link, None] = {}
        """Open connections, the oldest first."""

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Listen on 127.0.0.1 inside the block; `port` is the port of it."""
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = listener.socket.getsockname()[1]
            await nursery.start(trio.serve_listeners, self._serve, [listener])
            yield
            nursery.cancel_scope.cancel()

    def deafen(self) -> None:
        """Drop what the server sends on the connections of now; later connections are whole."""
        for link in self._links:
            link.is_deaf = True

    async def inject(self, data: bytes) -> None:
        """Send bytes to the client of the oldest connection, as if the server had sent them."""
        await next(iter(self._links)).client.send_all(data)

    @property
    def open_connections(self) -> int:
        """How many are neither silenced nor broken."""
        return sum(not link.is_cut for link in self._links)

    def silence(self, count: int) -> None:
        """Forward nothing more, either way, on some of the connections, which stay open."""
        for link in self._some(count):
            link.forwarding.cancel()

    def break_off(self, count: int) -> None:
        """Break some of the connections: RST to both ends."""
        for link in self._some(count):
            link.break_off()

    def _some(self, count: int) -> list[_Link]:
        return random.sample([link for link in self._links if not link.is_cut], count)

    async def _serve(self, accepted: trio.SocketStream) -> None:
        client: trio.abc.Stream = accepted
        if self._ssl_context is not None:
            client = trio.SSLStream(accepted, self._ssl_context, server_side=True)
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self.server_port)
        except OSError:  # the server is down: so is the connection to it
            await trio.aclose_forcefully(accepted)
            return
        async with client, server:
            link = _Link(self, client, server, (accepted.socket, server.socket))
            self._links[link] = None
            await link.forward()
            del self._links[link]


@attrs.define(eq=False)
class _Link:
    proxy: Proxy
    client: trio.abc.Stream
    server: trio.abc.Stream
    sockets: tuple[trio.socket.SocketType, ...]
    is_deaf: bool = False
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
            await trio.sleep_forever()  # silenced: the connections stay open

    async def _copy(self, source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
        try:
            while data := await source.receive_some(self.proxy.piece_bytes):
                await trio.sleep_until(trio.current_time() + self.proxy.delay_seconds)
                withheld = self.proxy.withheld
                is_dropped = withheld is not None and withheld in data
                if not is_dropped and not (self.is_deaf and source is self.server):
                    await sink.send_all(data)
        except trio.BrokenResourceError:
            pass  # one side vanished: so does the other
        self.open.cancel()

    def break_off(self) -> None:
        for end in self.sockets:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.open.cancel()
