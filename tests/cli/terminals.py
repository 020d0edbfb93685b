"""A terminal for programs: a pty whose output an emulator shows."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pyte
import trio

from tests.helpers.timing import eventually, real_deadline

_LAUNCH: Final = (
    "import fcntl, os, sys, termios\n"
    "os.setsid()\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)
"""Makes stdin the controlling terminal, as a login does, and becomes the program."""

ENTER: Final = b"\x1b[?1049h"
LEAVE: Final = b"\x1b[?1049l"
"""The sequences by which a program switches to the alternate screen, and back (xterm)."""


class Terminal:
    """A program on a terminal."""

    def __init__(self, controller: int, process: trio.Process, size: tuple[int, int]) -> None:
        self._controller = controller
        self.process = process
        self.output = b""
        self._screen = pyte.Screen(*size)
        self._emulator = pyte.ByteStream(self._screen)

    @property
    def lines(self) -> list[str]:
        """The lines that the screen shows, without the spaces at their ends."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def shows_keys(self) -> bool:
        """Whether typed characters are shown and held until the end of a line, as in a shell."""
        flags = termios.tcgetattr(self._controller)[3]
        return bool(flags & termios.ECHO and flags & termios.ICANON)

    @property
    def is_stopped(self) -> bool:
        """Whether the program is suspended (proc(5))."""
        status = Path(f"/proc/{self.process.pid}/stat").read_text()
        return status.rpartition(")")[2].split()[0] == "T"

    @property
    def after(self) -> str:
        """The output after the alternate screen was left."""
        return self.output.rpartition(LEAVE)[2].decode()

    def type(self, keys: bytes) -> None:
        """Type some keys."""
        os.write(self._controller, keys)

    def resize(self, width: int, height: int) -> None:
        """Change the size of the window."""
        _set_size(self._controller, width, height)
        self._screen.resize(height, width)

    async def shown(self, text: str) -> list[str]:
        """Wait until a text is on the screen; return its lines."""
        await eventually(lambda: any(text in line for line in self.lines))
        return self.lines

    async def read(self) -> None:
        """Feed the output to the emulator, to its end."""
        async with trio.lowlevel.FdStream(os.dup(self._controller)) as stream:
            try:
                while True:
                    data = bytes(await stream.receive_some())
                    self.output += data
                    self._emulator.feed(data)
            except trio.BrokenResourceError:
                pass  # how Linux says that the other side is closed


def _set_size(controller: int, width: int, height: int) -> None:
    fcntl.ioctl(controller, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


@asynccontextmanager
async def on_terminal(
    arguments: Sequence[str], *, width: int = 120, height: int = 20
) -> AsyncIterator[Terminal]:
    """Run Python with these arguments on a terminal; it does not outlive the block."""
    controller, side = pty.openpty()
    _set_size(controller, width, height)
    environment = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"}}
    async with real_deadline(), trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", _LAUNCH, sys.executable, *arguments],
            stdin=side,
            stdout=side,
            stderr=subprocess.STDOUT,
            env=environment | {"TERM": "xterm-256color"},
        )
        os.close(side)
        terminal = Terminal(controller, process, (width, height))
        nursery.start_soon(terminal.read)
        try:
            yield terminal
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            nursery.cancel_scope.cancel()
            os.close(controller)
