"""Keys that verify tokens: JWK Sets (RFC 7517), PEM, and shared secrets.

Each key names the algorithms that it may verify, by its own type. A token's header only chooses
among those, so that no public key is ever taken for the secret of an HMAC, and no token is accepted
unsigned (RFC 8725, 3.1 and 3.2).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import attrs
import jwt
import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

HMAC_ALGORITHMS: Final = ("HS256", "HS384", "HS512")
RSA_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
EC_ALGORITHMS: Final = {SECP256R1: "ES256", SECP384R1: "ES384", SECP521R1: "ES512"}
ALGORITHMS: Final = (*HMAC_ALGORITHMS, *RSA_ALGORITHMS, *EC_ALGORITHMS.values(), "EdDSA")

MAX_KEYS: Final = 64
"""Keys of one source: a token without `kid` is tried with each. Providers publish two to five."""

MAX_KEYS_BYTES: Final = 524_288
"""The largest JWK Set, PEM or secret file: MAX_KEYS certificates with their chains fit."""

_MIN_RSA_BITS: Final = 2048
"""RFC 7518, 3.3."""

_MAX_RSA_BITS: Final = 8192
"""Verifying takes time that grows with the square of the length."""

_SECRET_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
"""The least length of a secret, that of the hash (RFC 7518, 3.2)."""

_PEM: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_PUBLIC_TYPES: Final = ("RSA", "EC", "OKP")
_PUBLIC_MEMBERS: Final = frozenset({"kty", "crv", "x", "y", "n", "e"})


class KeyProblem(ValueError):  # noqa: N818 - a problem of the file, which its reader reports
    """Text that has no usable key; the message says why, without any of the text."""


@attrs.frozen
class VerificationKey:
    """A key, and the algorithms that it may verify."""

    key_id: str | None
    """`kid` of a JWK; None for a key that may verify any token."""
    algorithms: frozenset[str]
    key: PublicKey | bytes = attrs.field(repr=False)
    """A public key, or the bytes of a shared secret."""

    @property
    def is_secret(self) -> bool:
        """Whether the key is a shared secret."""
        return isinstance(self.key, bytes)


def secret_keys(text: bytes) -> tuple[VerificationKey, ...]:
    """Read shared secrets, one a line; empty lines count for nothing.

    Raises KeyProblem if there is none, one is too short, or the text is a public or private key:
    then whoever knows the public half could sign.
    """
    if b"-----BEGIN" in text or text.lstrip().startswith(b"{"):
        raise KeyProblem("has a PEM or JSON key, where a secret a line is expected")
    secrets = [line for line in map(bytes.strip, text.splitlines()) if line]
    _check_number(len(secrets), "secret")
    least = min(_SECRET_BYTES.values())
    if any(len(secret) < least for secret in secrets):
        raise KeyProblem(f"has a secret of fewer than {least} bytes")
    return tuple(
        VerificationKey(
            None, frozenset(a for a, size in _SECRET_BYTES.items() if len(secret) >= size), secret
        )
        for secret in secrets
    )


def public_keys(text: bytes) -> tuple[VerificationKey, ...]:
    """Read a JWK Set or PEM public keys, several one after another.

    Raises KeyProblem if there is no usable key.
    """
    if text.lstrip().startswith(b"{"):
        return jwk_set(text)
    keys = [_pem_key(match[0], match[1]) for match in _PEM.finditer(text)]
    _check_number(len(keys), "public key")
    return tuple(keys)


def jwk_set(text: bytes) -> tuple[VerificationKey, ...]:
    """Read the keys of a JWK Set that can verify signatures; skip any other.

    A key without `use` is a valid key. Secrets (`kty` of `oct`) are skipped: a set is public.
    Raises KeyProblem if no key is left.
    """
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise KeyProblem("is not JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise KeyProblem("is no JWK Set: it has no array of keys")
    keys = [key for entry in entries if (key := _jwk(entry)) is not None]
    _check_number(len(keys), "public key for signatures")
    return tuple(keys)


def candidates(
    keys: Iterable[VerificationKey], algorithm: str, key_id: str | None
) -> Iterator[VerificationKey]:
    """The keys that may have signed a token: of its algorithm, and of its `kid` if it has one.

    Keys without an id, of PEM and secret files, may have signed any.
    """
    for key in keys:
        if algorithm in key.algorithms and (key_id is None or key.key_id in {None, key_id}):
            yield key


def public_key(key: object, key_id: str | None) -> VerificationKey:
    """Make the key that verifies with a public key. Raises KeyProblem if no algorithm fits it."""
    match key:
        case RSAPublicKey():
            if not _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
                raise KeyProblem(
                    f"has an RSA key of {key.key_size} bits, where {_MIN_RSA_BITS} to "
                    f"{_MAX_RSA_BITS} are allowed"
                )
            return VerificationKey(key_id, frozenset(RSA_ALGORITHMS), key)
        case EllipticCurvePublicKey():
            algorithm = EC_ALGORITHMS.get(type(key.curve))
            if algorithm is None:
                raise KeyProblem("has a key on a curve other than P-256, P-384 and P-521")
            return VerificationKey(key_id, frozenset({algorithm}), key)
        case Ed25519PublicKey() | Ed448PublicKey():
            return VerificationKey(key_id, frozenset({"EdDSA"}), key)
        case _:
            raise KeyProblem("has a key that is none of RSA, EC, Ed25519 and Ed448")


def public_jwk(key: PublicKey) -> dict[str, Any]:
    """Return a public key as a JWK, without `kid` and `alg`."""
    algorithm = next(iter(public_key(key, None).algorithms))
    jwk: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(key, as_dict=True)
    return {name: value for name, value in jwk.items() if name in _PUBLIC_MEMBERS}


def thumbprint(key: PublicKey) -> str:
    """Return an id for a public key that follows from the key (RFC 7638)."""
    members = orjson.dumps(public_jwk(key), option=orjson.OPT_SORT_KEYS)
    return base64.urlsafe_b64encode(hashlib.sha256(members).digest()).rstrip(b"=").decode()


def _jwk(entry: Any) -> VerificationKey | None:
    """Read one key of a set; None if it cannot verify signatures."""
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    if entry.get("kty") not in _PUBLIC_TYPES:
        return None
    operations = entry.get("key_ops")
    if isinstance(operations, list) and "verify" not in operations:
        return None
    key_id = entry.get("kid")
    try:
        # Only public members: of a private key in the set, the public half is enough.
        parsed = jwt.PyJWK({name: str(entry[name]) for name in entry.keys() & _PUBLIC_MEMBERS})
        key = public_key(parsed.key, key_id if isinstance(key_id, str) else None)
    except (jwt.PyJWTError, KeyProblem, ValueError, LookupError, UnsupportedAlgorithm):
        return None
    stated = entry.get("alg")
    if stated is None:
        return key
    narrowed = key.algorithms & {stated if isinstance(stated, str) else ""}
    return attrs.evolve(key, algorithms=narrowed) if narrowed else None


def _pem_key(pem: bytes, label: bytes) -> VerificationKey:
    if label != b"PUBLIC KEY":
        raise KeyProblem(
            f"has a PEM block {label.decode()}, where only PUBLIC KEY is expected "
            "(openssl pkey -in FILE -pubout writes it)"
        )
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyProblem("has a PEM block that cannot be read") from None
    return public_key(key, None)


def _check_number(count: int, word: str) -> None:
    if count == 0:
        raise KeyProblem(f"has no {word}")
    if count > MAX_KEYS:
        raise KeyProblem(f"has more than {MAX_KEYS} keys")
