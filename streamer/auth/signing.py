"""Keys of this server's own, and the access and refresh tokens that it signs."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from streamer.auth.errors import invalid
from streamer.auth.key_files import KeyFile
from streamer.auth.keys import (
    HMAC_ALGORITHMS,
    MAX_KEYS,
    KeyProblem,
    VerificationKey,
    public_key,
    secret_keys,
    thumbprint,
)

USE_CLAIM: Final = "token_use"
ACCESS: Final = "access"
REFRESH: Final = "refresh"

_PREFERRED: Final = ("EdDSA", "ES256", "ES384", "ES512", "RS256", *HMAC_ALGORITHMS)
_TOKEN_ID_BYTES: Final = 16

_PRIVATE_PEM: Final = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL
)


class SigningKey:
    """A private key in PEM, or a shared secret, and the tokens that it signs.

    Further keys after the first sign nothing: they are earlier ones, whose tokens still hold.
    """

    def __init__(self, text: bytes) -> None:
        """Raises KeyProblem if the text has neither, or an unusable key."""
        self._private: Any
        if b"-----BEGIN" in text:
            pems = [match[0] for match in _PRIVATE_PEM.finditer(text)] or [text]
            if len(pems) > MAX_KEYS:
                raise KeyProblem(f"has more than {MAX_KEYS} keys")
            private = [_private_key(pem) for pem in pems]
            self._private = private[0]
            self.verification_keys = tuple(map(_verification_key, private))
        else:
            self.verification_keys = secret_keys(text)
            self._private = self.verification_keys[0].key
        own = self.verification_keys[0]
        self._key_id = own.key_id
        self._algorithm = next(name for name in _PREFERRED if name in own.algorithms)

    @classmethod
    def read(cls, setting: str, path: Path) -> SigningKey:
        """Read a file. Raises SettingError, with the name of the setting, if it is unusable."""
        return KeyFile(setting, path, cls).keys

    @property
    def algorithm(self) -> str:
        """The algorithm of its signatures."""
        return self._algorithm

    def token(
        self,
        user_id: str,
        *,
        use: str = ACCESS,
        topics: Sequence[str] = (),
        issued_at: float,
        lifetime_seconds: float,
        audience: str | None = None,
        issuer: str | None = None,
    ) -> str:
        """Sign a token for a user; `use` is ACCESS or REFRESH.

        A refresh token carries the topics that its access tokens will have. `issued_at` is in
        seconds since the epoch of Unix.
        """
        claims: dict[str, Any] = {
            "sub": user_id,
            "iat": int(issued_at),
            "exp": int(issued_at + lifetime_seconds),
            "jti": secrets.token_urlsafe(_TOKEN_ID_BYTES),
            USE_CLAIM: use,
        }
        if topics:
            claims["topics"] = list(topics)
        if audience is not None:
            claims["aud"] = audience
        if issuer is not None:
            claims["iss"] = issuer
        headers = {} if self._key_id is None else {"kid": self._key_id}
        return jwt.encode(claims, self._private, algorithm=self._algorithm, headers=headers)


def check_is_access(claims: dict[str, Any]) -> None:
    """Raise TokenError for a refresh token, of this server or of Keycloak (`typ`)."""
    use = claims.get(USE_CLAIM, ACCESS)
    kind = claims.get("typ")
    if use != ACCESS or (isinstance(kind, str) and kind.casefold() == REFRESH):
        raise invalid("the token is no access token")


def check_is_refresh(claims: dict[str, Any]) -> None:
    """Raise TokenError for a token that is not one of this server's refresh tokens."""
    if claims.get(USE_CLAIM) != REFRESH:
        raise invalid("the token is no refresh token")


def _verification_key(private: Any) -> VerificationKey:
    public = private.public_key()
    return public_key(public, thumbprint(public))


def _private_key(text: bytes) -> object:
    try:
        return load_pem_private_key(text, password=None)
    except TypeError:
        raise KeyProblem("has a private key with a passphrase, which cannot be asked for") from None
    except (ValueError, UnsupportedAlgorithm):
        raise KeyProblem("has no private key that can be read") from None
