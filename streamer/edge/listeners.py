"""Where clients arrive: sockets that are bound and listen, for one process or for several."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Final

import trio

from streamer.config import Settings

_ACCEPT_BACKLOG: Final = 4096
"""Connections that may wait to be accepted, as in a reconnect storm; the kernel's own limit."""

ACCEPTS_PER_TURN: Final = 16
"""Connections taken before others have their turn: half a millisecond."""

_OF_THE_CONNECTION: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
        errno.ETIMEDOUT,
    }
)
"""What accept(2) says of a connection that is gone already, and not of the listening socket."""


class BurstListener(trio.abc.Listener[trio.SocketStream]):
    """Accepts what has arrived, several connections in a turn of the event loop.

    `trio.SocketListener` takes one in each turn. Where many come at once, that made the turns the
    limit, and not what is done for a connection: 2,300 handshakes a second where this has 2,800
    (`python -m bench compare --scenario idle`).
    """

    def __init__(self, listening: socket.socket) -> None:
        """Take over a socket that listens."""
        listening.setblocking(False)
        self.socket = listening
        self._left = 0
        """How many more this turn may take."""

    async def accept(self) -> trio.SocketStream:
        """The next connection; waits, and gives others a turn, only now and then.

        Raises OSError where there are no descriptors left, say: `trio.serve_listeners` knows these.
        """
        while True:
            if not self._left:
                await trio.lowlevel.wait_readable(self.socket)
                self._left = ACCEPTS_PER_TURN
            self._left -= 1
            try:
                connection, _ = self.socket.accept()
            except BlockingIOError:
                self._left = 0
            except OSError as error:
                if error.errno not in _OF_THE_CONNECTION:
                    raise
            else:
                return trio.SocketStream(trio.socket.from_stdlib_socket(connection))

    async def aclose(self) -> None:
        """Close the socket."""
        self.socket.close()
        await trio.lowlevel.checkpoint()


ClientListener = BurstListener | trio.SSLListener[trio.SocketStream]


async def bind_sockets(host: str, port: int, *, shared: bool) -> list[socket.socket]:
    """A bound socket for each address of the host; for the first alone where the port is 0.

    `shared` lets several processes of one user listen there at once (SO_REUSEPORT): the kernel
    spreads connections over those sockets that listen, by a hash of both addresses. Done here since
    `trio.open_tcp_listeners` has no such choice. Raises OSError.
    """
    found = await trio.socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    # Each address would get a free port of its own; clients are told of one.
    places = found if port else found[:1]
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _name, address in places:
            bound.append(one := socket.socket(family, kind, protocol))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
    except BaseException:
        close_sockets(bound)
        raise
    return bound


def close_sockets(sockets: list[socket.socket]) -> None:
    """Close them all."""
    for one in sockets:
        one.close()


async def open_listeners(settings: Settings) -> list[ClientListener]:
    """Listen where the settings say, beside other processes where they name several workers.

    Raises OSError, and ssl.SSLError for a certificate that does not fit.
    """
    context: ssl.SSLContext | None = None
    if settings.tls_certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    bound = await bind_sockets(settings.host, settings.port, shared=settings.workers > 1)
    try:
        for one in bound:
            one.listen(_ACCEPT_BACKLOG)
    except OSError:
        close_sockets(bound)
        raise
    listeners = [BurstListener(one) for one in bound]
    if context is None:
        return list(listeners)
    return [trio.SSLListener(listener, context, https_compatible=True) for listener in listeners]


def listener_port(listener: ClientListener) -> int:
    """The port that a listener has got."""
    inner = listener.transport_listener if isinstance(listener, trio.SSLListener) else listener
    assert isinstance(inner, BurstListener)
    port: int = inner.socket.getsockname()[1]
    return port
