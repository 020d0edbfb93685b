"""The authenticator: tokens that are accepted, and what is wrong with the others.

Covers streamer.auth.claims, streamer.auth.errors and streamer.auth.revocations.
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from streamer.auth import authenticator as module
from streamer.auth.authenticator import Authenticator
from streamer.auth.claims import MAX_TOKEN_CHARACTERS
from streamer.auth.errors import TokenError
from streamer.auth.identity import Identity
from streamer.config import Settings
from streamer.protocol.errors import ErrorCode
from tests.auth.tokens import NOW, SECRET, claims, secret_file, signed

with tempfile.TemporaryDirectory() as _directory:
    SHARED = Authenticator(
        Settings(auth="required", auth_secret_file=secret_file(Path(_directory))),
        clock=lambda: NOW,
    )
RSA_KEY = rsa.generate_private_key(65537, 2048)
P256_KEY = ec.generate_private_key(ec.SECP256R1())


def pem(*keys: Any) -> bytes:
    """The public halves of private keys, as a PEM file has them."""
    return b"".join(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        for key in keys
    )


def with_secret(directory: Path, **settings: Any) -> Authenticator:
    """An authenticator with the secret of the tests, whose clock is NOW."""
    return Authenticator(
        Settings(auth="required", auth_secret_file=secret_file(directory), **settings),
        clock=lambda: NOW,
    )


def with_keys(directory: Path, *keys: Any, **settings: Any) -> Authenticator:
    """An authenticator with public keys, whose clock is NOW."""
    path = directory / "keys.pem"
    path.write_bytes(pem(*keys))
    return Authenticator(
        Settings(auth="required", auth_keys_file=path, **settings), clock=lambda: NOW
    )


async def refusal(authenticator: Authenticator, token: str) -> TokenError:
    """The error for a token, which is not known afterwards and of which nothing is quoted."""
    with structlog.testing.capture_logs() as logs, pytest.raises(TokenError) as refused:
        await authenticator.authenticate(token)
    assert authenticator.known(token) is None
    for part in token.split("."):
        assert len(part) < 4 or part not in f"{refused.value}{logs}"
    assert refused.value.code in {ErrorCode.INVALID_TOKEN, ErrorCode.TOKEN_EXPIRED}
    return refused.value


async def test_a_token_gives_an_identity(tmp_path: Path) -> None:
    """User, times and patterns are the claims; afterwards the token is known."""
    authenticator = with_secret(tmp_path)
    token = signed(jti="1", topics=["stock:*", "watchlist:7/*"])
    assert authenticator.known(token) is None
    identity = await authenticator.authenticate(token)
    assert (identity.user_id, identity.token_id) == ("42", "1")
    assert (identity.issued_at, identity.expires_at) == (int(NOW), int(NOW) + 3600)
    assert [str(pattern) for pattern in identity.patterns] == ["stock:*", "watchlist:7/*"]
    assert authenticator.known(token) is identity


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (RSA_KEY, "RS256"),
        (RSA_KEY, "RS512"),
        (RSA_KEY, "PS256"),
        (P256_KEY, "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (ec.generate_private_key(ec.SECP521R1()), "ES512"),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
        (ed448.Ed448PrivateKey.generate(), "EdDSA"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
async def test_public_keys_of_all_kinds_verify(tmp_path: Path, key: Any, algorithm: str) -> None:
    """Each with its own algorithm, inline or in a thread, and no other key's signature."""
    others = [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())]
    for authenticator in (with_keys(tmp_path, key), with_keys(tmp_path, *others, key)):
        for filler in ("", "x" * 4000):  # a long token is verified in a thread
            token = signed(key, algorithm, filler=filler)
            assert (await authenticator.authenticate(token)).user_id == "42"
    header, payload, _ = signed(key, algorithm).split(".")
    _, _, signature = signed(key, algorithm, sub="43").split(".")
    error = await refusal(authenticator, f"{header}.{payload}.{signature}")
    assert error.message == "the token's signature is not valid"


def unsigned(header: dict[str, Any], **changes: Any) -> str:
    """A token without a signature."""
    parts = [json.dumps(part).encode() for part in (header, claims(**changes))]
    encoded = [base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, ""])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "", "not a JWT"),
        (lambda: "a.b", "not a JWT"),
        (lambda: "a.b.c.d", "not a JWT"),
        (lambda: "é.é.é", "not a JWT"),
        (lambda: "\ud800.b.c", "not a JWT"),
        (lambda: "!!!!.bbbb.cccc", "header is not JSON"),
        (lambda: "bnVsbA.bbbb.cccc", "names no algorithm"),  # null
        (lambda: signed() + "A", "signature is not valid"),
        (lambda: signed()[:-4] + "AAAA", "signature is not valid"),
        (lambda: signed(SECRET + "x"), "signature is not valid"),
        (lambda: unsigned({"alg": "none"}), "algorithm"),
        (lambda: unsigned({"alg": "None"}), "algorithm"),
        (lambda: unsigned({"alg": "HS256"}), "signature is not valid"),
        (lambda: unsigned({"alg": ["HS256"]}), "names no algorithm"),
        (lambda: unsigned({"alg": "HS256", "kid": 1}), "kid that is not a string"),
        (lambda: unsigned({"alg": "HS256", "crit": ["x"]}), "crit or b64"),
        (lambda: unsigned({"alg": "HS256", "kid": "x" * 1000}), "header is longer"),
        (lambda: signed(RSA_KEY, "RS256"), "none of this server's"),
        (lambda: signed(sub=None), "no sub"),
        (lambda: signed(sub=""), "sub is none"),
        (lambda: signed(sub="4*"), "sub is none"),
        (lambda: signed(sub="x" * 65), "sub is none"),
        (lambda: signed(exp=None), "no exp"),
        (lambda: signed(exp="tomorrow"), "exp is not a number"),
        (lambda: signed(exp=True), "exp is not a number"),
        (lambda: signed(exp=10**400), "exp is not a number"),
        (lambda: signed(exp=float("nan")), "exp is not a number"),
        (lambda: signed(nbf=int(NOW) + 40), "not valid yet"),
        (lambda: signed(nbf=[]), "nbf is not a number"),
        (lambda: signed(iat=int(NOW) + 40), "issued in the future"),
        (lambda: signed(aud="another"), "none configured"),
        (lambda: signed(jti="x" * 257), "jti is not"),
        (lambda: signed(jti=7), "jti is not"),
        (lambda: signed(topics="stock:*"), "not an array"),
        (lambda: signed(topics=["stock:*", "stock"]), r"topics\[1\] is no pattern"),
        (lambda: signed(topics=[7]), r"topics\[0\] is no pattern"),
        (lambda: signed(topics=["stock:*"] * 101), "more than 100 patterns"),
        (lambda: signed(token_use="refresh"), "no access token"),
        (lambda: signed(typ="Refresh"), "no access token"),
        (lambda: signed(filler="x" * 65_536), "longer than 8192"),
        (lambda: "x" * 65_536, "longer than 8192"),
        (lambda: "." * 65_536, "longer than 8192"),
    ],
)
async def test_an_invalid_token_is_refused_with_the_reason(
    tmp_path: Path, make: Callable[[], str], message: str
) -> None:
    """The reason is for people; the code says that the token is of no use."""
    error = await refusal(with_secret(tmp_path), make())
    assert error.code is ErrorCode.INVALID_TOKEN
    assert error.is_final
    assert re.search(message, error.message), error.message


@pytest.mark.parametrize(
    "confusion",
    [
        pem(RSA_KEY),
        pem(RSA_KEY).strip(),
        RSA_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    ],
)
async def test_a_public_key_is_no_secret(tmp_path: Path, confusion: bytes) -> None:
    """Whoever knows it, which is everybody, cannot sign with it by HMAC."""
    authenticator = with_keys(tmp_path, RSA_KEY)
    hmac = jwt.get_algorithm_by_name("HS256")
    signing_input = unsigned({"alg": "HS256"}).removesuffix(".")
    signature = base64.urlsafe_b64encode(hmac.sign(signing_input.encode(), confusion))
    token = f"{signing_input}.{signature.rstrip(b'=').decode()}"
    assert "none of this server's" in (await refusal(authenticator, token)).message


async def test_an_algorithm_that_is_not_allowed_is_refused(tmp_path: Path) -> None:
    """Although the key could verify it."""
    authenticator = with_keys(tmp_path, RSA_KEY, auth_algorithms=("PS256", "ES256"))
    assert (await authenticator.authenticate(signed(RSA_KEY, "PS256"))).user_id == "42"
    error = await refusal(authenticator, signed(RSA_KEY, "RS256"))
    assert "not among those allowed" in error.message


async def test_an_expired_token_says_so(tmp_path: Path) -> None:
    """It is not final: a new token helps."""
    error = await refusal(with_secret(tmp_path), signed(exp=int(NOW) - 31))
    assert (error.code, error.is_final) == (ErrorCode.TOKEN_EXPIRED, False)


@pytest.mark.parametrize("seconds", [-25, 0, 25])
async def test_clocks_may_differ_within_the_leeway(tmp_path: Path, seconds: int) -> None:
    """A token of a clock that is ahead or behind is accepted, at its beginning and its end."""
    authenticator = with_secret(tmp_path)
    here = int(NOW) + seconds
    both: list[dict[str, Any]] = [{"iat": here, "nbf": here}, {"exp": here}]
    for times in both:
        assert (await authenticator.authenticate(signed(**times))).user_id == "42"


async def test_clocks_may_not_differ_beyond_the_leeway(tmp_path: Path) -> None:
    """40 seconds are too much, unless a setting allows them."""
    ahead, behind = signed(nbf=int(NOW) + 40), signed(exp=int(NOW) - 40)
    for token in (ahead, behind):
        await refusal(with_secret(tmp_path), token)
        await with_secret(tmp_path, auth_leeway_seconds=41).authenticate(token)


async def test_audience_and_issuer_are_those_of_the_settings(tmp_path: Path) -> None:
    """A token for another service, or of another issuer, is of no use here."""
    authenticator = with_secret(tmp_path, auth_audience="streamer", auth_issuer="https://a.example")
    good: dict[str, Any] = {"aud": "streamer", "iss": "https://a.example"}
    await authenticator.authenticate(signed(**good))
    await authenticator.authenticate(signed(**good | {"aud": ["other", "streamer"]}))
    for changes, message in (
        ({"aud": None}, "has no aud"),
        ({"aud": "other"}, "another audience"),
        ({"aud": ["other"]}, "another audience"),
        ({"aud": {"streamer": 1}}, "another audience"),
        ({"iss": None}, "has no iss"),
        ({"iss": "https://a.example/"}, "another issuer"),
    ):
        error = await refusal(authenticator, signed(**good | changes))
        assert message in error.message


async def test_a_setting_allows_tokens_without_end(tmp_path: Path) -> None:
    """Not by default."""
    authenticator = with_secret(tmp_path, auth_require_expiry=False)
    assert (await authenticator.authenticate(signed(exp=None))).expires_at is None


async def test_a_known_token_is_known_until_it_expires(tmp_path: Path) -> None:
    """Then it is refused as any other expired token."""
    now = NOW
    authenticator = Authenticator(
        Settings(auth="required", auth_secret_file=secret_file(tmp_path)), clock=lambda: now
    )
    token = signed(exp=int(NOW) + 60)
    await authenticator.authenticate(token)
    now += 89
    assert authenticator.known(token) is not None
    now += 2
    assert authenticator.known(token) is None
    assert (await refusal(authenticator, token)).code is ErrorCode.TOKEN_EXPIRED


async def test_a_revoked_token_is_refused_known_or_not(tmp_path: Path) -> None:
    """From the moment of the revocation."""
    revoked: set[str | None] = set()

    class Revoked:
        def is_revoked(self, identity: Identity) -> bool:
            return identity.token_id in revoked

    authenticator = Authenticator(
        Settings(auth="required", auth_secret_file=secret_file(tmp_path)),
        revocations=Revoked(),
        clock=lambda: NOW,
    )
    token, other = signed(jti="1"), signed(jti="2")
    await authenticator.authenticate(token)
    revoked.add("1")
    assert authenticator.known(token) is None
    assert "revoked" in (await refusal(authenticator, token)).message
    await authenticator.authenticate(other)


async def test_memory_for_known_tokens_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest are verified again."""
    monkeypatch.setattr(module, "_MAX_KNOWN", 3)
    authenticator = with_secret(tmp_path)
    tokens = [signed(jti=str(number)) for number in range(5)]
    for token in tokens:
        await authenticator.authenticate(token)
    assert [authenticator.known(token) is not None for token in tokens] == [False] * 2 + [True] * 3


@given(st.text(max_size=200) | st.text("abcABC0129-_.=", max_size=200))
async def test_any_text_is_refused_without_another_error(text: str) -> None:
    """Whatever a client sends as a token."""
    authenticator = Authenticator(Settings())
    assert authenticator.known(text) is None
    with pytest.raises(TokenError):
        await authenticator.authenticate(text)


@given(st.integers(0, MAX_TOKEN_CHARACTERS), st.characters(codec="ascii"))
async def test_a_token_that_was_changed_anywhere_is_refused(position: int, character: str) -> None:
    """No character of it is unprotected."""
    token = signed(topics=["stock:*"])
    changed = token[: (at := position % len(token))] + character + token[at + 1 :]
    if changed != token:
        with pytest.raises(TokenError):
            await SHARED.authenticate(changed)
