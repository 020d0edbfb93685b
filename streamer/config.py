"""Every setting of the server: its default, what is allowed, and why one would change it.

`Settings` is built by whoever starts a server. Nothing here reads the environment, a file or argv:
that is the command line's business (`streamer.cli.options`), which makes its flags from these
fields.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, get_args
from urllib.parse import urlsplit

import attrs

from streamer.broker.urls import (
    CLUSTER_SCHEMES,
    SENTINEL_SCHEMES,
    SINGLE_SCHEMES,
    HostsURL,
    has_scheme,
)

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]

REDIS_SCHEMES: Final = (*SINGLE_SCHEMES, *SENTINEL_SCHEMES, *CLUSTER_SCHEMES)

_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,]+")


class SettingError(ValueError):
    """A value that a setting does not allow: `setting` is its name, the message says what is."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting} {problem}")
        self.setting = setting


def redact(url: str) -> str:
    """The URL without its password, for logs and error messages."""
    # Greedy up to the last @: a password that should have been percent-encoded may hold one.
    url = re.sub(r"(://[^:@/]*:).*@", r"\1***@", url)
    return re.sub(r"([?&]\w*password=)[^&'\"]*", r"\1***", url)


@attrs.frozen
class _Allowed:
    """What a setting allows, in words for people and as a test; an attrs validator."""

    words: str
    test: Callable[[Any], bool]

    def __call__(
        self, _settings: "Settings", attribute: "attrs.Attribute[Any]", value: object
    ) -> None:
        if not self.test(value):
            raise SettingError(attribute.name, f"must be {self.words}, not {redact(repr(value))}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _integer(minimum: int, maximum: int | None = None) -> _Allowed:
    if maximum is None:
        return _Allowed(
            f"a whole number, {minimum} or more",
            lambda value: _is_integer(value) and value >= minimum,
        )
    return _Allowed(
        f"a whole number from {minimum} to {maximum}",
        lambda value: _is_integer(value) and minimum <= value <= maximum,
    )


def _number(*, minimum: float) -> _Allowed:
    return _Allowed(
        f"a number, {minimum:g} or more", lambda value: _is_number(value) and value >= minimum
    )


def _choice(literal: Any) -> _Allowed:
    words = get_args(literal)
    return _Allowed(f"one of {', '.join(words)}", lambda value: value in words)


def _is_redis_url(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        if has_scheme(value, SENTINEL_SCHEMES):
            return bool(HostsURL.parse(value, default_port=0).path)
        if has_scheme(value, CLUSTER_SCHEMES):
            return not HostsURL.parse(value, default_port=0).path
        parts = urlsplit(value)
        _ = parts.port  # parsed, and found wrong, only when asked for
    except ValueError:
        return False
    located = parts.path if parts.scheme == "unix" else parts.hostname
    return parts.scheme in REDIS_SCHEMES and bool(located)


_SECONDS: Final = _Allowed(
    "a number of seconds above 0", lambda value: _is_number(value) and value > 0
)
_PORT: Final = _integer(0, 65535)
_HOST: Final = _Allowed(
    "an address or host name", lambda value: isinstance(value, str) and value.strip() != ""
)
_SWITCH: Final = _Allowed("true or false", lambda value: isinstance(value, bool))
_PATH: Final = _Allowed("a path", lambda value: value is None or isinstance(value, Path))
_REDIS_URL: Final = _Allowed(f"a URL with the scheme {', '.join(REDIS_SCHEMES)}", _is_redis_url)
_ORIGINS: Final = _Allowed(
    "a list of origins such as https://example.com",
    lambda value: (
        isinstance(value, tuple)
        and all(
            isinstance(origin, str) and _ORIGIN.fullmatch(origin) is not None for origin in value
        )
    ),
)


def _setting(
    default: Any, allowed: _Allowed, help_text: str, *, heading: str | None = None, **options: Any
) -> Any:
    """A field with its `help` as metadata and, where a new group begins, the group's `heading`."""
    return attrs.field(
        default=default,
        validator=allowed,
        metadata={"help": help_text, "heading": heading},
        **options,
    )


def _tuple_if_list(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _path_if_text(value: object) -> object:
    return Path(value) if isinstance(value, str) else value


def _twice_the_rate(settings: "Settings") -> float:
    # At least 1: a bucket that cannot hold one message would refuse every message.
    return max(1.0, 2 * settings.rate_limit) if _is_number(settings.rate_limit) else 1.0


@attrs.frozen(kw_only=True)
class Settings:
    """The settings of one server. Raises SettingError for a value that a setting does not allow.

    The unit is in the name; the sentence beside each field is its help on the command line too.
    """

    redis: str = _setting(
        "redis://127.0.0.1:6379/0",
        _REDIS_URL,
        "The Redis that publications come from: redis://, rediss:// (TLS), unix://, "
        "redis+sentinel://HOST,HOST/MASTER or redis+cluster://HOST,HOST.",
        repr=lambda url: repr(redact(url)),
        heading="Where publications come from",
    )
    memory: bool = _setting(
        False,
        _SWITCH,
        "Use an in-process bus instead of Redis: only what this process publishes is heard.",
    )
    require_redis: bool = _setting(
        False,
        _SWITCH,
        "Exit when Redis cannot be reached at the start, "
        "rather than keep trying and report not ready.",
    )
    probe_interval_seconds: float = _setting(
        5.0,
        _SECONDS,
        "How often a message is sent through Redis and back, "
        "to prove that publications still arrive.",
    )
    probe_timeout_seconds: float = _setting(
        10.0,
        _SECONDS,
        "How long that message may take before the connection to Redis is given up and made anew.",
    )

    host: str = _setting(
        "127.0.0.1",
        _HOST,
        "The address to accept WebSocket clients on; 0.0.0.0 for all of IPv4.",
        heading="Where clients arrive",
    )
    port: int = _setting(
        8765, _PORT, "The port to accept WebSocket clients on; 0 picks a free one."
    )
    http_host: str = _setting(
        "127.0.0.1",
        _HOST,
        "The address of the HTTP listener for statistics and health, "
        "which is not meant for the public; unix:PATH for a unix socket.",
    )
    http_port: int = _setting(8766, _PORT, "The port of that HTTP listener; 0 picks a free one.")
    tls_certificate: Path | None = _setting(
        None,
        _PATH,
        "A PEM file with the certificate chain for wss://; goes with tls_key.",
        converter=_path_if_text,
    )
    tls_key: Path | None = _setting(
        None,
        _PATH,
        "A PEM file with the private key for wss://; goes with tls_certificate.",
        converter=_path_if_text,
    )

    workers: int = _setting(
        1,
        _integer(1),
        "Processes that share the port and its clients; "
        "each reads Redis, and limits on connections hold for each.",
        heading="On how many cores",
    )

    max_connections: int = _setting(
        0,
        _integer(0),
        "The most clients at a time, beyond which one is closed with 1013 (try again later); "
        "0 = no limit.",
        heading="Who is let in",
    )
    max_connections_per_address: int = _setting(
        5,
        _integer(0),
        "The most clients at a time from one address, beyond which one is closed with 1008; "
        "0 = no limit.",
    )
    allowed_origins: tuple[str, ...] = _setting(
        (),
        _ORIGINS,
        "The origins of web pages that may connect, "
        "so that other sites cannot use their visitors; empty = any.",
        converter=_tuple_if_list,
    )
    handshake_timeout_seconds: float = _setting(
        10.0,
        _SECONDS,
        "How long a client may take from connecting to the end of the WebSocket handshake.",
    )

    rate_limit: float = _setting(
        100.0,
        _number(minimum=0),
        "Messages per second that a client may send in the long run; 0 = no limit.",
        heading="What a client may send",
    )
    rate_limit_burst: float = _setting(
        attrs.Factory(_twice_the_rate, takes_self=True),
        _number(minimum=1),
        "Messages that a client may send at once after a rest, by default twice rate_limit.",
    )
    rate_limit_max_violations: int = _setting(
        100,
        _integer(1),
        "Messages refused within 10 s after which a client is closed with 1008.",
    )
    max_message_bytes: int = _setting(
        65_536,
        _integer(1),
        "The largest message that a client may send, beyond which it is closed with 1009.",
    )
    max_publication_bytes: int = _setting(
        262_144,
        _integer(1),
        "The largest message taken from a producer: each is copied to every subscriber.",
    )
    max_targets_per_request: int = _setting(
        100, _integer(1), "The most targets in one subscribe or unsubscribe."
    )
    max_subscriptions: int = _setting(500, _integer(1), "The most topics that one client may hold.")

    flush_interval_ms: float = _setting(
        30.0,
        _number(minimum=0),
        "How long updates are gathered before they are sent together, unless all is quiet; "
        "0 = sent at once.",
        heading="What is sent, and when",
    )
    stretch_limit_ms: float = _setting(
        250.0,
        _number(minimum=0),
        "When sending takes so long that updates wait longer than this, "
        "clients in mode latest get only the newest of each topic.",
    )
    max_outbound_bytes: int = _setting(
        1_048_576,
        _integer(1),
        "The most data held for a client in mode all that does not keep up, "
        "beyond which it is closed with 4008.",
    )
    max_unread_replies_bytes: int = _setting(
        262_144,
        _integer(1),
        "The most answers held for a client that asks but does not read, "
        "beyond which it is not read from either.",
    )
    subscribe_timeout_seconds: float = _setting(
        5.0,
        _SECONDS,
        "How long a client waits for Redis to confirm a subscription before it is acknowledged "
        "without.",
    )
    linger_seconds: float = _setting(
        5.0,
        _number(minimum=0),
        "How long a Redis channel is kept after its last subscriber left, "
        "since many come straight back.",
    )

    heartbeat_interval_seconds: float = _setting(
        25.0,
        _SECONDS,
        "How often each client is pinged; "
        "below the idle timeout of the proxies in between, often 30 or 60 s.",
        heading="Keeping and ending connections",
    )
    heartbeat_timeout_seconds: float = _setting(
        10.0,
        _SECONDS,
        "How long a client may take to answer a ping before it counts as gone.",
    )
    close_timeout_seconds: float = _setting(
        5.0,
        _SECONDS,
        "How long a client may take to answer a close before its connection is cut.",
    )
    drain_timeout_seconds: float = _setting(
        10.0,
        _number(minimum=0),
        "How long a stopping server waits for its clients to leave before it cuts their "
        "connections.",
    )
    drain_min_retry_ms: int = _setting(
        500,
        _integer(0),
        "The least delay that a stopping server asks of its clients before they reconnect.",
    )
    drain_spread_ms_per_client: float = _setting(
        2.0,
        _number(minimum=0),
        "What is added to that delay for each client, so that they do not all reconnect at once.",
    )

    session_lifetime_seconds: float = _setting(
        300.0,
        _number(minimum=0),
        "How long after a disconnect a session can be restored.",
        heading="What can be caught up on",
    )
    history_length: int = _setting(
        1000, _integer(0), "Publications kept of each topic for clients that reconnect."
    )
    max_history_bytes: int = _setting(
        268_435_456,
        _integer(0),
        "The most memory for the recent publications of all topics together.",
    )
    history_seconds: float = _setting(
        300.0,
        _number(minimum=0),
        "How long publications are kept for clients that reconnect.",
    )

    log_level: LogLevel = _setting(
        "info",
        _choice(LogLevel),
        "The least severity that is logged.",
        heading="What is reported",
    )
    log_format: LogFormat = _setting(
        "text", _choice(LogFormat), "How the log on stderr is written."
    )

    def __attrs_post_init__(self) -> None:
        if self.tls_certificate is not None and self.tls_key is None:
            raise SettingError("tls_certificate", "needs tls_key beside it")
        if self.tls_key is not None and self.tls_certificate is None:
            raise SettingError("tls_key", "needs tls_certificate beside it")
        if self.memory and self.require_redis:
            raise SettingError("require_redis", "contradicts memory, which uses no Redis")
        if self.memory and self.workers > 1:
            raise SettingError("workers", "contradicts memory, which only one process can hear")

    @property
    def flush_interval_seconds(self) -> float:
        """`flush_interval_ms` in seconds."""
        return self.flush_interval_ms / 1000

    @property
    def stretch_limit_seconds(self) -> float:
        """`stretch_limit_ms` in seconds."""
        return self.stretch_limit_ms / 1000
