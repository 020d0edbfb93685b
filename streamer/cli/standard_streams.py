"""The standard streams of a command, of which some may be closed, or on a disk that is full."""

import errno
import io
import os
import sys
from typing import Final

_UNWRITABLE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""Errors of a write that are of the place written to, and no fault of the program."""


def open_closed_streams() -> None:
    """Open /dev/null in place of each stream that the caller has closed.

    Otherwise a socket would get its number, and be sent what the command prints.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The least number that is free: that of the stream.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def replace_unwritable_characters() -> None:
    """Let stdout write `?` for a character that the terminal's encoding does not have.

    The name of a stock would otherwise end a command, and a table would leave its screen behind.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def is_unwritable(error: BaseException) -> bool:
    """Whether an error says that there is no room for what was to be written."""
    return isinstance(error, OSError) and error.errno in _UNWRITABLE


def drop_output() -> None:
    """Drop what stdout still holds: Python would try to write it at the end, and fail again."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, sys.stdout.fileno())
    os.close(descriptor)
