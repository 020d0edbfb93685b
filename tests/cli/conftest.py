"""What the tests of the command line share."""

import logging
import os
from collections.abc import Iterator

import pytest
import structlog

from streamer.cli.options import ENVIRONMENT_PREFIX


@pytest.fixture(autouse=True)
def environment_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own variables decide nothing here."""
    for variable in list(os.environ):
        if variable.startswith(ENVIRONMENT_PREFIX):
            monkeypatch.delenv(variable)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Other tests log as if this one had not been."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
