"""The lines of a recording: read, whatever feed they are of, and made.

A line is `<local receive time, ns since the epoch> <JSON as it was received>`, the format of
hftbacktest's collector. Beside the messages of the feed, `streamer record` writes a line for each
connection, and one at the beginning of each file:

    <time> {"streamer":{"recording":"5c0e3d1a9b7f4e21","connection":2}}

A reader can tell by these that messages are missing before them, which a feed of changes does not
show, and that the files of several days are one recording.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import orjson

from streamer.feeds.feed import FeedError

_GZIP_MAGIC: Final = b"\x1f\x8b"
_UTF8_BOM: Final = b"\xef\xbb\xbf"
_ORIGIN_START: Final = b'{"streamer":'


@attrs.frozen
class Origin:
    """The recording and the connection from which a message is."""

    recording: str
    connection: int

    def line(self, received_ns: int) -> bytes:
        """Return the line that says that messages of this origin follow."""
        marker = {"streamer": {"recording": self.recording, "connection": self.connection}}
        return message_line(received_ns, orjson.dumps(marker))


UNKNOWN_ORIGIN: Final = Origin("", 0)
"""The origin of the messages in a file that does not say it."""


@attrs.frozen
class RecordedLine:
    """A message as it was received."""

    number: int
    """Its line in the file; the first is 1."""
    received_ns: int
    """Nanoseconds since the Unix epoch, by the recorder's clock."""
    text: bytes
    origin: Origin


def message_line(received_ns: int, text: bytes) -> bytes:
    """Return the line of a message, whose text must be JSON."""
    # In JSON, line ends are white space between tokens: inside a string they are escaped.
    return b"%d %s\n" % (received_ns, text.replace(b"\n", b" ").replace(b"\r", b" "))


def read_lines(
    path: Path, *, on_read: Callable[[int], object] = lambda _bytes: None
) -> Iterator[RecordedLine]:
    """Yield the messages of a recording, gzipped or plain, as the file is read.

    Blank lines are skipped. `on_read` is called now and then with the number of bytes read since;
    not for a pipe. Raises FeedError if the file is damaged, and OSError if it cannot be opened.
    """
    origin = UNKNOWN_ORIGIN
    line_number = read_bytes = 0
    with path.open("rb") as file:
        seekable = file.seekable()
        compressed = file.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC)
        try:
            lines = gzip.GzipFile(fileobj=file) if compressed else file
            for line_number, line in enumerate(lines, 1):
                if not (stripped := line.removeprefix(_UTF8_BOM).strip()):
                    continue
                received_ns, text = _split(path, line_number, stripped)
                if seekable and (position := file.tell()) != read_bytes:
                    on_read(position - read_bytes)
                    read_bytes = position
                if text.startswith(_ORIGIN_START):
                    origin = _read_origin(path, line_number, text)
                else:
                    yield RecordedLine(line_number, received_ns, text, origin)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise FeedError(path, line_number + 1, f"damaged gzip data: {error}") from None


def _split(path: Path, line_number: int, line: bytes) -> tuple[int, bytes]:
    received, separator, text = line.partition(b" ")
    if not separator:
        raise FeedError(path, line_number, "damaged line: no space between receive time and JSON")
    try:
        return unix_ns(int(received)), text
    except ValueError as error:
        raise FeedError(path, line_number, f"damaged line: {error}") from None


def _read_origin(path: Path, line_number: int, text: bytes) -> Origin:
    try:
        marker: Any = orjson.loads(text)["streamer"]
        return Origin(marker["recording"], marker["connection"])
    except (KeyError, TypeError, ValueError):
        raise FeedError(path, line_number, "damaged line: no recording and connection") from None


def unix_ns(unix_time: int) -> int:
    """Convert nanoseconds, microseconds or milliseconds since the epoch to nanoseconds.

    The unit is the one that gives a time between 1973 and 5138.
    """
    if 10**11 <= unix_time < 10**14:
        return unix_time * 1_000_000
    if 10**14 <= unix_time < 10**17:
        return unix_time * 1_000
    return unix_time
