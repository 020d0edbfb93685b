"""The authenticator: from a token to an identity, with the keys that the settings name."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

import trio
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from streamer.auth.claims import (
    MAX_TOKEN_CHARACTERS,
    ClaimRules,
    Header,
    check_expiry,
    identity_of,
    read_header,
    verified_claims,
)
from streamer.auth.errors import TokenError, invalid
from streamer.auth.identity import Identity
from streamer.auth.jwks import JwksSource
from streamer.auth.key_files import KeyFile
from streamer.auth.keys import (
    HMAC_ALGORITHMS,
    KeyProblem,
    VerificationKey,
    candidates,
    public_keys,
    secret_keys,
)
from streamer.auth.refresh import TokenEndpoint
from streamer.auth.revocations import NoRevocations, Revocations
from streamer.auth.signing import SigningKey, check_is_access, check_is_refresh
from streamer.config import Settings
from streamer.protocol.json_text import is_utf8

_MAX_KNOWN: Final = 20_000
"""Verified tokens kept: about 1 KB each, for twice the clients that one process is meant for."""

_FILE_CHECK_SECONDS: Final = 2.0
"""How often key files are looked at: soon enough for a rotation by hand to be seen at work."""

_MAX_THREADS: Final = 2
"""Threads that verify at a time: verification is work for the CPU, and others need it as well."""

_MAX_INLINE_CHARACTERS: Final = 2048
_MAX_INLINE_RSA_BITS: Final = 3072
_MAX_INLINE_SECRETS: Final = 4


class Authenticator:
    """Verifies tokens, keeps the results, and issues new tokens for refresh tokens.

    `run` has to run beside it: it fetches a JWK Set, and reads changed key files again. Messages of
    errors say what is wrong without any of the token, so that they can be sent and logged.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        revocations: Revocations | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Read the key files. Raises SettingError if one is unusable.

        `clock` gives seconds since the epoch of Unix.
        """
        self._settings = settings
        self._revocations = NoRevocations() if revocations is None else revocations
        self._clock = clock
        self._rules = ClaimRules(
            algorithms=frozenset(settings.auth_algorithms),
            audience=settings.auth_audience,
            issuer=settings.auth_issuer,
            leeway_seconds=settings.auth_leeway_seconds,
            require_expiry=settings.auth_require_expiry,
        )
        self._files: list[KeyFile[tuple[VerificationKey, ...]]] = []
        self._jwks: JwksSource | None = None
        self._signing_file: KeyFile[SigningKey] | None = None
        self._endpoint: TokenEndpoint | None = None
        if settings.auth != "none":
            self._take_keys(settings)
        self._known: dict[bytes, Identity] = {}
        self._key_changes = 0
        """How often the keys have changed."""
        self._threads = trio.CapacityLimiter(_MAX_THREADS)

    def _take_keys(self, settings: Settings) -> None:
        if settings.auth_secret_file is not None:
            self._files.append(KeyFile("auth_secret_file", settings.auth_secret_file, secret_keys))
        if settings.auth_keys_file is not None:
            self._files.append(KeyFile("auth_keys_file", settings.auth_keys_file, public_keys))
        if settings.auth_jwks_url is not None:
            self._jwks = JwksSource(settings.auth_jwks_url, self._forget)
        if settings.auth_signing_key_file is not None:
            self._signing_file = KeyFile(
                "auth_signing_key_file", settings.auth_signing_key_file, self._signing_key
            )
        if settings.auth_refresh_url is not None:
            self._endpoint = TokenEndpoint(
                settings.auth_refresh_url,
                settings.auth_client_id,
                settings.auth_client_secret_file,
            )

    def _signing_key(self, text: bytes) -> SigningKey:
        """Read a key to sign with. Raises KeyProblem if this server would refuse its tokens."""
        key = SigningKey(text)
        if key.algorithm not in self._rules.algorithms:
            raise KeyProblem(f"has a key for {key.algorithm}, which is not among auth_algorithms")
        return key

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the keys up to date; started after the first attempt to fetch a JWK Set.

        Returns at once if there is nothing to keep up to date.
        """
        async with trio.open_nursery() as nursery:
            if self._jwks is not None:
                await nursery.start(self._jwks.run)
            if self._watched:
                nursery.start_soon(self._watch_files)
            task_status.started()

    @property
    def _watched(self) -> list[KeyFile[Any]]:
        signing = [] if self._signing_file is None else [self._signing_file]
        return [*self._files, *signing]

    async def _watch_files(self) -> NoReturn:
        while True:
            await trio.sleep(_FILE_CHECK_SECONDS)
            for file in self._watched:
                if await trio.to_thread.run_sync(file.read_if_changed):
                    self._forget()

    def _forget(self) -> None:
        """Verify every token anew: the key of one may have been withdrawn."""
        self._known.clear()
        self._key_changes += 1

    # Access tokens

    def known(self, token: str) -> Identity | None:
        """Return the identity of a token that was verified before and still holds.

        Never waits. None for any other token: then `authenticate` decides.
        """
        if len(token) > MAX_TOKEN_CHARACTERS:
            return None
        digest = _digest(token)
        identity = self._known.get(digest)
        if identity is None:
            return None
        try:
            check_expiry(identity.expires_at, self._rules, self._clock())
            self._check_not_revoked(identity)
        except TokenError:
            del self._known[digest]
            return None
        return identity

    async def authenticate(self, token: str) -> Identity:
        """Verify an access token. Raises TokenError."""
        identity = self.known(token)
        if identity is not None:
            return identity
        while True:
            key_changes = self._key_changes
            claims = await self._claims(token)
            # The key may have been withdrawn while a thread verified the token with it.
            if key_changes == self._key_changes:
                break
        check_is_access(claims)
        identity = self._accepted(claims)
        self._known.pop(digest := _digest(token), None)
        if len(self._known) >= _MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[digest] = identity
        return identity

    def _accepted(self, claims: dict[str, Any]) -> Identity:
        identity = identity_of(claims, self._rules, self._clock())
        self._check_not_revoked(identity)
        return identity

    def _check_not_revoked(self, identity: Identity) -> None:
        if self._revocations.is_revoked(identity):
            raise invalid("the token was revoked")

    async def _claims(self, token: str) -> dict[str, Any]:
        header = read_header(token)
        if header.algorithm not in self._rules.algorithms:
            # Not quoted: it may be anything up to the size of a header.
            raise invalid("the token's algorithm (alg) is not among those allowed here")
        keys = self._keys_for(header)
        jwks = self._jwks
        is_named = any(key.key_id == header.key_id for key in keys)
        # A token without kid may be of any key, so it asks for others only where there is none.
        may_be_new = not keys if header.key_id is None else not is_named
        # No JWK Set has secrets, so none can have the key of an HMAC.
        if jwks is not None and may_be_new and header.algorithm not in HMAC_ALGORITHMS:
            was_fetched = await jwks.find_unknown_key()
            keys = self._keys_for(header)
            if not keys:
                # Another token would do no better where the fetch failed or came too soon.
                is_final = was_fetched and jwks.last_error is None
                raise invalid("the token's key (kid) is not known here", is_final=is_final)
        if not keys:
            raise invalid("the token's key (kid) or algorithm (alg) is none of this server's")
        return await self._verify(token, header, keys)

    def _keys_for(self, header: Header) -> list[VerificationKey]:
        keys = [key for file in self._files for key in file.keys]
        if self._jwks is not None:
            keys += self._jwks.keys
        if self._signing_file is not None:
            keys += self._signing_file.keys.verification_keys
        return list(candidates(keys, header.algorithm, header.key_id))

    async def _verify(
        self, token: str, header: Header, keys: list[VerificationKey]
    ) -> dict[str, Any]:
        if _is_cheap(token, keys):
            return verified_claims(token, header, keys, self._rules)
        return await trio.to_thread.run_sync(
            verified_claims, token, header, keys, self._rules, limiter=self._threads
        )

    # Refresh tokens

    async def refresh(self, refresh_token: str) -> tuple[str, Identity]:
        """Return a new access token for a refresh token, and its identity. Raises TokenError.

        Refresh tokens of this server's signing key are taken if it has one, otherwise those of the
        token endpoint.
        """
        if self._signing_file is not None:
            access_token = await self._sign_for(self._signing_file.keys, refresh_token)
        elif self._endpoint is not None:
            if len(refresh_token) > MAX_TOKEN_CHARACTERS:
                raise invalid(f"the token is longer than {MAX_TOKEN_CHARACTERS} characters")
            if not is_utf8(refresh_token):
                raise invalid("the token is not UTF-8")
            access_token = await self._endpoint.access_token(refresh_token)
        else:
            raise invalid(
                "this server does not refresh tokens: get a new one where the first came from, "
                "and send it with authenticate"
            )
        return access_token, await self.authenticate(access_token)

    async def _sign_for(self, signing_key: SigningKey, refresh_token: str) -> str:
        header = read_header(refresh_token)
        keys = list(candidates(signing_key.verification_keys, header.algorithm, header.key_id))
        if not keys:
            raise invalid("the token is no refresh token of this server")
        claims = await self._verify(refresh_token, header, keys)
        check_is_refresh(claims)
        identity = self._accepted(claims)
        return signing_key.token(
            identity.user_id,
            topics=[str(pattern) for pattern in identity.patterns],
            issued_at=self._clock(),
            lifetime_seconds=self._settings.auth_token_lifetime_seconds,
            audience=self._settings.auth_audience,
            issuer=self._settings.auth_issuer,
        )


def _digest(token: str) -> bytes:
    """The name of a token in memory, from which it cannot be had again."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def _is_cheap(token: str, keys: list[VerificationKey]) -> bool:
    """Whether a verification takes well under 1 ms of the event loop.

    Measured with Python 3.11 on one busy core, medians of 200: HS256 0.08 ms, RS256 with 2048 bits
    0.10, ES256 0.16, Ed25519 0.18, RS512 with 4096 bits 0.19, Ed448 0.34, ES384 and ES512 0.71, and
    0.46 more for a token of 7,500 characters.
    """
    if len(token) > _MAX_INLINE_CHARACTERS:
        return False
    if all(key.is_secret for key in keys):
        return len(keys) <= _MAX_INLINE_SECRETS
    if len(keys) > 1:
        return False
    match keys[0].key:
        case RSAPublicKey() as rsa:
            return rsa.key_size <= _MAX_INLINE_RSA_BITS
        case EllipticCurvePublicKey() as ec:
            return isinstance(ec.curve, SECP256R1)
        case key:
            return isinstance(key, Ed25519PublicKey)
