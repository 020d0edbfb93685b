"""Keys: what JWK Sets, PEM and secret files may have, and which keys are of use."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from streamer.auth.keys import (
    ALGORITHMS,
    RSA_ALGORITHMS,
    KeyProblem,
    VerificationKey,
    jwk_set,
    public_jwk,
    public_keys,
    secret_keys,
    thumbprint,
)
from streamer.setting_rules import ALGORITHMS as SETTABLE_ALGORITHMS

RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def pem(key: Any) -> bytes:
    """A public key in PEM."""
    text: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text


def private_pem(key: Any) -> bytes:
    """A private key in PEM."""
    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return text


def keys_of(*entries: Any) -> tuple[VerificationKey, ...]:
    """The keys of a JWK Set."""
    return jwk_set(json.dumps({"keys": entries}).encode())


def jwk(key: Any, **members: Any) -> dict[str, Any]:
    """A public key as a JWK."""
    return public_jwk(key.public_key()) | members


def test_the_settings_allow_the_algorithms_that_keys_have() -> None:
    """One list for the settings, which know nothing of keys, and one for the keys."""
    assert set(ALGORITHMS) == set(SETTABLE_ALGORITHMS)


def test_each_line_is_a_secret() -> None:
    """So that a new one can be added before the old one goes."""
    first, second = secret_keys(b"x" * 32 + b"\n\n  " + b"y" * 64 + b"\r\n")
    assert (first.key, second.key) == (b"x" * 32, b"y" * 64)
    assert first.algorithms == {"HS256"}
    assert second.algorithms == {"HS256", "HS384", "HS512"}
    assert "xxx" not in repr(first)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "has no secret"),
        (b"\n \n", "has no secret"),
        (b"short", "fewer than 32 bytes"),
        (b"x" * 32 + b"\nshort", "fewer than 32 bytes"),
        (pem(RSA_KEY), "has a PEM or JSON key"),
        (private_pem(RSA_KEY), "has a PEM or JSON key"),
        (b' {"keys": []}', "has a PEM or JSON key"),
        (b"\n".join([b"x" * 32] * 65), "more than 64 keys"),
    ],
)
def test_what_is_no_secret_is_refused(text: bytes, problem: str) -> None:
    """Above all a public key, with which everybody could sign."""
    with pytest.raises(KeyProblem, match=problem) as refused:
        secret_keys(text)
    assert "short" not in str(refused.value)


def test_a_file_may_have_several_pem_keys() -> None:
    """With text around them, as tools write it."""
    rsa_key, ed_key = public_keys(b"# first\n" + pem(RSA_KEY) + b"# second\n" + pem(ED_KEY))
    assert rsa_key.algorithms == set(RSA_ALGORITHMS)
    assert ed_key.algorithms == {"EdDSA"}
    assert rsa_key.key_id is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "has no public key"),
        (b"a secret", "has no public key"),
        (private_pem(EC_KEY), "PEM block PRIVATE KEY"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "cannot be read"),
        (pem(rsa.generate_private_key(65537, 1024)), "RSA key of 1024 bits"),
        (pem(ec.generate_private_key(ec.SECP256K1())), "curve other than"),
        (pem(dsa.generate_private_key(2048)), "none of RSA, EC"),
        (b"{", "is not JSON"),
        (b"{}", "no array of keys"),
        (b'{"keys": {}}', "no array of keys"),
        (b'{"keys": []}', "has no public key for signatures"),
    ],
)
def test_what_is_no_public_key_is_refused(text: bytes, problem: str) -> None:
    """A private key belongs elsewhere; a weak one protects nothing."""
    with pytest.raises(KeyProblem, match=problem):
        public_keys(text)


def test_a_set_is_read_as_providers_write_it() -> None:
    """With or without use, alg and kid; the private half of a key is left out."""
    private = json.loads(json.dumps(jwk(EC_KEY))) | {"d": "AAAA"}
    keys = keys_of(
        jwk(RSA_KEY, kid="1", use="sig", alg="RS256", x5c=["AAAA"]),
        jwk(ED_KEY, kid="2"),
        private,
        jwk(EC_KEY, key_ops=["verify"]),
    )
    assert [key.key_id for key in keys] == ["1", "2", None, None]
    assert keys[0].algorithms == {"RS256"}
    assert keys[1].algorithms == {"EdDSA"}
    assert keys[2].key == EC_KEY.public_key()


SKIPPED: list[Any] = [
    None,
    7,
    {},
    {"kty": "oct", "k": base64.b64encode(b"x" * 32).decode(), "alg": "HS256"},
    {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
    {"kty": "RSA", "n": 1, "e": []},
    {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
    {"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43},  # no point of the curve
    {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"},
    {"kty": "OKP", "crv": "X25519", "x": "AA"},
    {"kty": "unknown"},
    jwk(RSA_KEY, use="enc"),
    jwk(RSA_KEY, key_ops=["encrypt"]),
    jwk(RSA_KEY, alg="HS256"),
    jwk(RSA_KEY, alg="none"),
    jwk(RSA_KEY, alg=["RS256"]),
]


@pytest.mark.parametrize("entry", SKIPPED)
def test_a_key_of_no_use_spoils_no_other(entry: Any) -> None:
    """Keys for encryption, of unknown types, broken ones, and secrets in a public place."""
    (key,) = keys_of(entry, jwk(EC_KEY, kid="good"))
    assert key.key_id == "good"
    with pytest.raises(KeyProblem, match="no public key for signatures"):
        keys_of(entry)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)


@given(
    st.dictionaries(st.sampled_from(["kty", "crv", "x", "y", "n", "e", "use", "alg", "kid"]), JSON)
    | st.fixed_dictionaries(
        {"kty": st.sampled_from(["RSA", "EC", "OKP"])},
        optional=dict.fromkeys(
            ["crv", "x", "y", "n", "e"], st.sampled_from(["P-256", "Ed25519", "AQAB", ""]) | JSON
        ),
    )
)
def test_any_json_is_a_key_or_skipped(entry: dict[str, Any]) -> None:
    """No set makes the server fail."""
    keys_of(entry, jwk(EC_KEY))


@given(st.binary(max_size=200))
def test_any_bytes_are_keys_or_refused(text: bytes) -> None:
    """No file causes another error."""
    parsers: tuple[Callable[[bytes], object], ...] = (secret_keys, public_keys, jwk_set)
    for parse in parsers:
        try:
            parse(text)
        except KeyProblem:
            continue


def test_a_thumbprint_is_that_of_the_standard() -> None:
    """The example of RFC 8037, A.3."""
    x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    (key,) = keys_of({"kty": "OKP", "crv": "Ed25519", "x": x})
    assert not isinstance(key.key, bytes)
    assert thumbprint(key.key) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
