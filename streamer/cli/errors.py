"""How a command ends: exit codes, and the error that carries one."""

import enum
from typing import Self


class ExitCode(enum.IntEnum):
    """What the process tells its caller; `explanation` is what help and documentation say."""

    explanation: str

    def __new__(cls, code: int, explanation: str) -> Self:
        """An integer that explains itself."""
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
    """An error of one line, which `main` writes to stderr before it exits with `exit_code`."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code
