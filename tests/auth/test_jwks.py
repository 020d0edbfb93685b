"""The keys at a URL: fetched by one task, seldom, and used while the URL fails.

Covers streamer.auth.requests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
import structlog
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

from streamer.auth.authenticator import Authenticator
from streamer.auth.errors import TokenError
from streamer.auth.jwks import REFRESH_SECONDS, UNKNOWN_KEY_SECONDS
from streamer.auth.keys import MAX_KEYS_BYTES
from streamer.config import Settings
from streamer.protocol.errors import ErrorCode
from tests.auth.provider import NO_ANSWER, PATH, Answer, Key, Provider, running_provider
from tests.auth.tokens import claims, secret_file, signed
from tests.helpers.timing import eventually


@asynccontextmanager
async def running(url: str, **settings: Any) -> AsyncIterator[Authenticator]:
    """An authenticator with the keys at a URL."""
    authenticator = Authenticator(Settings(auth="required", auth_jwks_url=url, **settings))
    async with trio.open_nursery() as nursery:
        await nursery.start(authenticator.run)
        yield authenticator
        nursery.cancel_scope.cancel()


async def refusal(authenticator: Authenticator, token: str) -> TokenError:
    """The error for a token."""
    with pytest.raises(TokenError) as refused:
        await authenticator.authenticate(token)
    assert refused.value.code is ErrorCode.INVALID_TOKEN
    return refused.value


async def test_keys_are_there_when_the_server_has_started(
    provider: Provider, mock_clock: MockClock
) -> None:
    """The first token needs no fetch of its own; a wrong signature causes none."""
    key, forger = Key("1"), Key("1")
    provider.publish(key)
    async with running(provider.jwks_url) as authenticator:
        assert (await authenticator.authenticate(key.sign())).user_id == "42"
        assert "signature" in (await refusal(authenticator, forger.sign())).message
    assert provider.fetches == 1


async def test_a_thousand_unknown_keys_cause_one_fetch(
    provider: Provider, mock_clock: MockClock
) -> None:
    """At once or one after another, and no URL that a token names is fetched."""
    key = Key("1")
    provider.publish(key)
    async with running(provider.jwks_url) as authenticator:
        assert provider.fetches == 1
        url = provider.origin + "/evil"
        forger = Key("?")
        headers = [{"kid": f"random-{n}", "jku": url, "x5u": url} for n in range(1000)]
        async with trio.open_nursery() as nursery:
            for number, header in enumerate(headers):
                token = forged(forger, header)
                nursery.start_soon(refusal, authenticator, token)
                if number % 100 == 99:
                    await authenticator.authenticate(key.sign(jti=str(number)))
        assert provider.fetches == 2
        assert "not known" in (await refusal(authenticator, forged(forger, headers[0]))).message
        assert provider.fetches == 2
        await wait_all_tasks_blocked()
        mock_clock.jump(UNKNOWN_KEY_SECONDS)
        await refusal(authenticator, forged(forger, headers[0]))
        assert provider.fetches == 3
    assert {request.path for request in provider.requests} == {PATH}


def forged(key: Key, headers: dict[str, Any]) -> str:
    """A token with these headers."""
    return jwt.encode(claims(), key.private, algorithm="ES256", headers=headers)


async def test_a_new_key_is_fetched_when_a_token_names_it(
    provider: Provider, mock_clock: MockClock
) -> None:
    """A rotation: no client notices, whether it has a token of the old key or of the new one."""
    old, new = Key("old"), Key("new")
    provider.publish(old)
    async with running(provider.jwks_url) as authenticator:
        await authenticator.authenticate(old.sign())
        provider.publish(old, new)
        await authenticator.authenticate(new.sign())
        await authenticator.authenticate(old.sign())
        assert provider.fetches == 2


async def test_a_withdrawn_key_verifies_no_more(provider: Provider, mock_clock: MockClock) -> None:
    """Not even a token that is known, once the keys have been fetched again."""
    old, new = Key("old"), Key("new")
    provider.publish(old, new)
    async with running(provider.jwks_url) as authenticator:
        token = old.sign()
        await authenticator.authenticate(token)
        provider.publish(new)
        await wait_all_tasks_blocked()
        mock_clock.jump(REFRESH_SECONDS)
        await eventually(lambda: authenticator.known(token) is None)
        await refusal(authenticator, token)
        await authenticator.authenticate(new.sign())


@pytest.mark.parametrize(
    "answer",
    [
        Answer(500, b""),
        Answer(302, b"/elsewhere"),
        Answer(200, b"<html>"),
        Answer(200, b'{"keys": []}'),
        Answer(200, b" " * (MAX_KEYS_BYTES + 1)),
        Answer(200, b" " * 65_536, is_endless=True),
        Answer(NO_ANSWER, b""),
    ],
    ids=["500", "redirect", "html", "empty", "large", "endless", "no answer"],
)
async def test_known_keys_are_used_while_the_url_fails(
    provider: Provider, mock_clock: MockClock, answer: Answer
) -> None:
    """For an hour of failing fetches; then the URL works again, with a new key."""
    key, new = Key("1"), Key("2")
    provider.publish(key)
    async with running(provider.jwks_url) as authenticator:
        with structlog.testing.capture_logs() as logs:

            async def fetch(seconds: float) -> None:
                """Let time pass until a fetch is over, which is logged."""
                count = len(logs)
                await wait_all_tasks_blocked()
                mock_clock.jump(seconds)
                await eventually(lambda: len(logs) > count)

            provider.answers[PATH] = answer
            await fetch(REFRESH_SECONDS)
            for _ in range(60):
                await fetch(60)
            assert {entry["event"] for entry in logs} == {
                "JWK Set not fetched, using the last keys"
            }
            await authenticator.authenticate(key.sign())
            assert not (await refusal(authenticator, new.sign())).is_final
            provider.publish(new)
            await fetch(60)
        await authenticator.authenticate(new.sign())


async def test_a_server_starts_while_the_url_fails(
    provider: Provider, mock_clock: MockClock
) -> None:
    """It refuses tokens, but not finally, and takes them as soon as it has keys."""
    key = Key("1")
    async with running(provider.jwks_url) as authenticator:
        assert not (await refusal(authenticator, key.sign())).is_final
        provider.publish(key)
        await wait_all_tasks_blocked()
        mock_clock.jump(UNKNOWN_KEY_SECONDS)
        await authenticator.authenticate(key.sign())


async def test_a_token_that_names_no_key_waits_for_the_url_too(
    provider: Provider, mock_clock: MockClock
) -> None:
    """Its client is not sent away for good because the provider is away."""
    key = Key("1")
    token = signed(key.private, "ES256")
    async with running(provider.jwks_url) as authenticator:
        assert not (await refusal(authenticator, token)).is_final
        provider.publish(key)
        await wait_all_tasks_blocked()
        mock_clock.jump(UNKNOWN_KEY_SECONDS)
        await authenticator.authenticate(token)
        forged = signed(Key("1").private, "ES256")
        assert (await refusal(authenticator, forged)).is_final
    assert provider.fetches == 3  # at the start, for each try while there were no keys


async def test_keys_come_over_https_with_a_certificate_that_is_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mock_clock: MockClock
) -> None:
    """The authority is one that the machine trusts, or none of the keys is taken."""
    authority = trustme.CA()
    key = Key("1")
    with running_provider(authority) as provider:
        provider.publish(key)
        async with running(provider.jwks_url) as authenticator:
            assert not (await refusal(authenticator, key.sign())).is_final
        assert provider.fetches == 0
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        async with running(provider.jwks_url) as authenticator:
            await authenticator.authenticate(key.sign())


async def test_secrets_and_a_url_can_be_used_together(
    provider: Provider, mock_clock: MockClock, tmp_path: Path
) -> None:
    """Tokens of the own backend, and of a provider."""
    key = Key("1")
    provider.publish(key)
    secrets = secret_file(tmp_path)
    async with running(provider.jwks_url, auth_secret_file=secrets) as authenticator:
        await authenticator.authenticate(key.sign())
        await authenticator.authenticate(signed())
        await authenticator.authenticate(signed(key_id="mine"))
    assert provider.fetches == 1
