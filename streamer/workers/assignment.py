"""The messages of the parent to a worker, and the error for one that cannot serve."""

from __future__ import annotations

import attrs
import orjson

from streamer.config import LogLevel, Settings


class WorkerFailedError(Exception):
    """A worker ended before it listened; its replacement would too."""

    def __init__(self, exit_code: int) -> None:
        """`exit_code` is the one of the process, or the negative number of its signal."""
        super().__init__(f"a worker ended with {exit_code} before it served")
        self.exit_code = exit_code


@attrs.frozen
class Assignment:
    """The number and the settings of a worker, sent as JSON."""

    worker: int
    settings: Settings
    descriptors: tuple[int, ...] = ()
    """Sockets that listen, which the worker inherits; none: it binds the port of the settings."""

    def to_json(self) -> bytes:
        """Encode the assignment as one line, without its end."""
        return orjson.dumps(attrs.asdict(self), default=str)

    @classmethod
    def from_json(cls, line: bytes) -> Assignment:
        """Decode an assignment; `Settings` converts text to paths and lists to tuples."""
        assignment = orjson.loads(line)
        settings = Settings(**assignment["settings"])
        return cls(assignment["worker"], settings, tuple(assignment["descriptors"]))


@attrs.frozen
class Reload:
    """The request to read certificates again, and to log from this level on; sent as JSON."""

    log_level: LogLevel

    def to_json(self) -> bytes:
        """Encode the request as one line, without its end."""
        return orjson.dumps(attrs.asdict(self))

    @classmethod
    def from_json(cls, line: bytes) -> Reload:
        """Decode a request."""
        return cls(**orjson.loads(line))
