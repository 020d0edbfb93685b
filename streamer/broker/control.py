"""The control channel: requests to all server processes on one Redis, and their answers.

Each process reads two channels over a connection of its own, so that market data does not delay
an operator's request: one that all processes read, and one of its own for answers. Redis reports
to how many processes it has passed a request on.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn, Protocol

import structlog

from streamer.bounded_log import BoundedLog
from streamer.broker.cluster_reader import reader_type
from streamer.broker.connect import RedisConnectionError, RedisReplyError, unexpected_reply
from streamer.broker.keys import CONTROL_CHANNEL, control_channel
from streamer.broker.pubsub import Message
from streamer.broker.requests import RedisClient
from streamer.broker.urls import CLUSTER_SCHEMES, has_scheme

_ALL: Final = CONTROL_CHANNEL.encode()

log = structlog.get_logger()


class ControlHandler(Protocol):
    """Takes what arrives on the control channel. Its methods must not wait."""

    def on_request(self, text: bytes) -> None:
        """Take a request to all processes, of this one too."""

    def on_answer(self, text: bytes) -> None:
        """Take an answer to a request of this process."""

    def on_connected(self) -> None:
        """Take note that requests arrive from now on; earlier ones may have been missed."""


class RedisControl:
    """Reads and writes the control channel."""

    def __init__(
        self,
        url: str,
        commands: RedisClient,
        handler: ControlHandler,
        *,
        process_id: str,
        probe_interval_seconds: float,
        probe_timeout_seconds: float,
    ) -> None:
        """`commands` publishes, and is renewed with the connection that reads.

        `process_id` is unique among all processes.
        """
        self._commands = commands
        self._handler = handler
        self._publish = "SPUBLISH" if has_scheme(url, CLUSTER_SCHEMES) else "PUBLISH"
        self._warn = BoundedLog(log.warning)
        self._reader = reader_type(url)(
            url,
            self,
            probe_interval_seconds=probe_interval_seconds,
            probe_timeout_seconds=probe_timeout_seconds,
        )
        self._reader.subscribe([CONTROL_CHANNEL, control_channel(process_id)])

    async def run(self) -> NoReturn:
        """Keep the connection until cancelled."""
        await self._reader.run()
        raise AssertionError("a reader runs until it is cancelled")

    async def ask(self, text: bytes) -> int:
        """Send a request to all processes; return how many received it, this one included.

        Raises RedisConnectionError.
        """
        receivers = await self._send(CONTROL_CHANNEL, text)
        if not isinstance(receivers, int):
            raise unexpected_reply(receivers)
        return receivers

    async def answer(self, process_id: str, text: bytes) -> None:
        """Send an answer to the process that asked. Raises RedisConnectionError."""
        await self._send(control_channel(process_id), text)

    async def _send(self, channel: str, text: bytes) -> Any:
        (reply,) = await self._commands.execute_many([(self._publish, channel, text)])
        if isinstance(reply, RedisReplyError):
            raise RedisConnectionError(f"Redis refused to publish on {channel}: {reply}")
        return reply

    # Called by the reader

    def on_messages(self, messages: list[Message]) -> None:
        """Pass messages on, each to the method for its channel."""
        for channel, payload in messages:
            if channel == _ALL:
                self._handler.on_request(payload)
            else:
                self._handler.on_answer(payload)

    def on_connected(self) -> None:
        """Pass the connection on, and ask the server that is heard from now on."""
        self._commands.renew()
        self._handler.on_connected()

    def on_lost(self, reason: str) -> None:
        """Log that the operator's requests do not arrive for now."""
        self._warn("lost", "control channel lost", reason=reason)

    def on_refused(self, channel: bytes, reason: str) -> None:
        """Log that the operator's requests do not arrive here."""
        self._warn(
            "refused",
            "control channel refused by Redis: requests of operators do not reach this process",
            channel=channel.decode(errors="replace"),
            reason=reason,
        )

    def on_accepted(self, channel: bytes) -> None:
        """Take note that a refused channel is read after all: requests may have been missed."""
        del channel
        self._handler.on_connected()
