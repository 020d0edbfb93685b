"""The settings of the server: each with its default, the allowed values, and a sentence on its use.

This module does not read the environment, a file or argv: the command line does
(`streamer.cli.options`), and makes its flags from these fields. The rules for values are in
`streamer.setting_rules`.
"""

from pathlib import Path
from typing import Literal

import attrs

from streamer.setting_rules import (
    ALGORITHM_NAMES,
    ALGORITHMS,
    COOKIE_NAME,
    HOST_NAMES,
    HOSTS,
    HTTP_HOST,
    MAX_BYTES,
    MAX_COUNT,
    MAX_MESSAGE_BYTES,
    MAX_SECONDS,
    MILLISECONDS,
    NETWORKS,
    ORIGINS,
    PATH,
    PORT,
    PUBLIC_PATTERNS,
    REDIS_URL,
    SECONDS,
    SECONDS_OR_NONE,
    SECURE_URL,
    SWITCH,
    TEXT,
    SettingError,
    choice,
    integer,
    is_number,
    normalized_origins,
    number,
    path_if_text,
    setting,
    tuple_if_list,
)
from streamer.urls import redact

Auth = Literal["none", "optional", "required"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
ProxyProtocol = Literal["off", "required"]


def _twice_the_rate(settings: "Settings") -> float:
    # At least 1: a bucket that cannot hold one message would refuse every message.
    return (
        min(max(1.0, 2 * settings.rate_limit), MAX_COUNT) if is_number(settings.rate_limit) else 1.0
    )


@attrs.frozen(kw_only=True)
class Settings:
    """The settings of one server. Raises SettingError for a value that a setting does not allow.

    The unit is in the name; the sentence beside each field is its help on the command line too.
    """

    redis: str = setting(
        "redis://127.0.0.1:6379/0",
        REDIS_URL,
        "The Redis that publications come from: redis://, rediss:// (TLS), unix://, "
        "redis+sentinel://HOST,HOST/MASTER or redis+cluster://HOST,HOST.",
        repr=lambda url: repr(redact(url)),
        heading="Source",
    )
    memory: bool = setting(
        False,
        SWITCH,
        "Use an in-process bus instead of Redis: only this process can publish.",
    )
    require_redis: bool = setting(
        False,
        SWITCH,
        "Exit when Redis cannot be reached at the start, "
        "rather than keep trying and report not ready.",
    )
    probe_interval_seconds: float = setting(
        5.0,
        SECONDS,
        "How often a message is sent through Redis and back, "
        "to prove that publications still arrive.",
    )
    probe_timeout_seconds: float = setting(
        10.0,
        SECONDS,
        "How long that message may take before the connection to Redis is closed and reopened.",
    )

    host: str = setting(
        "127.0.0.1",
        HOSTS,
        "The address to accept WebSocket clients on, or several separated by commas; "
        "0.0.0.0 for all of IPv4, :: for all of IPv6 and IPv4.",
        heading="Listeners",
    )
    port: int = setting(8765, PORT, "The port to accept WebSocket clients on; 0 picks a free one.")
    http_host: str = setting(
        "127.0.0.1",
        HTTP_HOST,
        "The address of the HTTP listener for statistics and health, "
        "which is not meant for the public; unix:PATH for a unix socket.",
    )
    http_port: int = setting(8766, PORT, "The port of that HTTP listener; 0 picks a free one.")
    http_allowed_hosts: tuple[str, ...] = setting(
        (),
        HOST_NAMES,
        "The host names that requests to that HTTP listener may use, besides addresses and "
        "localhost, so that no web page can read it through a name of its own.",
        converter=tuple_if_list,
    )
    api_key_file: Path | None = setting(
        None,
        PATH,
        "A file with the keys of operators for the API on that HTTP listener, one a line, KEY or "
        "NAME:KEY; read again when it changes; without it there is no API.",
        converter=path_if_text,
    )
    api_timeout_seconds: float = setting(
        1.0,
        SECONDS,
        "How long the other servers and workers may take to answer an operator's request; those "
        "that take longer are reported as silent.",
    )
    tls_certificate: Path | None = setting(
        None,
        PATH,
        "A PEM file with the certificate chain for wss://; goes with tls_key.",
        converter=path_if_text,
    )
    tls_key: Path | None = setting(
        None,
        PATH,
        "A PEM file with the private key for wss://; goes with tls_certificate.",
        converter=path_if_text,
    )

    trusted_proxies: tuple[str, ...] = setting(
        (),
        NETWORKS,
        "The addresses and networks of proxies (10.0.0.0/8) that name their client in "
        "X-Forwarded-For or Forwarded; from others these headers are ignored.",
        heading="Proxies",
        converter=tuple_if_list,
    )
    proxy_protocol: ProxyProtocol = setting(
        "off",
        choice(ProxyProtocol),
        "With required, each connection has to begin with a header of the PROXY protocol (version "
        "1 or 2), from one of trusted_proxies if there are any.",
    )

    workers: int = setting(
        1,
        integer(1, 1024),
        "Processes that share the port and its clients; "
        "each reads Redis, and limits on connections hold for each.",
        heading="Workers",
    )

    max_connections: int = setting(
        0,
        integer(0),
        "The most clients at a time, beyond which one is closed with 1013 (try again later); "
        "0 = no limit.",
        heading="Admission",
    )
    max_connections_per_address: int = setting(
        5,
        integer(0),
        "The most clients at a time from one address, beyond which one is closed with 1013 "
        "(try again later); of IPv6, from one /64 network; 0 = no limit.",
    )
    max_connections_per_user: int = setting(
        0,
        integer(0),
        "The most clients at a time with tokens of one user, beyond which one is closed with 1013 "
        "(try again later); 0 = no limit.",
    )
    allowed_origins: tuple[str, ...] = setting(
        (),
        ORIGINS,
        "The origins of web pages that may connect, "
        "such as https://example.com or https://*.example.com, so that other sites cannot connect "
        "from their visitors' browsers; empty = any.",
        converter=normalized_origins,
    )
    max_handshakes: int = setting(
        1000,
        integer(0, MAX_COUNT),
        "The most connections at a time whose handshake is not finished, "
        "beyond which the slowest is cut; 0 = no limit.",
    )
    handshake_timeout_seconds: float = setting(
        10.0,
        SECONDS,
        "How long a client may take from connecting to the end of the WebSocket handshake.",
    )

    auth: Auth = setting(
        "none",
        choice(Auth),
        "Whether clients have to say who they are with a token (JWT): none ignores tokens, "
        "optional takes a client without one as anonymous, required closes it with 4001.",
        heading="Identity",
    )
    auth_secret_file: Path | None = setting(
        None,
        PATH,
        "A file with shared secrets that sign tokens (HS256, HS384, HS512), one a line of at least "
        "32 bytes; read again when it changes.",
        converter=path_if_text,
    )
    auth_keys_file: Path | None = setting(
        None,
        PATH,
        "A file with the public keys that verify tokens, a JWK Set or PEM; read again when it "
        "changes.",
        converter=path_if_text,
    )
    auth_jwks_url: str | None = setting(
        None,
        SECURE_URL,
        "The URL of the JWK Set of an identity provider, fetched every 10 minutes, and for an "
        "unknown key at most every 30 s.",
    )
    auth_algorithms: tuple[str, ...] = setting(
        ALGORITHMS,
        ALGORITHM_NAMES,
        "The algorithms of signatures that are accepted; by default all that are safe, and of each "
        "key only its own.",
        converter=tuple_if_list,
    )
    auth_audience: str | None = setting(
        None,
        TEXT,
        "The audience that tokens must name in aud; without it, a token that names any is refused.",
    )
    auth_issuer: str | None = setting(
        None, TEXT, "The issuer that tokens must name in iss; without it, iss is not checked."
    )
    auth_leeway_seconds: float = setting(
        30.0,
        number(0, 300),
        "How far the clocks of the token's issuer and of this machine may differ.",
    )
    auth_require_expiry: bool = setting(
        True,
        SWITCH,
        "Refuse tokens that never expire, since nothing but a revocation ends them.",
    )
    auth_revocation_seconds: float = setting(
        2_592_000.0,
        number(60, MAX_SECONDS),
        "How long a revocation of tokens is kept: not shorter than the longest life of a token.",
    )
    auth_timeout_seconds: float = setting(
        10.0,
        SECONDS,
        "How long a connected client may take to send a token where one is required.",
    )
    auth_grace_seconds: float = setting(
        25.0,
        SECONDS_OR_NONE,
        "How long a connection remains after its token has expired, so that a new one can arrive.",
    )
    auth_cookie: str | None = setting(
        None,
        COOKIE_NAME,
        "The name of a cookie to take tokens from; needs allowed_origins, since browsers send "
        "cookies for any page.",
    )
    auth_signing_key_file: Path | None = setting(
        None,
        PATH,
        "A file with the private key (PEM) or secret that this server signs new tokens with when a "
        "client sends refresh_token; of several the first signs, and all verify; read again when "
        "it changes.",
        converter=path_if_text,
    )
    auth_token_lifetime_seconds: float = setting(
        3600.0,
        number(60, MAX_SECONDS),
        "How long the tokens that this server signs are valid.",
    )
    auth_refresh_url: str | None = setting(
        None,
        SECURE_URL,
        "The OAuth 2 token endpoint that refresh tokens are sent to (grant_type refresh_token), "
        "where this server has no signing key.",
    )
    auth_client_id: str | None = setting(
        None, TEXT, "The client_id that the OAuth 2 token endpoint knows this server by."
    )
    auth_client_secret_file: Path | None = setting(
        None,
        PATH,
        "A file with the secret of that client, if it has one.",
        converter=path_if_text,
    )
    public_topics: tuple[str, ...] = setting(
        ("stock:*", "market:*", "sector:*"),
        PUBLIC_PATTERNS,
        "The topics that every client may have, as TYPE:TARGET, where a last * stands for any "
        "rest; not used while auth is none.",
        converter=tuple_if_list,
    )

    rate_limit: float = setting(
        100.0,
        number(0, MAX_COUNT),
        "Messages per second that a client may send in the long run; 0 = no limit.",
        heading="Messages of clients",
    )
    rate_limit_burst: float = setting(
        attrs.Factory(_twice_the_rate, takes_self=True),
        number(1, MAX_COUNT),
        "Messages that a client may send at once after a rest, by default twice rate_limit.",
    )
    rate_limit_max_violations: int = setting(
        100,
        integer(1),
        "Messages refused within 10 s after which a client is closed with 1008.",
    )
    max_message_bytes: int = setting(
        65_536,
        integer(1, MAX_MESSAGE_BYTES),
        "The largest message that a client may send, beyond which it is closed with 1009.",
    )
    max_publication_bytes: int = setting(
        262_144,
        integer(1, MAX_MESSAGE_BYTES),
        "The largest message taken from a producer: each is copied to every subscriber.",
    )
    max_targets_per_request: int = setting(
        100, integer(1), "The most targets in one subscribe or unsubscribe."
    )
    max_subscriptions: int = setting(500, integer(1), "The most topics that one client may hold.")
    max_book_levels: int = setting(
        1000,
        integer(1, 100_000),
        "The most levels a side of an order book that a client may ask for, "
        "and that are kept of a book whose producer publishes changes.",
    )

    flush_interval_ms: float = setting(
        30.0,
        number(0, 2_000),
        "How long updates are gathered before they are sent together, unless all is quiet; "
        "0 = sent at once.",
        heading="Sending",
    )
    stretch_limit_ms: float = setting(
        250.0,
        MILLISECONDS,
        "When sending takes so long that updates wait longer than this, "
        "clients in mode latest get only the newest of each topic.",
    )
    max_outbound_bytes: int = setting(
        1_048_576,
        integer(1, MAX_BYTES),
        "The most data held for a client in mode all that does not keep up, "
        "beyond which it is closed with 4008.",
    )
    max_unread_replies_bytes: int = setting(
        262_144,
        integer(1, MAX_BYTES),
        "The most answers held for a client that sends requests but does not read, "
        "beyond which its requests are not read either.",
    )
    max_replay_bytes: int = setting(
        33_554_432,
        integer(0),
        "The most missed publications held for a client that comes back, "
        "until it has read them; more than that becomes a gap.",
    )
    subscribe_timeout_seconds: float = setting(
        5.0,
        SECONDS,
        "How long a client waits for Redis to confirm a subscription before it is acknowledged "
        "without.",
    )
    linger_seconds: float = setting(
        5.0,
        SECONDS_OR_NONE,
        "How long a Redis channel is kept after its last subscriber left, "
        "since many clients return soon.",
    )
    max_unused_topics: int = setting(
        10_000,
        integer(1),
        "The most topics kept in this way, of one client at most max_subscriptions of them; "
        "the oldest are given up first.",
    )

    compression: bool = setting(
        True,
        SWITCH,
        "Compress messages for clients that offer it (permessage-deflate), "
        "each frame once for all clients that are sent the same.",
        heading="Compression",
    )
    compression_level: int = setting(
        6,
        integer(1, 9),
        "The effort of compression: 1 takes half the time of 6 and gives some 20 % more bytes, "
        "9 takes up to four times as long for 3 % less.",
    )
    compression_window_bits: int = setting(
        14,
        integer(9, 15),
        "The base-2 logarithm of the bytes that a message may refer back to, "
        "at best the size of what one flush sends to a client; each bit more doubles the memory of "
        "a compressor, which is 134 KB with 14.",
    )
    compression_min_bytes: int = setting(
        64,
        integer(0, MAX_MESSAGE_BYTES),
        "The shortest message that is compressed, since on a shorter one the work saves nothing; "
        "at least 256 where there are no earlier messages to refer to.",
    )
    compression_min_members: int = setting(
        4,
        integer(1),
        "The fewest clients that are sent the same for which a compressor is kept, "
        "so that messages can refer to earlier ones; for fewer, each message is compressed by "
        "itself, once for all groups that are sent it.",
    )
    max_compression_bytes: int = setting(
        67_108_864,
        integer(0, MAX_BYTES),
        "The most memory for compressors that are kept for groups of clients; "
        "0 = none, and messages never refer to earlier ones.",
    )
    compression_stretch_limit_ms: float = setting(
        100.0,
        MILLISECONDS,
        "When sending takes so long that updates wait longer than this, "
        "nothing is compressed: latency counts more than bytes.",
    )

    heartbeat_interval_seconds: float = setting(
        25.0,
        SECONDS,
        "How often each client is pinged; "
        "below the idle timeout of the proxies in between, often 30 or 60 s.",
        heading="Connections",
    )
    heartbeat_timeout_seconds: float = setting(
        10.0,
        SECONDS,
        "How long a client may take to answer a ping before it counts as gone.",
    )
    close_timeout_seconds: float = setting(
        5.0,
        SECONDS,
        "How long a client may take to answer a close before its connection is cut.",
    )
    drain_timeout_seconds: float = setting(
        10.0,
        SECONDS_OR_NONE,
        "How long a stopping server waits for its clients to leave before it cuts their "
        "connections.",
    )
    drain_min_retry_ms: int = setting(
        500,
        integer(0),
        "The least delay that a stopping server asks of its clients before they reconnect.",
    )
    drain_spread_ms_per_client: float = setting(
        2.0,
        MILLISECONDS,
        "The random spread added to that delay, per connected client, so that they do not all "
        "reconnect at once.",
    )

    session_lifetime_seconds: float = setting(
        300.0,
        SECONDS_OR_NONE,
        "How long after a disconnect a session can be restored.",
        heading="Sessions and history",
    )
    max_session_bytes: int = setting(
        67_108_864,
        integer(0, MAX_BYTES),
        "The most memory for the sessions of clients that have left, all together; those of the "
        "address that holds the most are dropped first.",
    )
    history_length: int = setting(
        5000,
        integer(0),
        "Publications kept of each topic for clients that reconnect; most topics reach "
        "history_seconds first.",
    )
    max_history_bytes: int = setting(
        268_435_456,
        integer(0, MAX_BYTES),
        "The most memory for the recent publications of all topics together.",
    )
    history_seconds: float = setting(
        300.0,
        SECONDS_OR_NONE,
        "How long publications are kept for clients that reconnect; in Redis, from which a new "
        "server reads them, producers keep them for their own history_seconds.",
    )

    log_level: LogLevel = setting(
        "info",
        choice(LogLevel),
        "The least severity that is logged.",
        heading="Logging",
    )
    log_format: LogFormat = setting("text", choice(LogFormat), "How the log on stderr is written.")

    def __attrs_post_init__(self) -> None:
        if self.tls_certificate is not None and self.tls_key is None:
            raise SettingError("tls_certificate", "needs tls_key beside it")
        if self.tls_key is not None and self.tls_certificate is None:
            raise SettingError("tls_key", "needs tls_certificate beside it")
        if self.memory and self.require_redis:
            raise SettingError("require_redis", "contradicts memory, which uses no Redis")
        if self.memory and self.workers > 1:
            raise SettingError("workers", "contradicts memory, which only one process can hear")
        self._check_identity()

    def _check_identity(self) -> None:
        key_names = ("auth_secret_file", "auth_keys_file", "auth_jwks_url", "auth_signing_key_file")
        given = [name for name in key_names if getattr(self, name) is not None]
        if self.auth == "none" and given:
            raise SettingError(given[0], "is of no use while auth is none: set auth as well")
        if self.auth != "none" and not given:
            raise SettingError("auth", f"needs keys: one of {', '.join(key_names)}")
        if self.auth_refresh_url is not None and self.auth == "none":
            raise SettingError("auth_refresh_url", "is of no use while auth is none")
        if self.auth_refresh_url is not None and self.auth_signing_key_file is not None:
            raise SettingError(
                "auth_refresh_url", "contradicts auth_signing_key_file: only one can refresh tokens"
            )
        if self.auth_client_secret_file is not None and self.auth_client_id is None:
            raise SettingError("auth_client_secret_file", "needs auth_client_id beside it")
        if self.auth_cookie is not None and not self.allowed_origins:
            raise SettingError(
                "auth_cookie", "needs allowed_origins: browsers send cookies for any page"
            )

    @property
    def flush_interval_seconds(self) -> float:
        """`flush_interval_ms` in seconds."""
        return self.flush_interval_ms / 1000

    @property
    def compression_stretch_limit_seconds(self) -> float:
        """`compression_stretch_limit_ms` in seconds."""
        return self.compression_stretch_limit_ms / 1000

    @property
    def stretch_limit_seconds(self) -> float:
        """`stretch_limit_ms` in seconds."""
        return self.stretch_limit_ms / 1000
