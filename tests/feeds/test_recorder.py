"""Recordings: what is written, when a file begins, and what is left of one that was not ended.

Covers streamer.feeds.recording_lines.
"""

from __future__ import annotations

import gzip
import json
import resource
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from streamer.feeds import recorder as recorder_module
from streamer.feeds.feed import FeedError
from streamer.feeds.recorder import Recorder, RecordingFiles
from streamer.feeds.recording_lines import UNKNOWN_ORIGIN, Origin, read_lines
from tests.helpers.timing import eventually, real_deadline

NOON_NS = 1_723_204_800 * 10**9
"""2024-08-09T12:00:00Z."""
HOUR_NS = 3600 * 10**9


def recorded(paths: list[Path]) -> list[tuple[int, str, int]]:
    """Return receive time, text and connection of all messages."""
    return [
        (line.received_ns, line.text.decode(), line.origin.connection)
        for path in paths
        for line in read_lines(path)
    ]


def test_each_message_is_a_line_with_its_receive_time_and_text(tmp_path: Path) -> None:
    """Texts are as received, except for line ends between tokens; binary frames are UTF-8."""
    files = RecordingFiles(tmp_path / "feed")
    recorder = Recorder(files)
    recorder.connected(1)
    recorder.add('{"price": 1.50,\r\n "a": "\\n"}', NOON_NS)
    recorder.add('{"name":"삼성"}'.encode(), NOON_NS + 1)
    recorder.connected(2)
    recorder.add("[1]", NOON_NS + 2)
    recorder.close()
    assert [path.name for path in files.paths] == ["feed-20240809T120000Z.gz"]
    assert recorded(files.paths) == [
        (NOON_NS, '{"price": 1.50,   "a": "\\n"}', 1),
        (NOON_NS + 1, '{"name":"삼성"}', 1),
        (NOON_NS + 2, "[1]", 2),
    ]
    assert recorder.messages == 3


def test_what_is_no_json_is_counted_and_left_out(tmp_path: Path) -> None:
    """A reader of lines could not read it."""
    recorder = Recorder(RecordingFiles(tmp_path / "feed"))
    for message in ("PONG", b"\xff\xfe", "{", ""):
        recorder.add(message, NOON_NS)
    recorder.close()
    assert (recorder.messages, recorder.not_json) == (0, 4)
    assert list(tmp_path.iterdir()) == []


def test_unusual_json_is_recorded(tmp_path: Path) -> None:
    """A parser that refuses it must not decide what a recording lacks."""
    files = RecordingFiles(tmp_path / "feed")
    recorder = Recorder(files)
    texts = [r'{"a":"\ud800"}', '{"a":1e999}', f'{{"a":{10**30}}}']
    for text in texts:
        recorder.add(text, NOON_NS)
    recorder.add('{"a":NaN}', NOON_NS)
    recorder.close()
    assert [text for _, text, _ in recorded(files.paths)] == texts
    assert recorder.not_json == 1


def test_a_day_begins_a_file_that_continues_the_connection(tmp_path: Path) -> None:
    """The second file says of which recording and connection its messages are."""
    files = RecordingFiles(tmp_path / "feed")
    recorder = Recorder(files)
    recorder.connected(7)
    for number in range(3):
        recorder.add("{}", NOON_NS + 6 * number * HOUR_NS)
    recorder.close()
    assert [path.name for path in files.paths] == [
        "feed-20240809T120000Z.gz",
        "feed-20240810T000000Z.gz",
    ]
    assert [connection for _, _, connection in recorded(files.paths)] == [7, 7, 7]
    origins = {line.origin.recording for path in files.paths for line in read_lines(path)}
    assert len(origins) == 1


def test_a_size_begins_a_file_and_none_is_overwritten(tmp_path: Path) -> None:
    """Files of the same second are numbered."""
    (tmp_path / "feed-20240809T120000Z.gz").write_bytes(b"someone else's")
    files = RecordingFiles(tmp_path / "feed", max_file_bytes=1)
    recorder = Recorder(files)
    for number in range(3):
        recorder.add("{}", NOON_NS + number)
        files.write(recorder._take_held())
    recorder.close()
    assert [path.name for path in files.paths] == [
        f"feed-20240809T120000Z-{number}.gz" for number in (2, 3, 4)
    ]
    assert len(recorded(files.paths)) == 3


def test_a_clock_that_is_set_back_disorders_nothing(tmp_path: Path) -> None:
    """Receive times never run back."""
    files = RecordingFiles(tmp_path / "feed")
    recorder = Recorder(files)
    recorder.add("{}", NOON_NS)
    recorder.add("{}", NOON_NS - 20 * HOUR_NS)
    recorder.close()
    assert [time for time, _, _ in recorded(files.paths)] == [NOON_NS, NOON_NS]


def test_a_write_that_fails_half_way_damages_nothing(tmp_path: Path) -> None:
    """The lines before it can be read, and those after it, once there is room."""
    files = RecordingFiles(tmp_path / "feed")
    recorder = Recorder(files)
    recorder.connected(1)
    recorder.add("1", 1)
    files.write(recorder._take_held())
    (path,) = files.paths
    recorder.add('"' + "".join(map(chr, range(256, 2000))) + '"', 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            files.write(recorder._take_held())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    recorder.add("3", 3)
    recorder.close()
    assert [text for _, text, _ in recorded(files.paths)] == ["1", "3"]


def wrote_more_than(files: RecordingFiles, size_bytes: int) -> bool:
    """Whether more has been written."""
    return files.written_bytes > size_bytes


async def test_a_file_that_was_not_ended_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that has been written is complete, for every program that reads gzip."""
    monkeypatch.setattr(recorder_module, "FLUSH_SECONDS", 0.001)
    files = RecordingFiles(tmp_path / "feed")
    recorder = Recorder(files)
    async with real_deadline(), trio.open_nursery() as nursery:
        nursery.start_soon(recorder.write_forever)
        for number in range(3):
            written_bytes = files.written_bytes
            recorder.add(json.dumps({"number": number}), NOON_NS + number)
            await eventually(partial(wrote_more_than, files, written_bytes))
        nursery.cancel_scope.cancel()
    (path,) = files.paths
    was_not_ended = path.read_bytes()
    files.close()
    assert gzip.decompress(was_not_ended).count(b"number") == 3


async def test_a_slow_disk_holds_up_the_feed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded: the next message waits until what is held has been written."""
    monkeypatch.setattr(recorder_module, "MAX_HELD_BYTES", 30)
    monkeypatch.setattr(recorder_module, "FLUSH_SECONDS", 0.001)
    files = RecordingFiles(tmp_path / "feed")
    recorder = Recorder(files)
    async with real_deadline(), trio.open_nursery() as nursery:

        async def take_three() -> None:
            for _ in range(3):
                await recorder.take("{}", NOON_NS)

        nursery.start_soon(take_three)
        await wait_all_tasks_blocked()
        assert recorder.messages == 2
        nursery.start_soon(recorder.write_forever)
        await eventually(lambda: recorder.messages == 3)
        nursery.cancel_scope.cancel()
    recorder.close()


def test_a_file_of_another_recorder_has_no_origin(tmp_path: Path) -> None:
    """Its messages are of one unknown connection."""
    path = tmp_path / "r"
    path.write_text("1 {}\n2 {}\n")
    assert [line.origin for line in read_lines(path)] == [UNKNOWN_ORIGIN] * 2


@pytest.mark.parametrize(
    "marker", ['{"streamer":7}', '{"streamer":{"recording":"a"}}', '{"streamer":']
)
def test_a_damaged_line_of_a_connection_is_named(tmp_path: Path, marker: str) -> None:
    """As any other damaged line."""
    path = tmp_path / "r"
    path.write_bytes(Origin("a", 1).line(NOON_NS) + f"2 {marker}\n".encode())
    with pytest.raises(FeedError, match="line 2: damaged line: no recording and connection"):
        list(read_lines(path))
