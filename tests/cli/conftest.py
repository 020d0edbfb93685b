"""What the tests of the command line share."""

import os

import pytest

from streamer.cli.options import ENVIRONMENT_PREFIX


@pytest.fixture(autouse=True)
def environment_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own variables decide nothing here."""
    for variable in list(os.environ):
        if variable.startswith(ENVIRONMENT_PREFIX):
            monkeypatch.delenv(variable)
