"""The log on stderr, as text and as JSON."""

import json
import logging

import pytest
import structlog

from streamer.cli.logs import configure_logging
from streamer.config import LogFormat


def log_something() -> None:
    """Log entries of this package and of a library, below and above the level, with a failure."""
    log = structlog.get_logger()
    log.info("not worth telling")
    log.warning("lost", topic="stock:005930", tries=3)
    logging.getLogger("library").info("nor this")
    logging.getLogger("library").warning("cannot %s", "bind", extra={"port": 80})
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        log.exception("broken", value=object)


def test_json_is_one_object_for_each_entry(capsys: pytest.CaptureFixture[str]) -> None:
    """Every entry is a JSON object, of libraries and with failures too."""
    configure_logging("warning", "json")
    log_something()
    out, err = capsys.readouterr()
    entries = [json.loads(line) for line in err.splitlines()]
    assert [(entry["event"], entry["level"]) for entry in entries] == [
        ("lost", "warning"),
        ("cannot bind", "warning"),
        ("broken", "error"),
    ]
    lost, bind, broken = entries
    assert (lost["topic"], lost["tries"]) == ("stock:005930", 3)
    assert bind["port"] == 80
    assert "ZeroDivisionError" in broken["exception"]
    assert all(entry["timestamp"].endswith("Z") for entry in entries)
    assert out == ""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_debug_tells_all(log_format: LogFormat, capsys: pytest.CaptureFixture[str]) -> None:
    """Entries of the configured level are written."""
    configure_logging("debug", log_format)
    structlog.get_logger().debug("a detail")
    logging.getLogger("library").debug("another")
    assert capsys.readouterr().err.count("\n") == 2


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """An entry is a line with its values, a failure has a traceback, and a pipe gets no colours."""
    configure_logging("warning", "text")
    log_something()
    out, err = capsys.readouterr()
    assert "lost" in err
    assert "topic=stock:005930" in err
    assert "cannot bind" in err
    assert "ZeroDivisionError: division by zero" in err
    assert "worth telling" not in err
    assert "nor this" not in err
    assert "\x1b" not in err
    assert out == ""
