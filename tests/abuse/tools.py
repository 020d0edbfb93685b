"""Connections of attackers: many, from many addresses, and with frames made by hand."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast

import trio
from wsproto.frame_protocol import FrameProtocol, Opcode

from tests.abuse.attack import Target
from tests.helpers.clients import RawClient, client_frame

TEXT: Final = 0x81
PONG: Final = 0x8A
_PER_ADDRESS: Final = 4
"""Connections from one address: fewer than a server allows by default."""
_numbers = itertools.count()

GONE: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, EOFError)
"""How a connection fails that the server has ended."""


def address(number: int) -> str:
    """One of many addresses of this machine: all of 127.0.0.0/8 are."""
    return f"127.1.{number // 250 % 250}.{1 + number % 250}"


async def dial(port: int, source: str | None = None) -> trio.SocketStream:
    """Open a TCP connection, from an address that has few others where none is given."""
    source = source or address(next(_numbers) // _PER_ADDRESS)
    client_socket = trio.socket.socket()
    try:
        await client_socket.bind((source, 0))
        await client_socket.connect(("127.0.0.1", port))
    except BaseException:
        client_socket.close()
        raise
    return trio.SocketStream(client_socket)


class Attacker(RawClient):
    """A client whose frames are made by hand."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self._parser = FrameProtocol(client=True, extensions=[])
        self._ready: list[dict[str, Any]] = []
        self._text = ""
        self.close_code: int | None = None
        self.pinged_at: list[float] = []
        """When pings have come, on trio's clock."""

    async def request(self, **message: Any) -> dict[str, Any]:
        """Send a message and read up to its answer."""
        await self.send(request_id="r", **message)
        while (answer := await self.message()).get("request_id") != "r":
            pass
        return answer

    async def message(self) -> dict[str, Any]:
        """Return the next message; pings are answered. Raises EOFError and ValueError."""
        while not self._ready:
            self._parser.receive_bytes(bytes(self._received) or await self._read())
            self._received.clear()
            for frame in self._parser.received_frames():
                if frame.opcode is Opcode.PING:
                    self.pinged_at.append(trio.current_time())
                    await self.send_frame(PONG, cast("bytes", frame.payload))
                elif frame.opcode is Opcode.CLOSE:
                    self.close_code = int(frame.payload[0])
                elif frame.opcode is Opcode.TEXT:
                    self._text += str(frame.payload)
                    if frame.message_finished:
                        text, self._text = self._text, ""
                        self._ready.append(json.loads(text))
        return self._ready.pop(0)

    async def _read(self) -> bytes:
        data = await self.stream.receive_some()
        if not data:
            raise EOFError
        return bytes(data)

    async def subscribe(self, targets: list[str], **options: Any) -> None:
        """Subscribe to stocks, a hundred in a request, and do not read the answers."""
        for start in range(0, len(targets), 100):
            await self.send(
                type="subscribe",
                subscription_type="stock",
                targets=targets[start : start + 100],
                **options,
            )


@asynccontextmanager
async def client(
    target: Target, source: str | None = None, query: str = "", *, frames: bytes = b""
) -> AsyncIterator[Attacker]:
    """A WebSocket connection of an attacker, past its handshake."""
    stream = await dial(target.port, source)
    try:
        attacker = Attacker(stream)
        await attacker.open(target.path + query, trailing=frames)
        await attacker.response()
        yield attacker
    finally:
        await trio.aclose_forcefully(stream)


async def crowd(
    count: int, run: Callable[[int], Awaitable[object]], seconds: float | None = None
) -> None:
    """Run attackers at once; one whose connection ends starts again where `seconds` are given."""
    deadline = time.monotonic() + (seconds or 0)

    async def one(number: int) -> None:
        while True:
            with suppress(*GONE):
                await run(number)
            if time.monotonic() > deadline:
                return
            await trio.sleep(0.01)

    with trio.move_on_after(seconds + 1 if seconds else 60):
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(one, number)


async def read_all(attacker: Attacker) -> None:
    """Read, and drop what comes, until the server ends the connection."""
    with suppress(*GONE):
        while await attacker.stream.receive_some():
            pass


def names(prefix: str, count: int) -> list[str]:
    """Targets."""
    return [f"{prefix}{number}" for number in range(count)]


def frame(first_byte: int, payload: bytes = b"") -> bytes:
    """A client's frame."""
    return client_frame(first_byte, payload)


def request_frame(**message: Any) -> bytes:
    """The frame of a message."""
    return client_frame(TEXT, json.dumps(message).encode())
