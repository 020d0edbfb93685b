"""A browser for the tests of pages."""

from collections.abc import Iterator

import pytest

from tests.web.browser import Chromium, running_chromium


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """One browser that all tests share; each opens pages in a context of its own."""
    with running_chromium() as browser:
        yield browser
