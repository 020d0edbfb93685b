"""Many light WebSocket clients in one process: one epoll loop, and no task for a client."""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator

from bench.rig import RigError

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10

_READ_BYTES = 1 << 16
_TURN_SECONDS = 0.05
_HEADER_END = b"\r\n\r\n"
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def request(token: str | None = None, path: str = "/v1/ws") -> bytes:
    """Return the request that opens a WebSocket, with a token in its header if there is one."""
    authorization = "" if token is None else f"Authorization: Bearer {token}\r\n"
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {_KEY}\r\n{authorization}\r\n"
    ).encode()


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """Return one frame of a client, masked with zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else struct.pack("!BH", 0x80 | 126, size)
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


class Connection:
    """One client."""

    __slots__ = ("_received", "close_code", "is_open", "number", "socket", "unsent")

    def __init__(self, number: int, client_socket: socket.socket, unsent: bytes) -> None:
        self.number = number
        self.socket = client_socket
        self.unsent = unsent
        self.is_open = False
        """Whether the answer to the handshake has come."""
        self.close_code: int | None = None
        self._received = b""

    def send(self, data: bytes) -> None:
        """Send a frame, which has to fit into the socket's buffer."""
        if self.socket.send(data) != len(data):
            raise RigError("a socket of the load client is full")

    def take(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the frames that are complete with these bytes."""
        data = self._received + data
        if not self.is_open:
            head, end, rest = data.partition(_HEADER_END)
            if not end:
                self._received = data
                return
            if not head.startswith(b"HTTP/1.1 101"):
                raise RigError(f"a handshake was refused: {head[:80]!r}")
            self.is_open, data = True, rest
        at = 0
        while (bounds := _payload_bounds(data, at)) is not None:
            begin, after = bounds
            yield data[at] & 0x0F, data[begin:after]
            at = after
        self._received = data[at:]


def _payload_bounds(data: bytes, at: int) -> tuple[int, int] | None:
    """Return where the payload of the frame at `at` begins and ends; None if it is not complete."""
    if len(data) < at + 2:
        return None
    length, header = data[at + 1] & 0x7F, at + 2
    if length >= 126:
        width = 2 if length == 126 else 8
        if len(data) < header + width:
            return None
        length, header = int.from_bytes(data[header : header + width]), header + width
    end = header + length
    return None if len(data) < end else (header, end)


class Crowd:
    """Clients, and the loop that reads for all of them. Pings are answered."""

    def __init__(self, on_message: Callable[[Connection, bytes], None]) -> None:
        self._on_message = on_message
        self._poll = select.epoll()
        self._by_descriptor: dict[int, Connection] = {}
        self.connections: list[Connection] = []
        self.opened = 0
        """How many have been sent their first message."""
        self.closed: list[Connection] = []

    def open(self, port: int, head: bytes) -> Connection:
        """Begin to open a client."""
        client_socket = socket.socket()
        client_socket.setblocking(False)
        problem = client_socket.connect_ex(("127.0.0.1", port))
        if problem not in {0, errno.EINPROGRESS}:
            raise RigError(f"a client cannot connect: {errno.errorcode.get(problem)}")
        connection = Connection(len(self.connections), client_socket, head)
        self.connections.append(connection)
        self._by_descriptor[client_socket.fileno()] = connection
        self._poll.register(client_socket, select.EPOLLOUT | select.EPOLLIN)
        return connection

    def open_all(
        self, requests: Iterable[tuple[int, bytes]], *, at_a_time: int, deadline_seconds: float
    ) -> None:
        """Open a client for each port and request; return when all have their first message.

        Raises:
            RigError: that took longer than the deadline.
        """
        end = time.monotonic() + deadline_seconds
        for port, head in requests:
            self.open(port, head)
            self.run(lambda: len(self.connections) - self.opened < at_a_time, end)
        self.run(lambda: self.opened == len(self.connections), end)

    def run(self, is_done: Callable[[], bool], end_seconds: float) -> None:
        """Read until something is done.

        Raises:
            RigError: that took until `end_seconds` of the monotonic clock.
        """
        while not is_done():
            if time.monotonic() > end_seconds:
                raise RigError(
                    f"took too long: {self.opened} of {len(self.connections)} clients were opened, "
                    f"{len(self.closed)} are closed"
                )
            self.read()

    def read(self) -> None:
        """Wait for some events, and take them."""
        for descriptor, event in self._poll.poll(_TURN_SECONDS):
            connection = self._by_descriptor[descriptor]
            if connection.unsent and event & select.EPOLLOUT:
                connection.send(connection.unsent)
                connection.unsent = b""
                self._poll.modify(descriptor, select.EPOLLIN)
            if event & ~select.EPOLLOUT:
                self._receive(connection)

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(_READ_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            self._end(connection)
            return
        was_open = connection.is_open
        for opcode, payload in connection.take(data):
            if opcode == TEXT:
                self._on_message(connection, payload)
            elif opcode == PING:
                connection.send(frame(payload, PONG))
            elif opcode == CLOSE:
                connection.close_code = int.from_bytes(payload[:2])
                connection.send(frame(payload[:2], CLOSE))
                self._end(connection)
                break
        self.opened += connection.is_open and not was_open

    def _end(self, connection: Connection) -> None:
        self._poll.unregister(connection.socket)
        del self._by_descriptor[connection.socket.fileno()]
        connection.socket.close()
        self.closed.append(connection)

    def close(self) -> None:
        """Close all clients."""
        for connection in self._by_descriptor.values():
            connection.socket.close()
        self._by_descriptor.clear()
        self._poll.close()
