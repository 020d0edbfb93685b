"""Tokens and keys for tests."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import jwt

SECRET: Final = "a secret of the tests, of 32 bytes and more"
NOW: Final = time.time()


def claims(**changes: Any) -> dict[str, Any]:
    """Claims of user 42 that hold for an hour; a change to None leaves one out."""
    complete = {"sub": "42", "iat": int(NOW), "exp": int(NOW) + 3600} | changes
    return {name: value for name, value in complete.items() if value is not None}


def signed(
    key: Any = SECRET,
    algorithm: str = "HS256",
    *,
    key_id: str | None = None,
    **changes: Any,
) -> str:
    """A token with these claims."""
    headers = {} if key_id is None else {"kid": key_id}
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers=headers)


def secret_file(directory: Path, *secrets: str) -> Path:
    """Write a secret file, and return its path."""
    path = directory / "secrets"
    path.write_text("".join(f"{secret}\n" for secret in secrets or (SECRET,)))
    return path
