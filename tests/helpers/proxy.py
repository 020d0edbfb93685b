"""A TCP proxy in front of a real Redis: it can speak TLS, and it can go deaf."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio


@attrs.define(eq=False)
class _Link:
    deaf: bool = False


class Proxy:
    """Forwards both ways between its own port and `redis_port`."""

    def __init__(self, redis_port: int, ssl_context: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self._redis_port = redis_port
        self._ssl_context = ssl_context
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

    def deafen(self) -> None:
        """Swallow what Redis says on every connection there is now; later ones are whole."""
        for link in self._links:
            link.deaf = True

    async def _serve(self, client: trio.abc.Stream) -> None:
        if self._ssl_context is not None:
            client = trio.SSLStream(client, self._ssl_context, server_side=True)
        link = _Link()
        self._links.add(link)
        async with (
            client,
            await trio.open_tcp_stream("127.0.0.1", self._redis_port) as redis,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(_copy, client, redis, _Link(), nursery.cancel_scope)
            nursery.start_soon(_copy, redis, client, link, nursery.cancel_scope)
        self._links.remove(link)


async def _copy(
    source: trio.abc.Stream, sink: trio.abc.Stream, link: _Link, both_ways: trio.CancelScope
) -> None:
    try:
        while data := await source.receive_some(65536):
            if not link.deaf:
                await sink.send_all(data)
    except trio.BrokenResourceError:
        pass  # one side vanished: so does the other
    both_ways.cancel()
