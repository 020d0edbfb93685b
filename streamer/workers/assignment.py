"""What parent and worker have to know of each other."""

from __future__ import annotations

import attrs
import orjson

from streamer.config import Settings


class WorkerFailedError(Exception):
    """A worker ended before it ever served: so would its replacement."""

    def __init__(self, exit_code: int) -> None:
        """`exit_code`: of the process, or the signal that ended it, negative."""
        super().__init__(f"a worker ended with {exit_code} before it served")
        self.exit_code = exit_code


@attrs.frozen
class Assignment:
    """What a worker process is to do; it travels as JSON."""

    worker: int
    settings: Settings

    def to_json(self) -> bytes:
        """One line without its end."""
        return orjson.dumps(attrs.asdict(self), default=str)

    @classmethod
    def from_json(cls, line: bytes) -> Assignment:
        """What `to_json` wrote: `Settings` makes paths and tuples of texts and lists."""
        assignment = orjson.loads(line)
        return cls(assignment["worker"], Settings(**assignment["settings"]))
