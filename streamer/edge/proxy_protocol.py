"""The PROXY protocol, versions 1 and 2: a header by which a proxy names its client.

The proxy sends it before anything else, before TLS too. It is specified with HAProxy
(doc/proxy-protocol.txt).
"""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import trio

from streamer.edge.addresses import normal_address

_V1_START: Final = b"PROXY "
_V1_MAX_BYTES: Final = 107
"""The longest header of version 1, its CRLF included."""
_V1_ADDRESSES: Final = {b"TCP4": IPv4Address, b"TCP6": IPv6Address}
_V1_PORT: Final = re.compile(rb"0|[1-9][0-9]{0,4}")

_V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_HEAD_BYTES: Final = 16
_V2_MAX_BYTES: Final = 4096
"""The longest header of version 2, some 30 times the usual ones. The protocol allows 65,551 bytes,
of which most would be additional fields, which are skipped here."""
_V2_ADDRESS_BYTES: Final = {0x11: 4, 0x21: 16}
"""The bytes of one address, by family and transport: TCP over IPv4 and over IPv6."""
_PORTS_BYTES: Final = 4


class ProxyProtocolError(Exception):
    """The bytes are no header of the PROXY protocol."""


async def read_header(client_socket: trio.socket.SocketType) -> str | None:
    """Read the header, and nothing after it; callers set a deadline.

    Returns the address of the proxy's client; None if the header has none, as that of a health
    check of the proxy itself. Raises ProxyProtocolError, and trio.BrokenResourceError if the
    connection ends before the header does.
    """
    header = b""
    try:
        while True:
            # Peeked at, since what follows may be for TLS, which reads from the socket itself.
            peeked = await client_socket.recv(_V2_MAX_BYTES, socket.MSG_PEEK)
            if not peeked:
                raise trio.BrokenResourceError("closed before the PROXY protocol header")
            length = header_length(header + peeked)
            missing = len(peeked) if length is None else length - len(header)
            header += await client_socket.recv(min(missing, len(peeked)))
            if length == len(header):
                return source_address(header)
    except OSError as error:
        raise trio.BrokenResourceError from error


def header_length(received: bytes) -> int | None:
    """Return the length of the header that these bytes begin with; None if that takes more bytes.

    While it is None, all bytes belong to the header. Raises ProxyProtocolError.
    """
    if _V2_SIGNATURE.startswith(received[: len(_V2_SIGNATURE)]):
        if len(received) < _V2_HEAD_BYTES:
            return None
        length = _V2_HEAD_BYTES + int.from_bytes(received[14:16])
        if length > _V2_MAX_BYTES:
            raise ProxyProtocolError("the header is too long")
        return length
    if _V1_START.startswith(received[: len(_V1_START)]):
        end = received.find(b"\r\n", 0, _V1_MAX_BYTES)
        if end >= 0:
            return end + 2
        if len(received) >= _V1_MAX_BYTES:
            raise ProxyProtocolError("the header is too long")
        return None
    raise ProxyProtocolError("the connection does not begin with a header")


def source_address(header: bytes) -> str | None:
    """Return the address of the proxy's client in a whole header; None if it has none.

    Raises ProxyProtocolError.
    """
    if header.startswith(_V1_START):
        return _v1_source(header)
    return _v2_source(header)


def _v1_source(header: bytes) -> str | None:
    fields = header.removesuffix(b"\r\n").split(b" ")
    if fields[1] == b"UNKNOWN":
        return None  # whatever follows
    try:
        _, family, source, destination, *ports = fields
        for address in source, destination:
            _V1_ADDRESSES[family](address.decode("ascii"))
    except (KeyError, ValueError):
        raise ProxyProtocolError("the header has no valid addresses") from None
    are_valid = all(_V1_PORT.fullmatch(port) and int(port) <= 0xFFFF for port in ports)
    if len(ports) != 2 or not are_valid:
        raise ProxyProtocolError("the header has no valid ports")
    return normal_address(source.decode())


def _v2_source(header: bytes) -> str | None:
    version, command = divmod(header[12], 16)
    if version != 2 or command > 1:
        raise ProxyProtocolError("the version or the command is not known")
    if command == 0:  # LOCAL: the proxy itself, and whatever follows does not count
        return None
    family, transport = divmod(header[13], 16)
    if family > 3 or transport > 2:
        raise ProxyProtocolError("the family or the transport is not known")
    size = _V2_ADDRESS_BYTES.get(header[13])
    if size is None:
        return None  # unix sockets and datagrams: the same as unspecified
    if len(header) < _V2_HEAD_BYTES + 2 * size + _PORTS_BYTES:
        raise ProxyProtocolError("the header is shorter than its addresses")
    packed = header[_V2_HEAD_BYTES : _V2_HEAD_BYTES + size]
    return normal_address(str(IPv4Address(packed) if size == 4 else IPv6Address(packed)))
