"""The whole screen of a terminal, for a table that is drawn again and again.

The alternate screen leaves what was there before; it is left on every exit but SIGKILL, also when
the process is suspended with Ctrl-Z.
"""

import os
import re
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import trio
from rich.console import Console, RenderableType
from rich.live import Live

_KEY: Final = re.compile(rb"\x1b[\[O](?:[A-Z]|\d+~)|.", re.DOTALL)
"""An escape sequence (ECMA-48) or one character."""

_READ_BYTES: Final = 256


class Screen:
    """An alternate screen; made by `open_screen`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._keys = _Keys(sys.stdin.fileno()) if _is_foreground_terminal() else None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in characters, which change when the window does."""
        return self._console.size.width, self._console.size.height

    def enter(self) -> None:
        """Switch to the alternate screen."""
        self._live = Live(
            console=self._console, screen=True, auto_refresh=False, vertical_overflow="crop"
        )
        self._live.start()
        if self._keys is not None:
            self._keys.begin()

    def leave(self) -> None:
        """Switch back, with all that was on the screen before."""
        if self._keys is not None:
            self._keys.end()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def draw(self, renderable: RenderableType) -> None:
        """Show something in place of what is there."""
        if self._live is not None:
            self._live.update(renderable, refresh=True)

    async def read_keys(self, on_key: Callable[[bytes], None]) -> None:
        """Call `on_key` for each key: a character, or an escape sequence.

        Returns where stdin is no terminal.
        """
        if self._keys is not None:
            await self._keys.read(on_key)

    async def handle_suspension(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Leave the screen while the process is suspended (Ctrl-Z, then `fg`)."""
        with trio.open_signal_receiver(signal.SIGTSTP) as signals:
            task_status.started()
            async for _ in signals:
                self.leave()
                # A receiver has taken the place of what SIGTSTP does by default.
                os.kill(os.getpid(), signal.SIGSTOP)
                self.enter()
        raise AssertionError("a signal receiver never ends by itself")  # pragma: no cover


def _is_foreground_terminal() -> bool:
    """Whether keys are typed for this process: a job in the background would be stopped."""
    try:
        return sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):  # no terminal of its own; closed
        return False


class _Keys:
    """A terminal of which each key is read at once, without being shown."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._before: list[Any] = termios.tcgetattr(file)

    def begin(self) -> None:
        tty.setcbreak(self._file)  # Ctrl-C and Ctrl-Z remain signals

    def end(self) -> None:
        termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)

    async def read(self, on_key: Callable[[bytes], None]) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._file)
            if not (data := os.read(self._file, _READ_BYTES)):
                return
            for key in _KEY.findall(data):
                on_key(key)


@contextmanager
def open_screen() -> Iterator[Screen]:
    """Show the alternate screen while the block runs."""
    screen = Screen(Console())
    try:
        screen.enter()
        yield screen
    finally:
        screen.leave()
