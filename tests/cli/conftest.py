"""Fixtures for the tests of the command line."""

import logging
import os
from collections.abc import Iterator

import pytest
import structlog

from streamer.cli.options import ENVIRONMENT_PREFIX


@pytest.fixture(autouse=True)
def environment_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the developer's own STREAMER_ variables."""
    for variable in list(os.environ):
        if variable.startswith(ENVIRONMENT_PREFIX):
            monkeypatch.delenv(variable)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Restore the configuration of logging."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
