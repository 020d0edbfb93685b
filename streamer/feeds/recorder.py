"""Record the messages of a feed to files, of which each is readable at every moment.

The lines of a second are one gzip member, written at once: a file of complete members is a complete
gzip file, so a recorder that is killed loses the last second at most and damages nothing.
"""

from __future__ import annotations

import gzip
import itertools
import math
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Final, NoReturn

import attrs
import orjson
import trio

from streamer.feeds.recording_lines import Origin, message_line
from streamer.protocol.json_text import loads

FLUSH_SECONDS: Final = 1.0
"""Between two writes: the most that a killed recorder loses."""

MAX_HELD_BYTES: Final = 64 * 2**20
"""Text that waits to be written, at most; beyond it the feed is not read until the disk follows."""

_NS_PER_SECOND: Final = 10**9
_DAY_NS: Final = 24 * 60 * 60 * _NS_PER_SECOND


@attrs.frozen
class Line:
    """A line that is to be written."""

    received_ns: int
    text: bytes
    origin: Origin


class RecordingFiles:
    """Writes lines to one file after another: a new one for each day (UTC), and at a size.

    Names are `PREFIX-20240809T000000Z.gz`, with the receive time of the first line. No file is
    overwritten. Methods block.
    """

    def __init__(self, prefix: Path, *, max_file_bytes: float = math.inf) -> None:
        """`max_file_bytes` is the compressed size at which a file is ended."""
        self._prefix = prefix
        self._max_file_bytes = max_file_bytes
        self._file: FileIO | None = None
        self._day = 0
        self._file_bytes = 0
        self.paths: list[Path] = []
        """The files so far."""
        self.written_bytes = 0

    def write(self, lines: Iterable[Line]) -> None:
        """Write lines, in order of their receive time. Raises OSError."""
        for day, of_day in itertools.groupby(lines, lambda line: line.received_ns // _DAY_NS):
            if self._file is not None and (
                day != self._day or self._file_bytes >= self._max_file_bytes
            ):
                self.close()
            self._day = day
            self._write_member(list(of_day))

    def _write_member(self, lines: list[Line]) -> None:
        first = lines[0]
        texts = [line.text for line in lines]
        if self._file is None:
            self._file = self._open(first.received_ns)
            origin_line = first.origin.line(first.received_ns)
            if first.text != origin_line:
                texts.insert(0, origin_line)
        member = gzip.compress(b"".join(texts), compresslevel=6)
        rest = memoryview(member)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            # A full disk: nothing could be read of what follows half a member.
            self._file.truncate(self._file_bytes)
            self._file.seek(self._file_bytes)
            raise
        self._file_bytes += len(member)
        self.written_bytes += len(member)

    def _open(self, received_ns: int) -> FileIO:
        moment = datetime.fromtimestamp(received_ns // _NS_PER_SECOND, UTC)
        stem = f"{self._prefix.name}-{moment:%Y%m%dT%H%M%SZ}"
        for number in itertools.count(1):
            name = f"{stem}.gz" if number == 1 else f"{stem}-{number}.gz"
            path = self._prefix.with_name(name)
            try:
                file = FileIO(path, "xb")
            except FileExistsError:
                continue
            self.paths.append(path)
            self._file_bytes = 0
            return file
        raise AssertionError("counting never ends")  # pragma: no cover

    def close(self) -> None:
        """End the present file; the next line begins another one."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Recorder:
    """A consumer of a feed that records its messages; `write_forever` writes them."""

    def __init__(self, files: RecordingFiles) -> None:
        self._files = files
        self._recording = secrets.token_hex(8)
        self._origin = Origin(self._recording, 0)
        self._is_marked = False
        """Whether the line of the present connection has been recorded."""
        self._held: list[Line] = []
        self._held_bytes = 0
        self._last_ns = 0
        self._room = trio.Event()
        self.messages = 0
        """Messages recorded."""
        self.not_json = 0
        """Messages that were no JSON, such as the answers to heartbeats of some feeds."""

    def connected(self, connection: int) -> None:
        """Record that a new connection begins; what was sent between is missing."""
        self._origin = Origin(self._recording, connection)
        self._is_marked = False

    async def take(self, message: str | bytes, received_ns: int) -> None:
        """Record a message that is JSON, as text or as UTF-8 in a binary frame."""
        while self._held_bytes >= MAX_HELD_BYTES:
            await self._room.wait()
        self.add(message, received_ns)

    def add(self, message: str | bytes, received_ns: int) -> None:
        """Record a message without waiting for room."""
        text = message.encode(errors="surrogatepass") if isinstance(message, str) else message
        if not _is_json(text):
            self.not_json += 1
            return
        # A clock that is set back must not disorder the files.
        self._last_ns = received_ns = max(received_ns, self._last_ns)
        self._hold(received_ns, message_line(received_ns, text))
        self.messages += 1

    def _hold(self, received_ns: int, text: bytes) -> None:
        if not self._is_marked:
            origin_line = self._origin.line(received_ns)
            self._held.append(Line(received_ns, origin_line, self._origin))
            self._is_marked = True
        self._held.append(Line(received_ns, text, self._origin))
        self._held_bytes += len(text)

    async def write_forever(self) -> NoReturn:
        """Write what has been recorded, every second. Raises OSError."""
        while True:
            await trio.sleep(FLUSH_SECONDS)
            # Not to be abandoned: a thread that still writes would write into the last member.
            await trio.to_thread.run_sync(self._files.write, self._take_held())
            self._room.set()
            self._room = trio.Event()

    def close(self) -> None:
        """Write what is left and end the file. Blocks. Raises OSError."""
        try:
            self._files.write(self._take_held())
        finally:
            self._files.close()

    def _take_held(self) -> list[Line]:
        held, self._held, self._held_bytes = self._held, [], 0
        return held


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            loads(text.decode())  # orjson refuses lone surrogates and 1e999
        except ValueError:
            return False
    return True
