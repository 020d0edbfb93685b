"""TLS of the client port, with a certificate that can be replaced while clients are connected.

Each connection is a socket of the standard library's `ssl`, and no `trio.SSLStream`. That encrypts
into memory, and needs a task to write what it has made. OpenSSL writes to a socket by itself, so a
flush can write to a client under TLS as it writes to any other: at once, without a task.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, final

import trio

from streamer.edge.loop_budget import LoopBudget

_RECEIVE_BYTES: Final = 16 * 1024
"""A record of TLS holds no more."""

_SESSION_TICKETS: Final = 1
"""Tickets that a handshake gives the client, with which it resumes its session when it reconnects.
OpenSSL's two are for clients that open several connections at once."""

_RETRY_SECONDS: Final = 0.05
"""The delay before another attempt to read when TLS has first to write, and the socket is full."""


class TlsWriter:
    """Writes to connections by the descriptors of their sockets, as os.write does without TLS."""

    def __init__(self) -> None:
        self._send: dict[int, Callable[[bytes | memoryview], int]] = {}

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        """Encrypt bytes and write them; return how many were taken.

        Raises BlockingIOError if the socket is full. The next write to it has to begin with the
        same bytes then, since some of them may be encrypted and sent. Raises OSError if the
        connection is broken.
        """
        try:
            return self._send[descriptor](data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            raise BlockingIOError from None
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def add(self, secured: ssl.SSLSocket) -> None:
        """Take a connection whose handshake is done."""
        self._send[secured.fileno()] = secured.send

    def remove(self, secured: ssl.SSLSocket) -> None:
        """Forget a connection, before its socket is closed."""
        self._send.pop(secured.fileno(), None)


@final
class TlsStream(trio.abc.HalfCloseableStream):
    """The stream of one connection. TLS begins with `do_handshake`, or the first read or write.

    It is read by one task and written to by one; of the two, only one makes the handshake. Final,
    so that its type can be asked for: `isinstance` takes five times as long for an abstract class.
    """

    def __init__(
        self, transport: trio.SocketStream, context: ssl.SSLContext, writer: TlsWriter
    ) -> None:
        """Take over an accepted connection, of which nothing has been read but a PROXY header."""
        self.transport = transport
        """The connection below TLS; only TLS uses it from `do_handshake` on."""
        self._context = context
        self._writer = writer
        self._secured: ssl.SSLSocket | None = None
        self._is_secure = False
        self._may_have_data = True
        """Whether the first bytes may have come with the end of the handshake."""

    @property
    def socket(self) -> trio.socket.SocketType | socket.socket:
        """Return the socket below TLS, for its options and addresses."""
        return self.transport.socket if self._secured is None else self._secured

    async def do_handshake(self, loop_budget: LoopBudget | None = None) -> None:
        """Agree on keys, once; the private key's part takes from 0.1 to 1 ms.

        With `loop_budget`, that is left to a later turn if this one is long. Raises
        trio.BrokenResourceError and trio.ClosedResourceError.
        """
        if self._is_secure:
            return
        try:
            secured = self._begin()
        except (OSError, ValueError) as error:  # closed by the peer
            raise trio.BrokenResourceError from error
        try:
            while True:
                if loop_budget is not None and loop_budget.is_long:
                    await loop_budget.wait()
                try:
                    secured.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await trio.lowlevel.wait_readable(secured)
                except ssl.SSLWantWriteError:
                    await trio.lowlevel.wait_writable(secured)
        except ssl.SSLError as error:
            # What is unread when the socket is closed would make the kernel reset the connection,
            # and the client might never see the alert that says why.
            with suppress(OSError):
                os.read(secured.fileno(), _RECEIVE_BYTES)
            raise trio.BrokenResourceError from error
        except OSError as error:
            raise trio.BrokenResourceError from error
        self._is_secure = True
        self._writer.add(secured)

    def _begin(self) -> ssl.SSLSocket:
        if self._secured is None:
            descriptor = self.transport.socket.detach()
            if descriptor < 0:
                raise trio.ClosedResourceError
            plain = socket.socket(fileno=descriptor)
            plain.setblocking(False)  # known to the kernel, and now to Python
            try:
                self._secured = self._context.wrap_socket(
                    plain, server_side=True, do_handshake_on_connect=False
                )
            except BaseException:
                plain.close()
                raise
        return self._secured

    def _opened(self) -> ssl.SSLSocket:
        if self._secured is None or self._secured.fileno() < 0:
            raise trio.ClosedResourceError
        return self._secured

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return bytes from the peer, empty at its end, with close_notify or without.

        Raises trio.BrokenResourceError and trio.ClosedResourceError.
        """
        await self.do_handshake()
        secured = self._opened()
        must_wait = not (self._may_have_data or secured.pending())
        self._may_have_data = False
        if not must_wait:
            await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if must_wait:
                await trio.lowlevel.wait_readable(secured)
            try:
                return secured.recv(max_bytes or _RECEIVE_BYTES)
            except ssl.SSLWantReadError:
                must_wait = True
            except ssl.SSLWantWriteError:
                # To agree on another key. No wait for the socket: the writer task may be in one.
                await trio.sleep(_RETRY_SECONDS)
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes. Raises trio.BrokenResourceError and trio.ClosedResourceError."""
        await self.do_handshake()
        await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            secured = self._opened()
            try:
                rest = rest[secured.send(rest) :]
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(secured)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(secured)
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the socket takes bytes."""
        await self.do_handshake()
        await trio.lowlevel.wait_writable(self._opened())

    async def send_eof(self) -> None:
        """Close this side of the TCP connection, below TLS; the peer may go on sending."""
        secured = self._opened()
        await trio.lowlevel.checkpoint()
        with suppress(OSError):
            # The method of SSLSocket would end TLS in both directions.
            socket.socket.shutdown(secured, socket.SHUT_WR)

    async def aclose(self) -> None:
        """Send close_notify, so that the end is no truncation, if the socket takes it; close."""
        if self._is_secure and self._secured is not None and self._secured.fileno() >= 0:
            with suppress(OSError, ValueError):
                self._secured.unwrap()
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close the socket without close_notify."""
        secured = self._secured
        if secured is None:
            self.transport.socket.close()
        elif secured.fileno() >= 0:
            self._writer.remove(secured)
            trio.lowlevel.notify_closing(secured)
            secured.close()


def _refuse_to_ask() -> str:
    """Raise ssl.SSLError in place of OpenSSL's prompt, for which the event loop would wait."""
    raise ssl.SSLError(0, "the key has a passphrase, which cannot be asked for")


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Read PEM files. Raises OSError, and ssl.SSLError for files that do not go together."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key, password=_refuse_to_ask)
    context.num_tickets = _SESSION_TICKETS
    # In TLS 1.2, a client could ask for it at any time, and a write would have to wait for it.
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


class ServerTls:
    """The TLS context of new connections; those that are open keep the one that they began with."""

    def __init__(self, certificate: Path, key: Path, writer: TlsWriter) -> None:
        """Read PEM files. Raises OSError, and ssl.SSLError for files that do not go together.

        `writer` is for all connections that are made.
        """
        self._certificate = certificate
        self._key = key
        self._writer = writer
        self._context = server_context(certificate, key)

    def reload(self) -> None:
        """Read the files again. Raises the same errors; then nothing has changed."""
        # One context would keep the old certificate beside a new one of another type of key.
        self._context = server_context(self._certificate, self._key)

    def wrap(self, stream: trio.SocketStream) -> TlsStream:
        """Return a stream for a connection that was accepted."""
        return TlsStream(stream, self._context, self._writer)
