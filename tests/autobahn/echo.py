"""A server that sends each message back: `python -m tests.autobahn.echo [CERTIFICATE KEY]`.

Everything from the listener to the socket is the server's own: handshake, frames, outbox, heartbeat
and close. Only what a session does with a message is replaced. The first line on stdout is the URL.
"""

from __future__ import annotations

import sys
from typing import Final

import structlog
import trio

from streamer.config import Settings
from streamer.edge import acceptor
from streamer.edge.session import Session
from streamer.server import serve

LARGEST_MESSAGE_BYTES: Final = 64 * 2**20
"""The largest messages of the suite have 16 MiB."""
_MANY: Final = 1000
"""Members of a group that is large enough for a compressor with a window."""


class EchoSession(Session):
    """A session without a greeting that sends each message back."""

    __slots__ = ("_echoes",)

    def _greeting(self) -> bytes:
        # With a window, as if the connection were a group of clients.
        self._echoes = self.outbox.wire.for_group(_MANY, has_newcomer=False)
        return b""

    async def _take(self, message: str | bytes) -> None:
        payload = message.encode() if isinstance(message, str) else message
        frame = self._echoes.data([(0, payload, True)], list)
        if isinstance(message, bytes):  # opcode 2 in place of 1
            frame = bytes((frame[0] + 1,)) + frame[1:]
        self.outbox.send_control(frame)
        await self._websocket.wait_room()


# Where the session no longer has one of these, its own would answer, and every case fail.
assert vars(EchoSession).keys() & vars(Session).keys() >= {"_greeting", "_take"}


async def main(*certificate_and_key: str) -> None:
    """Serve until killed."""
    certificate, key = certificate_and_key or (None, None)
    settings = Settings(
        memory=True,
        port=0,
        http_port=0,
        tls_certificate=certificate,  # type: ignore[arg-type]  # converted to a Path
        tls_key=key,  # type: ignore[arg-type]
        max_connections_per_address=0,
        rate_limit=0,
        max_message_bytes=LARGEST_MESSAGE_BYTES,
        max_unread_replies_bytes=LARGEST_MESSAGE_BYTES,
        heartbeat_interval_seconds=3600,
        compression_min_bytes=0,
        max_compression_bytes=2**40,
    )
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    vars(acceptor)["Session"] = EchoSession
    async with trio.open_nursery() as nursery:
        server = await nursery.start(lambda **keywords: serve(settings, **keywords))
        sys.stdout.write(f"{server.websocket_url}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
