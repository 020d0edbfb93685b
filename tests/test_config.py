"""The values that `Settings` accepts, and how it refuses others.

Covers streamer.origins and streamer.setting_rules.
"""

from pathlib import Path
from typing import Any

import attrs
import pytest

from streamer.config import Settings
from streamer.setting_rules import PATH, SettingError
from streamer.urls import redact

NAMES = [field.name for field in attrs.fields(Settings)]


def test_defaults_are_those_of_the_contract() -> None:
    """Clients may rely on the published defaults."""
    settings = Settings()
    assert settings.flush_interval_seconds == 0.03
    assert (settings.rate_limit, settings.rate_limit_burst) == (100, 200)
    assert settings.max_connections_per_address == 5
    assert settings.max_message_bytes == 64 * 1024
    assert settings.max_targets_per_request == 100
    assert settings.max_subscriptions == 500
    assert settings.session_lifetime_seconds == 300
    assert settings.handshake_timeout_seconds == 10
    assert settings.max_outbound_bytes == 1024 * 1024
    assert (settings.heartbeat_interval_seconds, settings.heartbeat_timeout_seconds) == (25, 10)
    assert (settings.port, settings.http_host, settings.http_port) == (8765, "127.0.0.1", 8766)
    assert settings.stretch_limit_seconds == 0.25


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_described_in_one_sentence(name: str) -> None:
    """Flags and documentation are made from these sentences."""
    sentence = getattr(attrs.fields(Settings), name).metadata["help"]
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert ". " not in sentence


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [object(), -1, float("nan"), "", {"a": 1}, 1.5 + 2j])
def test_nonsense_is_refused_by_name(name: str, value: Any) -> None:
    """No setting takes a value of a wrong type, and the error says which setting it was."""
    if attrs.fields_dict(Settings)[name].validator is PATH and value == "":
        return  # Path("") is a path
    with pytest.raises(SettingError, match=f"^{name} must be .*, not ") as refused:
        Settings(**{name: value})
    assert refused.value.setting == name


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("port", 65536, "a whole number from 0 to 65535, not 65536"),
        ("port", True, "a whole number from 0 to 65535, not True"),
        ("port", 80.0, "a whole number from 0 to 65535, not 80.0"),
        ("memory", 1, "true or false, not 1"),
        ("max_subscriptions", 0, "a whole number from 1 to 2147483647, not 0"),
        ("flush_interval_ms", float("inf"), "a number from 0 to 2000, not inf"),
        ("close_timeout_seconds", 0, "a number from 0.001 to 31622400, not 0"),
        ("rate_limit_burst", 0.5, "a number from 1 to 2147483647, not 0.5"),
        ("log_level", "loud", "one of debug, info, warning, error, not 'loud'"),
        ("log_format", "xml", "one of text, json, not 'xml'"),
        (
            "redis",
            "http://localhost",
            "redis+cluster, rediss+cluster, not 'http://localhost'",
        ),
        (
            "redis",
            "redis://localhost?max_connections=5",
            "'max_connections' is not supported",
        ),
        ("redis", "redis://localhost:none", "not 'redis://localhost:none'"),
        ("redis", "redis:///0", "not 'redis:///0'"),
        ("redis", "unix://", "not 'unix://'"),
        ("redis", "redis://[::1/0", "not 'redis://[::1/0'"),
        ("redis", "redis+sentinel://a,b/", "not 'redis+sentinel://a,b/'"),
        ("redis", "redis+sentinel://a,:1/main", "not 'redis+sentinel://a,:1/main'"),
        ("redis", "redis+sentinel://a:x/main", "not 'redis+sentinel://a:x/main'"),
        ("redis", "redis+cluster://a,b/0", "not 'redis+cluster://a,b/0'"),
        (
            "allowed_origins",
            ["https://a.example", "b.example"],
            "a list of origins such as https://example.com",
        ),
        (
            "allowed_origins",
            ["https://a.example/page"],
            "a list of origins such as https://example.com",
        ),
        ("allowed_origins", "https://a.example", "a list of origins such as https://example.com"),
        ("trusted_proxies", ["10.0.0.1/8"], "a list of addresses and networks such as 10.0.0.1"),
        ("trusted_proxies", ["proxy.example"], "a list of addresses and networks"),
        ("trusted_proxies", [10], "a list of addresses and networks"),
        ("trusted_proxies", "10.0.0.1", "a list of addresses and networks"),
        ("proxy_protocol", "optional", "one of off, required, not 'optional'"),
        ("host", ",", "an address or host name, or several separated by commas, not ','"),
        ("host", "a..b", "not 'a..b'"),
        ("host", "a" * 64, f"not '{'a' * 64}'"),
        ("host", "127.0.0.1, a b", "not '127.0.0.1, a b'"),
        ("host", "127.0.0.1:80", "not '127.0.0.1:80'"),
        ("host", "unix:/run/streamer.sock", "not 'unix:/run/streamer.sock'"),
        ("http_host", "127.0.0.1,::1", "an address, a host name, or unix:PATH, not '127.0.0.1,"),
        ("http_host", "unix:", "not 'unix:'"),
        ("http_host", "unix:/run/\0", "not 'unix:/run/"),
        ("http_host", "fd://3", "not 'fd://3'"),
    ],
)
def test_errors_say_what_is_allowed(name: str, value: Any, words: str) -> None:
    """The error says how to correct the value."""
    with pytest.raises(SettingError) as refused:
        Settings(**{name: value})
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flush_interval_ms", 0),
        ("port", 0),
        ("port", 65535),
        ("redis", "rediss://user:secret@redis.example:6380/2"),
        ("redis", "unix:///run/redis.sock?db=1"),
        ("redis", "rediss+cluster://user:secret@a:1,b:2?ssl_ca_certs=ca.pem"),
        ("redis", "rediss+sentinel://user:secret@a:1,b:2/main/0?ssl_ca_certs=ca.pem"),
        ("allowed_origins", ("https://a.example", "http://localhost:3000")),
        ("log_format", "json"),
        ("host", "localhost, [::1], fe80::1%eth0, host_1.example., b\u00fccher.example"),
        ("http_host", "[::1]"),
        ("http_host", "unix:/run/streamer.sock"),
    ],
)
def test_allowed_values_are_kept_as_given(name: str, value: Any) -> None:
    """A valid value is kept unchanged."""
    assert getattr(Settings(**{name: value}), name) == value


def test_a_list_of_origins_becomes_a_tuple() -> None:
    """A list, as TOML has it, does not make the frozen settings mutable."""
    assert Settings(allowed_origins=["https://a.example"]).allowed_origins == ("https://a.example",)  # type: ignore[arg-type]


def test_certificate_and_key_come_together() -> None:
    """Half of TLS is no TLS."""
    pair = Settings(tls_certificate=Path("chain.pem"), tls_key=Path("key.pem"))
    assert (pair.tls_certificate, pair.tls_key) == (Path("chain.pem"), Path("key.pem"))
    with pytest.raises(SettingError, match="tls_certificate needs tls_key"):
        Settings(tls_certificate=Path("chain.pem"))
    with pytest.raises(SettingError, match="tls_key needs tls_certificate"):
        Settings(tls_key=Path("key.pem"))


def test_memory_does_not_require_redis() -> None:
    """Contradictions are refused rather than resolved in silence."""
    with pytest.raises(SettingError, match="require_redis contradicts memory"):
        Settings(memory=True, require_redis=True)


KEYS: dict[str, Any] = {"auth": "required", "auth_jwks_url": "https://a.example/jwks.json"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"auth": "optional"}, "auth needs keys: one of auth_secret_file, auth_keys_file, "),
        ({"auth": "required", "auth_refresh_url": "https://a.example"}, "auth needs keys"),
        ({"auth_secret_file": "s"}, "auth_secret_file is of no use while auth is none"),
        ({"auth_jwks_url": "https://a.example"}, "auth_jwks_url is of no use while auth is none"),
        ({"auth_refresh_url": "https://a.example"}, "auth_refresh_url is of no use while auth"),
        (
            KEYS | {"auth_refresh_url": "https://a.example", "auth_signing_key_file": "k"},
            "auth_refresh_url contradicts auth_signing_key_file",
        ),
        (KEYS | {"auth_client_secret_file": "s"}, "auth_client_secret_file needs auth_client_id"),
        (KEYS | {"auth_cookie": "token"}, "auth_cookie needs allowed_origins"),
        (KEYS | {"auth_jwks_url": "http://a.example"}, "auth_jwks_url must be a URL with https"),
        (KEYS | {"auth_jwks_url": "http://127.0.0.2.example"}, "auth_jwks_url must be a URL"),
        (KEYS | {"auth_jwks_url": "https://u:hunter2@a.example"}, "auth_jwks_url must be a URL"),
        (KEYS | {"auth_jwks_url": "https://a.example:port"}, "auth_jwks_url must be a URL"),
        (KEYS | {"auth_jwks_url": "https://[a"}, "auth_jwks_url must be a URL"),
        (KEYS | {"auth_jwks_url": "file:///etc/passwd"}, "auth_jwks_url must be a URL"),
        (KEYS | {"auth_refresh_url": "http://a.example"}, "auth_refresh_url must be a URL"),
        (KEYS | {"auth_algorithms": ("none",)}, "auth_algorithms must be a list of RS256"),
        (KEYS | {"auth_algorithms": ()}, "auth_algorithms must be a list of RS256"),
        (KEYS | {"auth_cookie": "a b"}, "auth_cookie must be the name of a cookie"),
        (KEYS | {"public_topics": ("user:*",)}, "public_topics must be a list of patterns"),
        (KEYS | {"public_topics": ("stock",)}, "public_topics must be a list of patterns"),
    ],
)
def test_settings_of_identity_that_do_not_fit_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    """A server that would be open, or let nobody in, does not start."""
    with pytest.raises(SettingError, match=f"^{message}") as refused:
        Settings(**settings)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        KEYS,
        KEYS | {"auth_jwks_url": "http://localhost:1/jwks"},
        KEYS | {"auth_jwks_url": "http://127.0.0.1:1/jwks"},
        KEYS | {"auth_jwks_url": "http://[::1]:1/jwks"},
        KEYS | {"auth_secret_file": "s", "auth_keys_file": "k", "auth_signing_key_file": "p"},
        KEYS | {"auth_cookie": "token", "allowed_origins": ["https://a.example"]},
        KEYS | {"auth_refresh_url": "https://a.example/token", "auth_client_id": "c"},
        KEYS | {"public_topics": []},
    ],
)
def test_settings_of_identity_that_fit_are_kept(settings: dict[str, Any]) -> None:
    """Several sources of keys may be used together; a provider on this machine needs no TLS."""
    assert Settings(**settings).auth == "required"


@pytest.mark.parametrize(("rate", "burst"), [(100, 200), (0.1, 1), (0, 1)])
def test_burst_follows_the_rate_and_always_admits_one_message(rate: float, burst: float) -> None:
    """A low rate is slow, not a ban."""
    assert Settings(rate_limit=rate).rate_limit_burst == burst


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@redis.example/0", "redis://user:***@redis.example/0"),
        ("redis://:sec/r:e@t@redis.example/0", "redis://:***@redis.example/0"),
        ("unix:///redis.sock?password=secret&db=1", "unix:///redis.sock?password=***&db=1"),
        (
            "redis+sentinel://:s@a:1,b:2/main?sentinel_password=secret",
            "redis+sentinel://:***@a:1,b:2/main?sentinel_password=***",
        ),
        ("redis://redis.example:6379/0", "redis://redis.example:6379/0"),
    ],
)
def test_redacted_urls_show_all_but_the_password(url: str, shown: str) -> None:
    """The rest of the URL is what one needs to find a mistake."""
    assert redact(url) == shown


def test_passwords_stay_out_of_logs_and_errors() -> None:
    """Neither the settings' text nor an error shows the password of the Redis URL."""
    assert "hunter2" not in repr(Settings(redis="redis://:hunter2@redis.example"))
    with pytest.raises(SettingError) as refused:
        Settings(redis="http://:hunter2@redis.example")
    assert "hunter2" not in str(refused.value)
