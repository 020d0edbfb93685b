"""Talk to the service manager, if one has started this process: systemd, or another like it.

It may hand over sockets that listen, see sd_listen_fds(3), wait for messages about the state of the
service, see sd_notify(3), and restart one that sends none for too long, see sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

import attrs
import structlog
import trio

from streamer.cli.errors import CommandError, ExitCode

FIRST_DESCRIPTOR: Final = 3
"""The first of the sockets; the others follow (SD_LISTEN_FDS_START)."""

_MICROSECONDS: Final = 1_000_000

log = structlog.get_logger()


def take_sockets(environment: MutableMapping[str, str]) -> list[socket.socket]:
    """Return the sockets that were handed over to this process, and remove the variables.

    Processes that it starts do not inherit the sockets. Raises CommandError if one of them is no
    TCP socket that listens.
    """
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    return [_take(FIRST_DESCRIPTOR + number) for number in range(int(count))]


def _take(descriptor: int) -> socket.socket:
    problem = f"LISTEN_FDS: descriptor {descriptor} is no TCP socket that listens"
    try:
        one = socket.socket(fileno=descriptor)
        one.set_inheritable(False)
        listens = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise CommandError(f"{problem}: {error.strerror}", ExitCode.CANNOT_LISTEN) from None
    is_tcp = one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM
    if not (is_tcp and listens):
        raise CommandError(problem, ExitCode.CANNOT_LISTEN)
    return one


@attrs.frozen
class ServiceManager:
    """Where to send messages about the state; without an address, nothing is sent."""

    address: str = ""
    """A unix socket: a path, or `@` and a name in the abstract namespace."""
    watchdog_seconds: float = 0.0
    """The process is restarted if it sends nothing for so long; 0: it is not watched."""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> ServiceManager:
        """Read the variables, and remove them: processes that this one starts send nothing."""
        address = environment.pop("NOTIFY_SOCKET", "")
        pid = environment.pop("WATCHDOG_PID", str(os.getpid()))
        microseconds = environment.pop("WATCHDOG_USEC", "")
        is_watched = microseconds.isdecimal() and pid == str(os.getpid())
        return cls(
            address if address.startswith(("/", "@")) else "",
            int(microseconds) / _MICROSECONDS if is_watched else 0.0,
        )

    def ready(self, status: str) -> None:
        """Report that the service has started, or has reloaded; `status` is one line for people."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """Report that a reload has begun; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that the service is stopping."""
        self._send("STOPPING=1\nSTATUS=sending clients elsewhere")

    async def keep_alive(self) -> None:
        """Report at half the time of the watchdog that the event loop runs, until cancelled."""
        while self.watchdog_seconds:
            self._send("WATCHDOG=1")
            await trio.sleep(self.watchdog_seconds / 2)

    def _send(self, message: str) -> None:
        if not self.address:
            return
        address = self.address
        if address.startswith("@"):
            address = f"\0{address[1:]}"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
                one.setblocking(False)
                one.sendto(message.encode(), address)
        except OSError as error:
            # It is the manager's loss: the service goes on.
            log.warning("the service manager takes no messages", reason=str(error))
