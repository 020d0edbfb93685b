"""Connections that come through proxies: whose address counts, and when it is known."""

from __future__ import annotations

import trio

from streamer.config import Settings
from streamer.edge.forwarded import Forwarding, TrustedProxies
from streamer.edge.proxy_protocol import ProxyProtocolError, read_header


class Proxies:
    """Finds the address of the client of a connection, by the settings."""

    def __init__(self, settings: Settings) -> None:
        self._trusted = TrustedProxies(settings.trusted_proxies)
        self.needs_header = settings.proxy_protocol == "required"
        """Whether connections begin with a header of the PROXY protocol."""

    def may_be_proxy(self, peer: str) -> bool:
        """Whether a peer that has just connected may do so for clients with other addresses.

        Limits by address hold for the client's address, not for that of a proxy.
        """
        if self.needs_header:
            return not self._trusted or peer in self._trusted
        return peer in self._trusted

    def is_trusted(self, address: str) -> bool:
        """Whether a request from this address may name that of another client."""
        return address in self._trusted

    async def read_address(self, peer: str, client_socket: trio.socket.SocketType) -> str:
        """Return the address of the peer, or of its client if it names one by a PROXY header.

        Raises ProxyProtocolError if there is no valid header, or if it is not believed, and
        trio.BrokenResourceError. Callers set a deadline.
        """
        if not self.needs_header:
            return peer
        if not self.may_be_proxy(peer):
            raise ProxyProtocolError("the peer is not among trusted_proxies")
        return await read_header(client_socket) or peer

    def requested_address(self, address: str, forwarding: Forwarding) -> str:
        """Return the address of a request's client; `address` is that of its connection."""
        return self._trusted.client_address(address, forwarding)
