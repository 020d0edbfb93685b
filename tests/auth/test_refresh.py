"""New access tokens for refresh tokens: signed here, or from an OAuth 2 token endpoint.

Covers streamer.auth.signing.
"""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from streamer.auth.authenticator import Authenticator
from streamer.auth.errors import TokenError
from streamer.auth.keys import KeyProblem
from streamer.auth.signing import REFRESH, SigningKey
from streamer.config import Settings
from streamer.protocol.errors import ErrorCode
from streamer.setting_rules import SettingError
from tests.auth.provider import NO_ANSWER, TOKEN_PATH, Answer, Key, Provider
from tests.auth.tokens import NOW, SECRET, secret_file, signed

PRIVATE_KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC_CLIENT: dict[str, Any] = {"auth_client_id": "streamer"}


def pem(key: Any, passphrase: bytes | None = None) -> bytes:
    """A private key in PEM."""
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return text


def signing(directory: Path, text: bytes, **settings: Any) -> Authenticator:
    """An authenticator that signs tokens, whose clock is NOW."""
    path = directory / "signing-key"
    path.write_bytes(text)
    return Authenticator(
        Settings(auth="required", auth_signing_key_file=path, **settings), clock=lambda: NOW
    )


async def refusal(authenticator: Authenticator, token: str) -> TokenError:
    """The error for a refresh token."""
    with pytest.raises(TokenError) as refused:
        await authenticator.refresh(token)
    assert token not in str(refused.value)
    return refused.value


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        (pem(PRIVATE_KEY), "ES256"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "EdDSA"),
        (pem(rsa.generate_private_key(65537, 2048)), "RS256"),
        (SECRET.encode(), "HS256"),
    ],
    ids=["ES256", "EdDSA", "RS256", "HS256"],
)
async def test_a_refresh_token_gives_an_access_token(
    tmp_path: Path, text: bytes, algorithm: str
) -> None:
    """It has the same user and topics, and lasts as long as the setting says."""
    authenticator = signing(
        tmp_path, text, auth_token_lifetime_seconds=600, auth_audience="a", auth_issuer="i"
    )
    key = SigningKey(text)
    assert key.algorithm == algorithm
    refresh_token = key.token(
        "42",
        use=REFRESH,
        topics=["stock:*"],
        issued_at=NOW,
        lifetime_seconds=86_400,
        audience="a",
        issuer="i",
    )
    access_token, identity = await authenticator.refresh(refresh_token)
    assert (identity.user_id, identity.expires_at) == ("42", int(NOW + 600))
    assert [str(pattern) for pattern in identity.patterns] == ["stock:*"]
    assert authenticator.known(access_token) == identity
    again, _ = await authenticator.refresh(refresh_token)
    assert again != access_token


async def test_access_and_refresh_tokens_are_told_apart(tmp_path: Path) -> None:
    """Neither can be used as the other, although one key signs both."""
    authenticator = signing(tmp_path, pem(PRIVATE_KEY))
    key = SigningKey(pem(PRIVATE_KEY))
    access = key.token("42", issued_at=NOW, lifetime_seconds=60)
    refresh = key.token("42", use=REFRESH, issued_at=NOW, lifetime_seconds=60)
    assert (await refusal(authenticator, access)).message == "the token is no refresh token"
    await authenticator.authenticate(access)
    await authenticator.refresh(refresh)
    with pytest.raises(TokenError, match="no access token"):
        await authenticator.authenticate(refresh)
    assert authenticator.known(refresh) is None


async def test_only_refresh_tokens_of_the_signing_key_are_taken(tmp_path: Path) -> None:
    """Whoever may sign access tokens does not gain tokens without end by that."""
    authenticator = signing(tmp_path, pem(PRIVATE_KEY), auth_secret_file=secret_file(tmp_path))
    for token in (
        signed(token_use=REFRESH),
        Key("1").sign(token_use=REFRESH),
        "a.b.c",
        "x" * 65_536,
    ):
        assert (await refusal(authenticator, token)).code is ErrorCode.INVALID_TOKEN
    forged = signed(ec.generate_private_key(ec.SECP256R1()), "ES256", token_use=REFRESH)
    assert "signature" in (await refusal(authenticator, forged)).message


async def test_an_expired_refresh_token_says_so(tmp_path: Path) -> None:
    """The client has to log in again."""
    key = SigningKey(pem(PRIVATE_KEY))
    expired = key.token("42", use=REFRESH, issued_at=NOW - 100, lifetime_seconds=60)
    authenticator = signing(tmp_path, pem(PRIVATE_KEY))
    assert (await refusal(authenticator, expired)).code is ErrorCode.TOKEN_EXPIRED


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"short", "fewer than 32 bytes"),
        (pem(PRIVATE_KEY, b"passphrase"), "a passphrase"),
        (pem(PRIVATE_KEY)[:-60], "no private key that can be read"),
        (pem(x25519.X25519PrivateKey.generate()), "none of RSA, EC"),
        (pem(rsa.generate_private_key(65537, 1024)), "RSA key of 1024 bits"),
    ],
)
def test_what_cannot_sign_is_refused(text: bytes, problem: str) -> None:
    """When the server starts, not when the first client needs it."""
    with pytest.raises(KeyProblem, match=problem):
        SigningKey(text)


def test_a_key_whose_tokens_would_be_refused_is_refused(tmp_path: Path) -> None:
    """Each refresh would fail."""
    with pytest.raises(SettingError, match="key for ES256, which is not among auth_algorithms"):
        signing(tmp_path, pem(PRIVATE_KEY), auth_algorithms=("RS256",))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (pem(PRIVATE_KEY), pem(ed25519.Ed25519PrivateKey.generate())),
        (f"{SECRET}\n".encode(), b"the secret that follows, of 32 bytes and more\n"),
    ],
    ids=["PEM", "secret"],
)
async def test_the_first_key_signs_and_all_verify(tmp_path: Path, old: bytes, new: bytes) -> None:
    """A signing key can be replaced before the tokens that it signed have ended."""
    earlier = SigningKey(old).token("42", use=REFRESH, issued_at=NOW, lifetime_seconds=60)
    authenticator = signing(tmp_path, new + old)
    access_token, _ = await authenticator.refresh(earlier)
    await signing(tmp_path, new).authenticate(access_token)
    with pytest.raises(TokenError):
        await signing(tmp_path, old).authenticate(access_token)


async def test_without_a_key_or_an_endpoint_the_error_says_what_to_do(tmp_path: Path) -> None:
    """The contract has another message for tokens from elsewhere."""
    authenticator = Authenticator(Settings(auth="required", auth_secret_file=secret_file(tmp_path)))
    error = await refusal(authenticator, signed())
    assert error.code is ErrorCode.INVALID_TOKEN
    assert "authenticate" in error.message


# The token endpoint of a provider


def with_endpoint(directory: Path, provider: Provider, **settings: Any) -> Authenticator:
    """An authenticator that asks the provider."""
    return Authenticator(
        Settings(
            auth="required",
            auth_secret_file=secret_file(directory),
            auth_refresh_url=provider.token_url,
            **settings,
        )
    )


async def test_the_endpoint_is_asked_as_the_standard_says(
    provider: Provider, tmp_path: Path
) -> None:
    """RFC 6749, section 6: a form, and the client's id; its answer is verified as any token."""
    provider.answer(TOKEN_PATH, {"access_token": signed(), "token_type": "Bearer"})
    authenticator = with_endpoint(tmp_path, provider, **PUBLIC_CLIENT)
    access_token, identity = await authenticator.refresh("opaque")
    assert identity.user_id == "42"
    assert authenticator.known(access_token) == identity
    (request,) = provider.requests
    assert request.authorization is None
    assert request.form == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["opaque"],
        "client_id": ["streamer"],
    }


async def test_what_is_longer_than_any_token_is_not_passed_on(
    provider: Provider, tmp_path: Path
) -> None:
    """The provider is not asked."""
    authenticator = with_endpoint(tmp_path, provider, **PUBLIC_CLIENT)
    error = await refusal(authenticator, "x" * 8193)
    assert error.message == "the token is longer than 8192 characters"
    assert not provider.requests


async def test_a_client_with_a_secret_proves_who_it_is(provider: Provider, tmp_path: Path) -> None:
    """By HTTP Basic, which every server has to support (RFC 6749, 2.3.1)."""
    (tmp_path / "client-secret").write_text("hunter2\n")
    provider.answer(TOKEN_PATH, {"access_token": signed()})
    authenticator = with_endpoint(
        tmp_path, provider, **PUBLIC_CLIENT, auth_client_secret_file=tmp_path / "client-secret"
    )
    await authenticator.refresh("opaque")
    assert provider.requests[0].authorization == "Basic c3RyZWFtZXI6aHVudGVyMg=="
    assert provider.requests[0].form.keys() == {"grant_type", "refresh_token"}


async def test_a_refresh_token_that_is_no_text_is_refused(
    provider: Provider, tmp_path: Path
) -> None:
    """A lone surrogate, which JSON may have, cannot be sent to the provider."""
    with pytest.raises(TokenError, match="not UTF-8"):
        await with_endpoint(tmp_path, provider).refresh("\ud800")
    assert provider.requests == []


async def test_the_secret_of_a_client_can_be_rotated(provider: Provider, tmp_path: Path) -> None:
    """Its file is read again for each request; while it cannot be used, the last one is."""
    path = tmp_path / "client-secret"
    path.write_text("one")
    provider.answer(TOKEN_PATH, {"access_token": signed()})
    authenticator = with_endpoint(tmp_path, provider, **PUBLIC_CLIENT, auth_client_secret_file=path)
    path.write_text("two")
    await authenticator.refresh("opaque")
    path.write_text("")
    with structlog.testing.capture_logs() as logs:
        await authenticator.refresh("opaque")
    assert [request.authorization for request in provider.requests] == [
        "Basic " + base64.b64encode(b"streamer:two").decode()
    ] * 2
    (line,) = logs
    assert line["event"] == "secret unusable, keeping the last one"
    assert "two" not in str(line)


async def test_a_refresh_does_not_read_the_authorities_again(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes 30 ms of the event loop, and any client may ask for refreshes."""
    authenticator = with_endpoint(tmp_path, provider)
    contexts: list[object] = []
    monkeypatch.setattr(ssl, "create_default_context", contexts.append)
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", contexts.append)
    provider.answer(TOKEN_PATH, {"access_token": signed()})
    await authenticator.refresh("opaque")
    assert not contexts


@pytest.mark.parametrize(
    ("answer", "message", "is_final"),
    [
        (Answer(400, b'{"error": "invalid_grant"}'), "does not accept the refresh token", True),
        (Answer(401, b""), "does not accept the refresh token", True),
        (Answer(401, b'{"error": "invalid_client"}'), "try again", False),
        (Answer(400, b'{"error": "unauthorized_client"}'), "try again", False),
        (Answer(400, b'{"error": ["invalid_client"]}'), "does not accept", True),
        (Answer(400, b"[]"), "does not accept", True),
        (Answer(404, b""), "try again", False),
        (Answer(429, b""), "try again", False),
        (Answer(503, b""), "try again", False),
        (Answer(302, b"/elsewhere"), "try again", False),
        (Answer(NO_ANSWER, b""), "try again", False),
        (Answer(200, b"<html>"), "without an access token", False),
        (Answer(200, b"[]"), "without an access token", False),
        (Answer(200, b'{"access_token": 7}'), "without an access token", False),
        (Answer(200, b'{"access_token": "%s"}' % (b"x" * 9000)), "without an access token", False),
        (Answer(200, b" " * 70_000), "try again", False),
        (Answer(200, b'{"access_token": "a.b.c"}'), "header is not JSON", True),
    ],
)
async def test_an_endpoint_that_fails_gives_an_error(
    provider: Provider, tmp_path: Path, answer: Answer, message: str, is_final: bool
) -> None:
    """It says whether trying again can help; the log says why, without the token."""
    provider.answers[TOKEN_PATH] = answer
    authenticator = with_endpoint(tmp_path, provider)
    with structlog.testing.capture_logs() as logs:
        error = await refusal(authenticator, "an-opaque-token")
    assert message in error.message
    assert error.is_final is is_final
    assert "an-opaque-token" not in str(logs)
    assert [request.path for request in provider.requests] == [TOKEN_PATH]
