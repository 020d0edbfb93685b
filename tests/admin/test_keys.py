"""The file of the operator's keys: what may be in it, and that it is read again."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from streamer.admin.keys import ApiKeys
from streamer.setting_rules import SettingError

ONE = "one-key-of-16-characters"
OTHER = "another-key-of-this-file"


def write(path: Path, text: str) -> None:
    """Write the file anew, as editors do: by a rename."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_keys_have_names(tmp_path: Path) -> None:
    """A name is before the colon, or is the line; comments and empty lines are skipped."""
    path = tmp_path / "keys"
    write(path, f"# operators\n\nalice:{ONE}\n  {OTHER}  \n")
    keys = ApiKeys(path)
    assert keys.name_of(ONE) == "alice"
    assert keys.name_of(OTHER) == "line 4"
    for wrong in ("", "alice", f"alice:{ONE}", ONE[:-1], f"{ONE} ", "\ud800"):
        assert keys.name_of(wrong) is None


def test_the_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    """A key that is gone is wrong at once, and one that is new right."""
    path = tmp_path / "keys"
    write(path, f"alice:{ONE}\n")
    keys = ApiKeys(path)
    assert keys.name_of(ONE) == "alice"
    write(path, f"bob:{OTHER}\n")
    assert (keys.name_of(ONE), keys.name_of(OTHER)) == (None, "bob")


def test_a_file_that_became_unusable_changes_nothing(tmp_path: Path) -> None:
    """The last keys hold until it is repaired, and the log says so without the key."""
    path = tmp_path / "keys"
    write(path, f"alice:{ONE}\n")
    keys = ApiKeys(path)
    with structlog.testing.capture_logs() as logs:
        write(path, "bob:short\n")
        assert keys.name_of(ONE) == "alice"
        path.unlink()
        assert keys.name_of(ONE) == "alice"
    assert [line["event"] for line in logs] == ["api_key_file not read again, old keys hold"]
    assert "short" not in str(logs)
    write(path, f"bob:{OTHER}\n")
    assert (keys.name_of(ONE), keys.name_of(OTHER)) == (None, "bob")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "it has no key"),
        (b"# nothing\n", "it has no key"),
        (b"alice:short\n", "line 1 is not KEY or NAME:KEY"),
        (b"ok-key-of-16-characters\nwith a space in it\n", "line 2 is not KEY or NAME:KEY"),
        (b"\xff" * 20, "it is not UTF-8"),
        (b"x" * 70_000, "more than 65536 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: bytes, problem: str) -> None:
    """The error names the setting and the line, and nothing of the file."""
    path = tmp_path / "keys"
    path.write_bytes(text)
    with pytest.raises(SettingError, match=problem) as caught:
        ApiKeys(path)
    assert caught.value.setting == "api_key_file"
    assert "short" not in str(caught.value)


def test_a_directory_is_no_file_of_keys(tmp_path: Path) -> None:
    """The system's reason is in the error."""
    with pytest.raises(SettingError, match="Is a directory"):
        ApiKeys(tmp_path)
