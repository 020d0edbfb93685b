"""The users of `streamer demo`: a secret of its own, and a token for each in a file."""

import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

from streamer.config import Settings
from streamer.feeds.price_alerts import AlertUser

ALERT_USERS: Final = (
    AlertUser("ann", ("005930", "000660", "035420")),
    AlertUser("bob", ("005380", "247540", "196170")),
)

_SECRET_BYTES: Final = 48
_LIFETIME_SECONDS: Final = 30 * 86_400.0
"""Longer than a demo runs; its tokens are worth nothing after it, as the secret is gone."""


@attrs.frozen
class DemoUser:
    """A user with a token."""

    id: str
    token: str = attrs.field(repr=False)
    token_file: Path


@contextmanager
def demo_users(
    settings: Settings, *, public_topics: Sequence[str]
) -> Iterator[tuple[Settings, list[DemoUser]]]:
    """Make a secret and tokens in a temporary directory, which is deleted at the end of the block.

    The settings yielded accept these tokens, and also clients without one, who may have
    `public_topics` beside those of `settings`. Raises OSError if the files cannot be written.
    """
    # Imported here: it takes longer than the other commands need to start.
    from streamer.auth.signing import SigningKey  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="streamer-demo-") as name:
        directory = Path(name)  # only its owner may enter it
        secret_file = _written(directory / "secret", secrets.token_urlsafe(_SECRET_BYTES))
        key = SigningKey.read("auth_secret_file", secret_file)
        users = []
        for user in ALERT_USERS:
            token = key.token(user.id, issued_at=time.time(), lifetime_seconds=_LIFETIME_SECONDS)
            token_file = _written(directory / f"{user.id}.token", token)
            users.append(DemoUser(user.id, token, token_file))
        identifying = attrs.evolve(
            settings,
            auth="optional",
            auth_secret_file=secret_file,
            public_topics=(*settings.public_topics, *public_topics),
        )
        yield identifying, users


def _written(path: Path, text: str) -> Path:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{text}\n")
    return path
