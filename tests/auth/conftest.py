"""Fixtures for tokens and keys."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.auth.provider import Provider, running_provider


@pytest.fixture
def provider() -> Iterator[Provider]:
    """An identity provider on HTTP."""
    with running_provider() as provider:
        yield provider
