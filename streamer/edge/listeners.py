"""Listeners: sockets that are bound and accept connections, for one process or for several."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

import trio

from streamer.config import Settings
from streamer.edge.tls import ServerTls, TlsStream
from streamer.listen_error import ListenError, place_of, split_hosts, without_brackets

_ACCEPT_BACKLOG: Final = 4096
"""Connections that may wait to be accepted, as in a reconnect storm; the kernel's own limit."""

ACCEPTS_PER_TURN: Final = 16
"""Connections accepted before other tasks have a turn: half a millisecond."""

_RETRY_SECONDS: Final = 0.1
"""The delay before another attempt to accept if not even the reserved descriptor is free."""

_PORT_ATTEMPTS: Final = 10
"""Attempts to find a port that is free on several addresses."""

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
"""Errors of accept(2) about a connection that has ended, not about the listening socket."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of accept(2) for lack of descriptors or memory."""

_UNAVAILABLE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""Errors of bind(2) for an address that this machine does not have."""

ClientStream = trio.SocketStream | TlsStream


class BurstListener(trio.abc.Listener[trio.SocketStream]):
    """Accepts several waiting connections in a turn of the event loop.

    `trio.SocketListener` accepts one in each turn. With many connections at once, that limits it to
    2,300 handshakes a second, against 2,800 here (`python -m bench compare --scenario idle`).

    It holds one file descriptor in reserve. If there are no others, that is freed to accept a
    connection and close it at once, so that the client does not wait in the backlog.
    """

    def __init__(self, listening: socket.socket, on_exhausted: Callable[[], object]) -> None:
        """Take over a socket that listens.

        `on_exhausted` is called for each connection that was closed for lack of a descriptor.
        """
        listening.setblocking(False)
        self.socket = listening
        self._on_exhausted = on_exhausted
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._left = 0
        """How many more this turn may take."""

    async def accept(self) -> trio.SocketStream:
        """Wait for the next connection; a checkpoint only once in ACCEPTS_PER_TURN connections.

        Raises OSError if the listening socket is broken.
        """
        while True:
            if not self._left:
                await trio.lowlevel.wait_readable(self.socket)
                self._left = ACCEPTS_PER_TURN
            self._left -= 1
            is_exhausted = False
            try:
                connection, _ = self.socket.accept()
                return trio.SocketStream(trio.socket.from_stdlib_socket(connection))
            except BlockingIOError:
                self._left = 0
            except OSError as error:
                is_exhausted = error.errno in _EXHAUSTED
                if not is_exhausted and error.errno not in _OF_THE_CONNECTION:
                    raise
            if is_exhausted:
                await self._turn_away()

    async def _turn_away(self) -> None:
        """Accept a connection with the reserved descriptor, and close it."""
        self._free_reserve()
        with suppress(OSError):
            connection, _ = self.socket.accept()
            connection.close()
        self._on_exhausted()
        try:
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # the freed descriptor has been taken meanwhile
            await trio.sleep(_RETRY_SECONDS)

    def _free_reserve(self) -> None:
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    async def aclose(self) -> None:
        """Close the socket."""
        self._free_reserve()
        self.socket.close()
        await trio.lowlevel.checkpoint()


class TlsListener(trio.abc.Listener[TlsStream]):
    """Accepts connections for TLS, each with the certificate of its moment."""

    def __init__(self, transport_listener: BurstListener, tls: ServerTls) -> None:
        """Take over a listener. `trio.SSLListener` keeps one context for ever."""
        self.transport_listener = transport_listener
        self._tls = tls

    async def accept(self) -> TlsStream:
        """Wait for the next connection, as `BurstListener.accept`; TLS has not begun then."""
        return self._tls.wrap(await self.transport_listener.accept())

    async def aclose(self) -> None:
        """Close the socket."""
        await self.transport_listener.aclose()


ClientListener = BurstListener | TlsListener


def stream_socket(stream: ClientStream) -> trio.socket.SocketType:
    """Return the socket of a connection that was just accepted; TLS takes it over later."""
    return (stream.transport if type(stream) is TlsStream else stream).socket


async def bind_sockets(host: str, port: int, *, shared: bool) -> list[socket.socket]:
    """Bind a socket for each address of a host, or of several hosts separated by commas.

    They all get the same port, a free one if `port` is 0. `::` alone includes IPv4. An address that
    several of the hosts have is bound once. Addresses of a name that this machine does not have are
    left out if there are others.

    `shared` lets several processes of one user listen there (SO_REUSEPORT): the kernel spreads
    connections over the sockets that listen, by a hash of both addresses.
    `trio.open_tcp_listeners` does not offer that. Raises ListenError.
    """
    may_be_left_out: dict[tuple[int, str], bool] = {}
    for name in map(without_brackets, split_hosts(host)):
        for family, address, is_optional in await _resolve(name, port):
            known = may_be_left_out.get((family, address), True)
            may_be_left_out[family, address] = known and is_optional
    addresses = [(*address, is_optional) for address, is_optional in may_be_left_out.items()]
    both_families = not any(address[0] == socket.AF_INET for address in addresses)
    for attempt in range(_PORT_ATTEMPTS):
        try:
            return _bind_all(addresses, port, shared=shared, both_families=both_families)
        except ListenError as error:
            is_last = attempt == _PORT_ATTEMPTS - 1
            if port or is_last or error.errno != errno.EADDRINUSE:
                raise
    raise AssertionError("the last attempt returns or raises")  # pragma: no cover


_Address = tuple[int, str, bool]
"""Family, address, and whether it may be left out."""


async def _resolve(name: str, port: int) -> list[_Address]:
    try:
        found = await trio.socket.getaddrinfo(
            name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise _listen_error(name, port, error) from None
    addresses = {(int(family), str(sockaddr[0])) for family, _, _, _, sockaddr in found}
    return [(family, address, len(addresses) > 1) for family, address in sorted(addresses)]


def _bind_all(
    addresses: Iterable[_Address], port: int, *, shared: bool, both_families: bool
) -> list[socket.socket]:
    bound: list[socket.socket] = []
    skipped: ListenError | None = None
    try:
        for family, address, is_optional in addresses:
            try:
                one = _bind(family, address, port, shared=shared, both_families=both_families)
            except OSError as error:
                skipped = _listen_error(address, port, error)
                if not (is_optional and error.errno in _UNAVAILABLE):
                    raise skipped from None
            else:
                bound.append(one)
                port = one.getsockname()[1]
    except BaseException:
        close_sockets(bound)
        raise
    if skipped is not None and not bound:
        raise skipped
    return bound


def _bind(
    family: int, address: str, port: int, *, shared: bool, both_families: bool
) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            is_both = both_families and address == "::"
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not is_both)
        one.bind((address, port))
    except BaseException:
        one.close()
        raise
    return one


def _listen_error(host: str, port: int, error: OSError) -> ListenError:
    return ListenError(place_of(host, port), ("host", "port"), error)


def close_sockets(sockets: Iterable[socket.socket]) -> None:
    """Close them all."""
    for one in sockets:
        one.close()


async def open_listeners(
    settings: Settings,
    on_exhausted: Callable[[], object],
    tls: ServerTls | None,
    sockets: Sequence[socket.socket] = (),
) -> list[ClientListener]:
    """Listen on the addresses of the settings, together with other processes if there are workers.

    `on_exhausted` is called for each connection that was closed for lack of a file descriptor.
    `sockets` that listen already are taken over in place of those addresses. Raises ListenError.
    """
    is_shared = settings.workers > 1
    bound = list(sockets) or await bind_sockets(settings.host, settings.port, shared=is_shared)
    try:
        for one in [] if sockets else bound:
            try:
                one.listen(_ACCEPT_BACKLOG)
            except OSError as error:
                host, port = one.getsockname()[:2]
                raise _listen_error(host, port, error) from None
        listeners = [BurstListener(one, on_exhausted) for one in bound]
    except OSError:
        close_sockets(bound)
        raise
    return list(listeners) if tls is None else [TlsListener(one, tls) for one in listeners]


def listener_port(listener: ClientListener) -> int:
    """Return the port that a listener is bound to."""
    inner = listener.transport_listener if isinstance(listener, TlsListener) else listener
    port: int = inner.socket.getsockname()[1]
    return port
