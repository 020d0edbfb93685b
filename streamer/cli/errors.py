"""Exit codes, and the error that ends a command with one."""

import enum
from typing import Self


class ExitCode(enum.IntEnum):
    """The exit codes of all commands, each with its explanation for help and documentation."""

    explanation: str

    def __new__(cls, code: int, explanation: str) -> Self:
        """Make an integer with an explanation."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.explanation = explanation
        return member

    OK = 0, "done; for a server: stopped as asked"
    FAILURE = 1, "failed; the last line on stderr says why"
    USAGE = 2, "a flag, variable or setting is unknown or invalid"
    CANNOT_LISTEN = 3, "the address to listen on is in use or not this machine's"
    REDIS_REQUIRED = 4, "Redis is required and could not be reached"
    INTERRUPTED = 130, "interrupted before it was done"  # 128 + SIGINT, as shells count


class CommandError(Exception):
    """An error of one line, which `main` writes to stderr; the process exits with `exit_code`."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code
