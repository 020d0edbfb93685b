"""The last sign of life of a peer that sends nothing: what its system has acknowledged.

A client of an event stream answers no heartbeat, but its TCP acknowledges each one.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

import trio

_TCP_INFO_BYTES: Final = 104
_LAST_ACK_OFFSET: Final = 56
"""The place of `tcpi_last_ack_recv` in Linux' `struct tcp_info`: behind eight bytes and twelve
numbers of 32 bits."""


def seconds_since_acknowledged(
    client_socket: trio.socket.SocketType | socket.socket,
) -> float | None:
    """Return how long ago the peer of a TCP connection last acknowledged anything.

    None where the system does not say: elsewhere than on Linux, or if the connection is gone.
    """
    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return None
    try:
        info = client_socket.getsockopt(socket.IPPROTO_TCP, option, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(info) < _LAST_ACK_OFFSET + 4:
        return None
    (milliseconds,) = struct.unpack_from("=I", info, _LAST_ACK_OFFSET)
    return float(milliseconds) / 1000
