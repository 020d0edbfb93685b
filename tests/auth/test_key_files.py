"""Key files: read at the start, read again when they change."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
import structlog
import trio
from cryptography.hazmat.primitives.asymmetric import rsa
from trio.testing import MockClock, wait_all_tasks_blocked

from streamer.auth.authenticator import Authenticator
from streamer.auth.errors import TokenError
from streamer.auth.key_files import KeyFile
from streamer.auth.keys import MAX_KEYS_BYTES, public_jwk
from streamer.config import Settings
from streamer.setting_rules import SettingError
from tests.auth.provider import Key
from tests.auth.tokens import SECRET, secret_file, signed
from tests.helpers.timing import eventually

NEW_SECRET = "the secret that follows, of 32 bytes and more"


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Authenticator]:
    """An authenticator that keeps its keys up to date."""
    authenticator = Authenticator(settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(authenticator.run)
        yield authenticator
        nursery.cancel_scope.cancel()


async def accepted(authenticator: Authenticator, token: str) -> bool:
    """Whether a token is accepted."""
    try:
        await authenticator.authenticate(token)
    except TokenError:
        return False
    return True


@contextmanager
def no_free_descriptors() -> Iterator[None]:
    """Let no file be opened, as in a process that has too many open."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def look_again(clock: MockClock) -> None:
    """Let the time pass until the files are looked at, once the last look is over."""
    await wait_all_tasks_blocked()
    clock.jump(2)


async def wait_known(authenticator: Authenticator, token: str, *, known: bool) -> None:
    """Wait until a token is known, or is no more."""
    await eventually(lambda: (authenticator.known(token) is not None) is known)


@pytest.mark.parametrize(
    ("setting", "content", "problem"),
    [
        ("auth_secret_file", None, "cannot be read: No such file or directory"),
        ("auth_secret_file", b"short", "has a secret of fewer than 32 bytes"),
        ("auth_keys_file", b"{}", "is no JWK Set"),
        ("auth_keys_file", b" " * (MAX_KEYS_BYTES + 1), "is larger than"),
        ("auth_signing_key_file", None, "cannot be read: No such file or directory"),
        ("auth_signing_key_file", b"short", "has a secret of fewer than 32 bytes"),
        ("auth_signing_key_file", b"-----BEGIN PRIVATE KEY-----", "no private key that can be"),
    ],
)
def test_a_server_does_not_start_with_an_unusable_file(
    tmp_path: Path, setting: str, content: bytes | None, problem: str
) -> None:
    """The error names the setting and the file, and nothing of the content."""
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    given: dict[str, Any] = {setting: path}
    settings = Settings(auth="required", **given)
    with pytest.raises(SettingError, match=f"^{setting} {path} .*{problem}") as refused:
        Authenticator(settings)
    assert refused.value.setting == setting
    assert "short" not in str(refused.value)


async def test_secrets_are_rotated_while_the_server_runs(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    """First both hold, then only the new one; what the old one signed is known no more."""
    old, new = signed(), signed(NEW_SECRET)
    path = secret_file(tmp_path, SECRET)
    async with running(Settings(auth="required", auth_secret_file=path)) as authenticator:
        assert await accepted(authenticator, old)
        assert not await accepted(authenticator, new)
        secret_file(tmp_path, SECRET, NEW_SECRET)
        await look_again(mock_clock)
        await wait_known(authenticator, old, known=False)
        assert await accepted(authenticator, old)
        assert await accepted(authenticator, new)
        secret_file(tmp_path, NEW_SECRET)
        await look_again(mock_clock)
        await wait_known(authenticator, old, known=False)
        assert not await accepted(authenticator, old)
        assert await accepted(authenticator, new)


async def test_a_file_that_has_not_changed_costs_nothing(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokens need not be verified anew, even if it was written again with the same keys."""
    looks: list[bool] = []
    look = KeyFile.read_if_changed

    def noted(file: KeyFile[Any]) -> bool:
        looks.append(look(file))
        return looks[-1]

    monkeypatch.setattr(KeyFile, "read_if_changed", noted)
    path = secret_file(tmp_path, SECRET)
    async with running(Settings(auth="required", auth_secret_file=path)) as authenticator:
        token = signed()
        assert await accepted(authenticator, token)
        for number in (1, 2, 3):
            before = len(looks)
            await look_again(mock_clock)
            await eventually(lambda: len(looks) > before)  # noqa: B023 - called here only
            secret_file(tmp_path, SECRET)
            os.utime(path, (number, number))
        assert not any(looks)
        assert authenticator.known(token) is not None


async def test_a_signing_key_is_rotated_while_the_server_runs(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    """The next token is signed with the new key; with an unusable file, with the last one."""
    path = secret_file(tmp_path, SECRET)
    async with running(Settings(auth="required", auth_signing_key_file=path)) as authenticator:
        old = signed()
        assert await accepted(authenticator, old)
        secret_file(tmp_path, NEW_SECRET)
        await look_again(mock_clock)
        await wait_known(authenticator, old, known=False)
        assert not await accepted(authenticator, old)
        access_token, _ = await authenticator.refresh(signed(NEW_SECRET, token_use="refresh"))
        jwt.decode(access_token, NEW_SECRET, algorithms=["HS512", "HS384", "HS256"])
        with structlog.testing.capture_logs() as logs:
            path.write_text("short")
            await look_again(mock_clock)
            await eventually(lambda: logs)
        await authenticator.refresh(signed(NEW_SECRET, token_use="refresh"))


async def test_a_set_that_is_moved_into_place_is_read(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    """Replaced as a whole, as deployments do it."""
    first, second = Key("1"), Key("2")
    path, next_path = tmp_path / "keys.json", tmp_path / "next.json"
    write_set(path, first)
    async with running(Settings(auth="required", auth_keys_file=path)) as authenticator:
        token = first.sign()
        assert await accepted(authenticator, token)
        assert not await accepted(authenticator, second.sign())
        write_set(next_path, second)
        os.replace(next_path, path)  # noqa: PTH105
        await look_again(mock_clock)
        await wait_known(authenticator, token, known=False)
        assert await accepted(authenticator, second.sign())
        assert not await accepted(authenticator, token)


def write_set(path: Path, key: Key) -> None:
    """Write a JWK Set with one key."""
    path.write_text(json.dumps({"keys": [key.jwk]}))


async def test_many_secrets_hold_at_the_same_time(tmp_path: Path) -> None:
    """Each may sign, whichever line it is on."""
    secrets = [f"secret number {number:02} of 32 bytes and more" for number in range(20)]
    path = secret_file(tmp_path, *secrets)
    authenticator = Authenticator(Settings(auth="required", auth_secret_file=path))
    for secret in secrets:
        assert await accepted(authenticator, signed(secret))
    assert not await accepted(authenticator, signed())


@pytest.mark.parametrize("content", [None, b"", b"short"])
async def test_a_file_that_becomes_unusable_leaves_the_last_keys(
    tmp_path: Path, mock_clock: MockClock, content: bytes | None
) -> None:
    """A mistake in a file locks nobody out; it is logged, without the content."""
    path = secret_file(tmp_path, SECRET)
    async with running(Settings(auth="required", auth_secret_file=path)) as authenticator:
        with structlog.testing.capture_logs() as logs:
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            await look_again(mock_clock)
            await eventually(lambda: logs)
        assert logs[0]["event"] == "key file unusable, keeping its last keys"
        assert str(path) in logs[0]["problem"]
        assert "short" not in str(logs)
        assert await accepted(authenticator, signed())
        token = signed()
        assert await accepted(authenticator, token)
        secret_file(tmp_path, NEW_SECRET)
        await look_again(mock_clock)
        await wait_known(authenticator, token, known=False)
        assert await accepted(authenticator, signed(NEW_SECRET))


async def test_a_file_that_could_not_be_read_is_read_once_it_can(tmp_path: Path) -> None:
    """Also if nothing of the file itself changes then: not its content, nor its time."""
    path = secret_file(tmp_path, SECRET)
    authenticator = Authenticator(Settings(auth="required", auth_secret_file=path))
    (keys,) = authenticator._files
    secret_file(tmp_path, NEW_SECRET)
    with no_free_descriptors():
        assert not keys.read_if_changed()
    assert keys.read_if_changed()
    assert await accepted(authenticator, signed(NEW_SECRET))


async def test_a_token_verified_while_its_key_is_withdrawn_is_refused(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    """It waited for a thread, with the keys of before; those of now decide."""
    private = rsa.generate_private_key(65537, 4096)  # so large that a thread verifies
    token = signed(private, "RS256")
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [public_jwk(private.public_key())]}))
    outcome: list[bool] = []
    async with running(Settings(auth="required", auth_keys_file=path)) as authenticator:
        threads = authenticator._threads
        others = [object() for _ in range(int(threads.total_tokens))]
        for other in others:
            await threads.acquire_on_behalf_of(other)

        async def ask() -> None:
            outcome.append(await accepted(authenticator, token))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            write_set(path, Key("other"))
            await look_again(mock_clock)
            await eventually(lambda: authenticator._key_changes)
            for other in others:
                threads.release_on_behalf_of(other)
        assert outcome == [False]
        assert authenticator.known(token) is None
