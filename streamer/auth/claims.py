"""Verification of a token, and the identity that its claims give. No I/O."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable
from typing import Any, Final

import attrs
import jwt
import orjson

from streamer.auth.errors import TokenError, invalid
from streamer.auth.identity import Identity
from streamer.auth.keys import VerificationKey
from streamer.protocol.errors import ErrorCode
from streamer.protocol.patterns import TopicPattern
from streamer.protocol.topics import TARGET_RULE, is_target

MAX_TOKEN_CHARACTERS: Final = 8192
"""The longest token: servers in front limit a whole header to about this, so no token is longer."""

MAX_PATTERNS: Final = 100
"""Patterns in one token: each topic of a request is compared with all of them."""

_MAX_HEADER_CHARACTERS: Final = 1024
"""The longest header: it is read before any signature is verified."""

_MAX_ID_CHARACTERS: Final = 256
"""The longest `jti`, which revocations name."""


@attrs.frozen
class Header:
    """The members of a token's header that choose the key. Nothing of it is proven."""

    algorithm: str
    key_id: str | None


@attrs.frozen(kw_only=True)
class ClaimRules:
    """The rules for the claims of a token that has a valid signature."""

    algorithms: frozenset[str]
    audience: str | None
    issuer: str | None
    leeway_seconds: float
    require_expiry: bool


def read_header(token: str) -> Header:
    """Read the header of a token, at a cost that its size bounds. Raises TokenError."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise invalid(f"the token is longer than {MAX_TOKEN_CHARACTERS} characters")
    if not token.isascii() or token.count(".") != 2:
        raise invalid("the token is not a JWT: three parts of base64url with a dot between")
    encoded = token.partition(".")[0]
    if len(encoded) > _MAX_HEADER_CHARACTERS:
        raise invalid(f"the token's header is longer than {_MAX_HEADER_CHARACTERS} characters")
    try:
        padded = encoded + "=" * (-len(encoded) % 4)
        header = orjson.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, orjson.JSONDecodeError):
        raise invalid("the token's header is not JSON in base64url") from None
    algorithm = header.get("alg") if isinstance(header, dict) else None
    if not isinstance(algorithm, str):
        raise invalid("the token's header names no algorithm (alg)")
    if "crit" in header or "b64" in header:
        raise invalid("the token's header has crit or b64, which this server does not support")
    key_id = header.get("kid")
    if not isinstance(key_id, str | None):
        raise invalid("the token's header has a kid that is not a string")
    return Header(algorithm, key_id)


def verified_claims(
    token: str, header: Header, keys: Iterable[VerificationKey], rules: ClaimRules
) -> dict[str, Any]:
    """Return the claims of a token that one of the keys verifies, audience and issuer checked.

    Raises TokenError. `keys` are those of its algorithm; times are checked by `identity_of`.
    """
    options: Any = {
        "verify_exp": False,
        "verify_nbf": False,
        "verify_iat": False,
        "verify_sub": False,
        "verify_jti": False,
    }
    for key in keys:
        try:
            return jwt.decode(
                token,
                key.key,
                algorithms=[header.algorithm],
                options=options,
                audience=rules.audience,
                issuer=rules.issuer,
            )
        except jwt.InvalidSignatureError:
            continue
        except jwt.InvalidTokenError as error:
            raise invalid(_problem(error, rules)) from None
    raise invalid("the token's signature is not valid")


def identity_of(claims: dict[str, Any], rules: ClaimRules, now: float) -> Identity:
    """Make the identity that verified claims give. Raises TokenError.

    `now` is in seconds since the epoch of Unix.
    """
    expires_at = _time(claims, "exp")
    not_before = _time(claims, "nbf")
    issued_at = _time(claims, "iat")
    if expires_at is None and rules.require_expiry:
        raise invalid("the token does not expire: it has no exp")
    check_expiry(expires_at, rules, now)
    if not_before is not None and not_before > now + rules.leeway_seconds:
        raise invalid("the token is not valid yet (nbf)")
    if issued_at is not None and issued_at > now + rules.leeway_seconds:
        raise invalid("the token was issued in the future (iat)")
    user_id = claims.get("sub")
    if user_id is None:
        raise invalid("the token names no user: it has no sub")
    if not is_target(user_id):
        raise invalid(f"the token's sub is none that a user can have: {TARGET_RULE}")
    token_id = claims.get("jti")
    if not isinstance(token_id, str | None) or len(token_id or "") > _MAX_ID_CHARACTERS:
        raise invalid(f"the token's jti is not a string of up to {_MAX_ID_CHARACTERS} characters")
    return Identity(user_id, expires_at, issued_at, token_id, _patterns(claims))


def check_expiry(expires_at: float | None, rules: ClaimRules, now: float) -> None:
    """Raise TokenError if a token has expired, leeway included."""
    if expires_at is not None and expires_at <= now - rules.leeway_seconds:
        raise TokenError(ErrorCode.TOKEN_EXPIRED, "the token has expired (exp)")


def _problem(error: jwt.InvalidTokenError, rules: ClaimRules) -> str:
    """Describe an error without the text of PyJWT, which may quote the token."""
    match error:
        case jwt.MissingRequiredClaimError():
            return f"the token has no {error.claim}, which this server requires"
        case jwt.InvalidAudienceError() if rules.audience is None:
            # RFC 7519, 4.1.3: who is not named in `aud` must not accept the token.
            return "the token is for an audience (aud), and this server has none configured"
        case jwt.InvalidAudienceError():
            return "the token is for another audience (aud)"
        case jwt.InvalidIssuerError():
            return "the token is of another issuer (iss)"
        case _:
            return "the token is not a JWT that can be read"


def _time(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    try:
        seconds = float(value) if type(value) in {int, float} else math.nan
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise invalid(f"the token's {name} is not a number of seconds")
    return seconds


def _patterns(claims: dict[str, Any]) -> tuple[TopicPattern, ...]:
    topics = claims.get("topics", [])
    if not isinstance(topics, list):
        raise invalid("the token's topics are not an array of patterns")
    if len(topics) > MAX_PATTERNS:
        raise invalid(f"the token has more than {MAX_PATTERNS} patterns in topics")
    patterns = []
    for number, text in enumerate(topics):
        try:
            patterns.append(TopicPattern.parse(text))
        except ValueError:
            raise invalid(
                f"the token's topics[{number}] is no pattern such as stock:* or watchlist:42/*"
            ) from None
    return tuple(patterns)
