"""Files with keys, read again when they have changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from streamer.auth.keys import MAX_KEYS_BYTES, KeyProblem
from streamer.bounded_log import BoundedLog
from streamer.setting_rules import SettingError

log = structlog.get_logger()

K = TypeVar("K")

_UNUSABLE: Final = "key file unusable, keeping its last keys"

Stamp = tuple[int, int, int]
"""Changes with each new content: inode, size and time of modification."""


class KeyFile(Generic[K]):
    """The keys of one file. A file that becomes unusable leaves the last usable keys in force."""

    def __init__(self, setting: str, path: Path, parse: Callable[[bytes], K]) -> None:
        """Read the file. Raises SettingError, with the name of the setting, if it has no keys.

        `parse` makes the keys of its content, and raises KeyProblem.
        """
        self._setting = setting
        self._path = path
        self._parse = parse
        self._stamp: Stamp | None = None
        self._warn = BoundedLog(log.warning)
        try:
            self.keys = self._read(self._current_stamp())
        except (OSError, KeyProblem) as error:
            raise SettingError(setting, self._problem(error)) from None

    def read_if_changed(self) -> bool:
        """Read the file again if it has changed, blocking; return whether the keys are new."""
        try:
            stamp = self._current_stamp()
            if stamp == self._stamp:
                return False
            keys = self._read(stamp)
        except OSError as error:
            # It may be readable later without having changed: tried again at each look.
            self._warn("file", _UNUSABLE, problem=self._problem(error))
            return False
        except KeyProblem as error:
            log.warning(_UNUSABLE, problem=self._problem(error))
            return False
        is_new = keys != self.keys
        self.keys = keys
        if is_new:
            log.info("key file read again", setting=self._setting)
        return is_new

    def _current_stamp(self) -> Stamp:
        status = self._path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _read(self, stamp: Stamp) -> K:
        """Read the file once, which has this stamp. Raises OSError and KeyProblem."""
        with self._path.open("rb") as file:
            text = file.read(MAX_KEYS_BYTES + 1)
        self._stamp = stamp
        if len(text) > MAX_KEYS_BYTES:
            raise KeyProblem(f"is larger than {MAX_KEYS_BYTES} bytes")
        return self._parse(text)

    def _problem(self, error: OSError | KeyProblem) -> str:
        reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
        return f"{self._path} {reason}"
