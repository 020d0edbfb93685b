"""TLS of the client port, with a certificate that can be replaced while clients are connected."""

from __future__ import annotations

import ssl
from pathlib import Path

import trio


class ServerTls:
    """The TLS context of new connections; those that are open keep the one that they began with."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Read PEM files. Raises OSError, and ssl.SSLError for files that do not go together."""
        self._certificate = certificate
        self._key = key
        self._context = self._read()

    def _read(self) -> ssl.SSLContext:
        # A context of its own for each certificate: one context would keep the old certificate
        # beside a new one of another type of key.
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._certificate, self._key)
        return context

    def reload(self) -> None:
        """Read the files again. Raises the same errors; then nothing has changed."""
        self._context = self._read()

    def wrap(self, stream: trio.SocketStream) -> trio.SSLStream[trio.SocketStream]:
        """Return a stream whose TLS handshake begins with the first read or write."""
        return trio.SSLStream(stream, self._context, server_side=True, https_compatible=True)
