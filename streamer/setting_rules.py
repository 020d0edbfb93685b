"""The rules for settings: a setting's field, its validator and its error."""

import ipaddress
import math
import re
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final, get_args
from urllib.parse import urlsplit

import attrs

from streamer.broker.urls import (
    CLUSTER_SCHEMES,
    SENTINEL_SCHEMES,
    SINGLE_SCHEMES,
    HostsURL,
    check_database,
    check_options,
    has_scheme,
)
from streamer.listen_error import split_hosts, without_brackets
from streamer.origins import normalize_origin
from streamer.protocol.patterns import TopicPattern
from streamer.protocol.topics import SubscriptionType
from streamer.urls import redact

REDIS_SCHEMES: Final = (*SINGLE_SCHEMES, *SENTINEL_SCHEMES, *CLUSTER_SCHEMES)

MAX_SECONDS: Final = 366 * 86_400
"""A year: within the range of every timer, here and in Redis."""

MAX_COUNT: Final = 2**31 - 1
"""The largest count that Redis, the kernel and C libraries all accept."""

MAX_BYTES: Final = 2**40
"""More memory than a machine has."""

MAX_MESSAGE_BYTES: Final = 512 * 2**20
"""The largest string that Redis accepts."""

ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
    *("HS256", "HS384", "HS512"),
)
"""The algorithms of signatures that can be allowed (RFC 7518, RFC 8037); never `none`."""

_COOKIE_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
"""A token of HTTP (RFC 6265, 4.1.1)."""

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")


class SettingError(ValueError):
    """A setting was given a value that it does not allow.

    `setting` is its name; the message says which values are allowed.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting} {problem}")
        self.setting = setting


@attrs.frozen
class Allowed:
    """An attrs validator: a test, and the values that pass it in words."""

    words: str
    test: Callable[[Any], bool]
    edges: tuple[float, float] | None = None
    """The least and the greatest value, if they are numbers."""

    def __call__(self, _settings: Any, attribute: "attrs.Attribute[Any]", value: object) -> None:
        """Raise SettingError unless the value passes the test."""
        if not self.test(value):
            raise SettingError(attribute.name, f"must be {self.words}, not {redact(repr(value))}")


def setting(
    default: Any, allowed: Allowed, help_text: str, *, heading: str | None = None, **options: Any
) -> Any:
    """Make a field with its `help` and, if it begins a group, the group's `heading` as metadata."""
    return attrs.field(
        default=default,
        validator=allowed,
        metadata={"help": help_text, "heading": heading},
        **options,
    )


def is_integer(value: object) -> bool:
    """Whether the value is an integer; a boolean is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether the value is a finite number; a boolean is not."""
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def integer(minimum: int, maximum: int = MAX_COUNT) -> Allowed:
    """Allow integers from `minimum` to `maximum`, both included."""
    return Allowed(
        f"a whole number from {minimum} to {maximum}",
        lambda value: is_integer(value) and minimum <= value <= maximum,
        edges=(minimum, maximum),
    )


def number(minimum: float, maximum: float) -> Allowed:
    """Allow numbers from `minimum` to `maximum`, both included."""
    return Allowed(
        f"a number from {minimum:.15g} to {maximum:.15g}",
        lambda value: is_number(value) and minimum <= value <= maximum,
        edges=(minimum, maximum),
    )


def choice(literal: Any) -> Allowed:
    """Allow the words of a `Literal`."""
    words = get_args(literal)
    return Allowed(f"one of {', '.join(words)}", lambda value: value in words)


def _is_redis_url(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        if has_scheme(value, SENTINEL_SCHEMES):
            return bool(HostsURL.parse(value, default_port=0).path)
        if has_scheme(value, CLUSTER_SCHEMES):
            return not HostsURL.parse(value, default_port=0).path
        parts = urlsplit(value)
        _ = parts.port  # parsed, and validated, only on access
    except ValueError:
        return False
    location = parts.path if parts.scheme == "unix" else parts.hostname
    return parts.scheme in REDIS_SCHEMES and bool(location)


def _are_origins(value: object) -> bool:
    """Whether these are origins, as `normalized_origins` leaves them."""
    if not isinstance(value, tuple):
        return False
    try:
        return all(normalize_origin(origin) == origin for origin in value)
    except (AttributeError, TypeError, ValueError):
        return False


def _are_public_patterns(value: object) -> bool:
    if not isinstance(value, tuple):
        return False
    try:
        patterns = [TopicPattern.parse(text) for text in value]
    except ValueError:
        return False
    return all(p.subscription_type is not SubscriptionType.USER for p in patterns)


def _is_secure_url(value: object) -> bool:
    """Whether it is None, or a URL of HTTPS; of HTTP only on this machine."""
    if value is None:
        return True
    if not isinstance(value, str) or not value.isascii() or any(map(str.isspace, value)):
        return False
    try:
        parts = urlsplit(value)
        _ = parts.port  # parsed, and validated, only on access
    except ValueError:
        return False
    if not parts.hostname or "@" in parts.netloc or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own, which no other can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(without_brackets(host)).is_loopback
    except ValueError:
        return False


def _is_host(name: str) -> bool:
    """Whether it is an address, IPv6 in brackets or not, or can be the name of a host."""
    try:
        ipaddress.ip_address(without_brackets(name))
    except ValueError:
        pass
    else:
        return True
    try:
        ascii_name = name.encode("idna").decode("ascii").removesuffix(".")
    except UnicodeError:  # as with an empty label, or one that is too long
        return False
    return _HOST_NAME.fullmatch(ascii_name) is not None


def _are_hosts(value: object) -> bool:
    if not isinstance(value, str):
        return False
    names = split_hosts(value)
    return bool(names) and all(map(_is_host, names))


def _is_http_host(value: object) -> bool:
    if not isinstance(value, str):
        return False
    if value.startswith("unix:"):
        path = value.removeprefix("unix:")
        return path != "" and "\0" not in path
    return _is_host(value)


class _RedisURL(Allowed):
    """Allows a URL of Redis with the number of a database and supported options."""

    def __call__(self, settings: Any, attribute: "attrs.Attribute[Any]", value: object) -> None:
        """Raise SettingError, with what is wrong in a URL of Redis."""
        super().__call__(settings, attribute, value)
        try:
            check_database(str(value))
            check_options(str(value))
        except ValueError as error:
            raise SettingError(attribute.name, f"is no URL that can be used: {error}") from None


SECONDS: Final = number(0.001, MAX_SECONDS)
SECONDS_OR_NONE: Final = number(0, MAX_SECONDS)
MILLISECONDS: Final = number(0, 60_000)
PORT: Final = integer(0, 65535)
HOSTS: Final = Allowed("an address or host name, or several separated by commas", _are_hosts)
HTTP_HOST: Final = Allowed("an address, a host name, or unix:PATH", _is_http_host)
SWITCH: Final = Allowed("true or false", lambda value: isinstance(value, bool))
PATH: Final = Allowed("a path", lambda value: value is None or isinstance(value, Path))
REDIS_URL: Final = _RedisURL(f"a URL with the scheme {', '.join(REDIS_SCHEMES)}", _is_redis_url)
ORIGINS: Final = Allowed(
    "a list of origins such as https://example.com or https://*.example.com", _are_origins
)
HOST_NAMES: Final = Allowed(
    "a list of host names",
    lambda value: (
        isinstance(value, tuple)
        and all(isinstance(name, str) and _HOST_NAME.fullmatch(name) is not None for name in value)
    ),
)
TEXT: Final = Allowed(
    "a text",
    lambda value: value is None or (isinstance(value, str) and value.strip() == value != ""),
)
COOKIE_NAME: Final = Allowed(
    "the name of a cookie",
    lambda value: (
        value is None or (isinstance(value, str) and _COOKIE_NAME.fullmatch(value) is not None)
    ),
)
SECURE_URL: Final = Allowed(
    "a URL with https, or with http on this machine, without a user or password", _is_secure_url
)
ALGORITHM_NAMES: Final = Allowed(
    f"a list of {', '.join(ALGORITHMS)}",
    lambda value: isinstance(value, tuple) and value != () and all(v in ALGORITHMS for v in value),
)
PUBLIC_PATTERNS: Final = Allowed(
    "a list of patterns such as stock:* or watchlist:42/*, of no type user", _are_public_patterns
)


def _are_networks(value: object) -> bool:
    """Whether these are IP addresses and CIDR networks, in text."""
    if not isinstance(value, tuple) or not all(isinstance(network, str) for network in value):
        return False
    try:
        for network in value:
            ip_network(network)
    except ValueError:
        return False
    return True


NETWORKS: Final = Allowed(
    "a list of addresses and networks such as 10.0.0.1 or 10.0.0.0/8, "
    "without bits beyond the prefix",
    _are_networks,
)


def tuple_if_list(value: object) -> object:
    """Make a list, as TOML has it, a tuple; leave anything else to the validator."""
    return tuple(value) if isinstance(value, list) else value


def normalized_origins(value: object) -> object:
    """Write origins as browsers do; leave any other value to the validator."""
    value = tuple_if_list(value)
    if not isinstance(value, tuple):
        return value
    try:
        return tuple(normalize_origin(origin) for origin in value)
    except (AttributeError, TypeError, ValueError):
        return value


def path_if_text(value: object) -> object:
    """Make a text a path; leave anything else to the validator."""
    return Path(value) if isinstance(value, str) else value
