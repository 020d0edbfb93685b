"""The keys of the operator's API, from a file that is read again when it has changed."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from pathlib import Path
from typing import Final

import attrs
import structlog

from streamer.bounded_log import BoundedLog
from streamer.setting_rules import SettingError

MIN_KEY_CHARACTERS: Final = 16
"""Enough that a random key cannot be guessed, however fast the attempts are."""

_MAX_FILE_BYTES: Final = 65_536
"""Some hundred keys; a larger file is a wrong path."""

_LINE: Final = re.compile(r"(?:([A-Za-z0-9_.-]{1,64}):)?([!-~]{16,512})")

_SETTING: Final = "api_key_file"

log = structlog.get_logger()


@attrs.frozen
class _Key:
    name: str
    digest: bytes = attrs.field(repr=False)


class ApiKeys:
    """The keys of a file: one a line, `KEY` or `NAME:KEY`; empty lines and # comments are skipped.

    A file that has become unreadable changes nothing: that is logged, and the last keys hold.
    """

    def __init__(self, path: Path) -> None:
        """Read the file. Raises SettingError if it cannot be used."""
        self._path = path
        self._version: tuple[int, ...] | None = None
        self._keys: tuple[_Key, ...] = ()
        self._warn = BoundedLog(log.error)
        try:
            self._read()
        except (OSError, ValueError) as error:
            raise SettingError(_SETTING, f"{path} cannot be used: {_reason(error)}") from None

    def name_of(self, key: str) -> str | None:
        """Return the name of a key, None if it is none of the file's. In constant time."""
        self._read_if_changed()
        digest = _digest(key)
        name = None
        for known in self._keys:  # all of them, so that the time does not say which it was
            if hmac.compare_digest(known.digest, digest):
                name = known.name
        return name

    def _read_if_changed(self) -> None:
        try:
            self._read()
        except (OSError, ValueError) as error:
            self._warn("keys", "api_key_file not read again, old keys hold", reason=_reason(error))

    def _read(self) -> None:
        state = self._path.stat()
        version = (state.st_mtime_ns, state.st_size, state.st_ino)
        if version == self._version:
            return
        with self._path.open("rb") as file:
            state = os.fstat(file.fileno())
            text = file.read(_MAX_FILE_BYTES + 1)
        if len(text) > _MAX_FILE_BYTES:
            raise ValueError(f"it has more than {_MAX_FILE_BYTES} bytes")
        self._keys = tuple(_parse(text.decode()))
        self._version = (state.st_mtime_ns, state.st_size, state.st_ino)


def _parse(text: str) -> list[_Key]:
    keys = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        named = split_key(line)
        if named is None:  # the line is not quoted: it is a secret
            raise ValueError(
                f"line {number} is not KEY or NAME:KEY with a key of at least "
                f"{MIN_KEY_CHARACTERS} characters of ASCII, without spaces"
            )
        name, key = named
        keys.append(_Key(name or f"line {number}", _digest(key)))
    if not keys:
        raise ValueError("it has no key")
    return keys


def split_key(line: str) -> tuple[str | None, str] | None:
    """Return the name, if any, and the key of a line; None if it has no valid key."""
    match = _LINE.fullmatch(line)
    return None if match is None else (match[1], match[2])


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
