"""Settings from flags, variables and a file: their precedence and their errors."""

from pathlib import Path
from typing import Any

import attrs
import click
import orjson
import pytest

from streamer.cli.options import SettingsCommand, with_settings
from streamer.config import Settings

NAMES = [field.name for field in attrs.fields(Settings)]


@click.command(cls=SettingsCommand)
@click.option("--quiet", is_flag=True, help="An option that is not a setting.")
@click.option("--unseen", is_flag=True, hidden=True, expose_value=False)
@with_settings()
def every_setting(settings: Settings, *, quiet: bool) -> tuple[Settings, bool]:
    """Take all settings."""
    return settings, quiet


@click.command(cls=SettingsCommand)
@with_settings(only={"redis", "log_level"})
def two_settings(settings: Settings) -> Settings:
    """Take two settings."""
    return settings


@click.command(cls=SettingsCommand)
@with_settings(without={"redis", "memory"})
def most_settings(settings: Settings) -> Settings:
    """Take all settings but two."""
    return settings


def parse(*arguments: str) -> Settings:
    """Return the settings of a command line."""
    settings, _quiet = every_setting.main(list(arguments), standalone_mode=False)
    assert isinstance(settings, Settings)
    return settings


def refusal(*arguments: str, command: click.Command = every_setting) -> str:
    """Return the error of a command line."""
    with pytest.raises(click.UsageError) as refused:
        command.main(list(arguments), standalone_mode=False)
    return refused.value.format_message()


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return f"--{name.replace('_', '-')}"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """Return a value other than the default for each setting, as in TOML."""
    certificate, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.touch()
    key.touch()
    special: dict[str, Any] = {
        "redis": "unix:///run/redis.sock",
        "host": "0.0.0.0",
        "http_host": "::1",
        "tls_certificate": str(certificate),
        "tls_key": str(key),
        "allowed_origins": ["https://a.example", "https://b.example"],
        "http_allowed_hosts": ["a.example", "b.example"],
        "api_key_file": str(key),
        "auth": "optional",
        "auth_secret_file": str(key),
        "auth_keys_file": str(key),
        "auth_jwks_url": "https://a.example/jwks.json",
        "auth_algorithms": ["EdDSA", "ES256"],
        "auth_audience": "streamer",
        "auth_issuer": "https://a.example",
        "auth_cookie": "token",
        "auth_signing_key_file": str(key),
        "auth_refresh_url": "https://a.example/token",
        "auth_client_id": "streamer",
        "auth_client_secret_file": str(key),
        "public_topics": ["market:*", "watchlist:demo/*"],
        "trusted_proxies": ["10.0.0.0/8", "192.0.2.1"],
        "proxy_protocol": "required",
        "log_level": "warning",
        "log_format": "json",
    }
    return {
        name: special[name] if name in special else _other(value)
        for name, value in attrs.asdict(Settings()).items()
    }


def _other(value: Any) -> Any:
    return not value if isinstance(value, bool) else value + 1


NEEDED = {
    "tls_certificate": ["tls_key"],
    "tls_key": ["tls_certificate"],
    "auth": ["auth_jwks_url"],
    "auth_secret_file": ["auth"],
    "auth_keys_file": ["auth"],
    "auth_jwks_url": ["auth"],
    "auth_signing_key_file": ["auth"],
    "auth_refresh_url": ["auth", "auth_jwks_url"],
    "auth_client_secret_file": ["auth_client_id"],
    "auth_cookie": ["allowed_origins"],
}
"""Settings that mean nothing without others."""


def needed_with(name: str, files: dict[str, Any]) -> dict[str, Any]:
    """Return the setting's value, and those of the settings that it needs."""
    return {one: files[one] for one in (name, *NEEDED.get(name, ()))}


def expected(name: str, files: dict[str, Any]) -> Settings:
    """Return the settings that the other value must give, from any source."""
    return Settings(**needed_with(name, files))


def write_toml(path: Path, values: dict[str, Any]) -> str:
    """Write a file of settings; JSON's scalars and lists are TOML's."""
    path.write_text("".join(f"{name} = {orjson.dumps(v).decode()}\n" for name, v in values.items()))
    return str(path)


def test_nothing_given_gives_the_defaults() -> None:
    """Without flags, variables and a file, all settings have their defaults."""
    assert parse() == Settings()


@pytest.mark.parametrize("name", NAMES)
def test_each_setting_has_a_flag(name: str, files: dict[str, Any]) -> None:
    """Every setting of the library has a flag."""
    arguments = []
    for one, value in needed_with(name, files).items():
        text = ",".join(value) if isinstance(value, list) else str(value)
        switch = flag(one) if value is True else f"--no-{flag(one).removeprefix('--')}"
        arguments += [switch] if isinstance(value, bool) else [flag(one), text]
    assert parse(*arguments) == expected(name, files)


@pytest.mark.parametrize("name", NAMES)
def test_each_setting_has_a_variable(
    name: str, files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every setting has a variable."""
    for one, value in needed_with(name, files).items():
        text = ",".join(value) if isinstance(value, list) else str(value)
        monkeypatch.setenv(f"STREAMER_{one.upper()}", text)
    assert parse() == expected(name, files)


@pytest.mark.parametrize("name", NAMES)
def test_each_setting_has_a_key_in_the_file(
    name: str, files: dict[str, Any], tmp_path: Path
) -> None:
    """Every setting is a key of the file, with its TOML type."""
    config = write_toml(tmp_path / "streamer.toml", needed_with(name, files))
    assert parse("--config", config) == expected(name, files)


def test_flag_goes_before_variable_before_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flag overrides a variable, and a variable the file."""
    config = write_toml(tmp_path / "streamer.toml", {"port": 1, "http_port": 1, "rate_limit": 1})
    monkeypatch.setenv("STREAMER_CONFIG", config)
    monkeypatch.setenv("STREAMER_PORT", "2")
    monkeypatch.setenv("STREAMER_HTTP_PORT", "2")
    settings = parse("--port", "3")
    assert (settings.port, settings.http_port, settings.rate_limit) == (3, 2, 1)


def test_a_switch_can_be_turned_off_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag can turn off what a variable turns on."""
    monkeypatch.setenv("STREAMER_REQUIRE_REDIS", "yes")
    assert parse().require_redis
    assert not parse("--no-require-redis").require_redis


def test_a_variable_of_another_command_is_no_unknown_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """STREAMER_URL, which is for `streamer listen`, is no error."""
    monkeypatch.setenv("STREAMER_URL", "ws://127.0.0.1:1/v1/ws")
    assert parse() == Settings()


def test_an_empty_variable_is_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable leaves the default."""
    monkeypatch.setenv("STREAMER_PORT", "")
    assert parse() == Settings()


def test_other_options_pass_through() -> None:
    """A command has options of its own beside the settings."""
    assert every_setting.main(["--quiet"], standalone_mode=False) == (Settings(), True)


@pytest.mark.parametrize(
    ("arguments", "variables", "lines", "message"),
    [
        (
            ["--port", "x"],
            {},
            "",
            "port must be a whole number from 0 to 65535, not 'x' (from --port)",
        ),
        ([], {"PORT": "70000"}, "", "not 70000 (from STREAMER_PORT)"),
        (
            [],
            {"MEMORY": "maybe"},
            "",
            "memory must be true or false, not 'maybe' (from STREAMER_MEMORY)",
        ),
        ([], {}, "port = 1.5", "not 1.5 (from {config})"),
        ([], {}, "memory = 1", "memory must be true or false, not 1 (from {config})"),
        ([], {}, "[port]\nnumber = 1", "not {{'number': 1}} (from {config})"),
        (
            [],
            {},
            "flush_interval = 1",
            "flush_interval is not a setting (from {config}); did you mean",
        ),
        ([], {}, "colour = 1", "colour is not a setting (from {config})"),
        (
            [],
            {"PROT": "1"},
            "",
            "prot is not a setting (from variable STREAMER_PROT); did you mean port?",
        ),
        (
            ["--memory", "--redis", "redis://h"],
            {},
            "",
            "exclude each other (from --memory and --redis)",
        ),
        (["--memory"], {"REDIS": "redis://h"}, "", "(from --memory and STREAMER_REDIS)"),
        (
            ["--tls-key", "key.pem"],
            {},
            "",
            "tls_key needs tls_certificate beside it (from --tls-key)",
        ),
        (
            ["--memory"],
            {},
            "require_redis = true",
            "require_redis contradicts memory, which uses no Redis (from {config})",
        ),
        ([], {}, "port =", "{config} is not TOML: "),
        ([], {}, "port = '\udcff'", "{config} is not TOML: "),
    ],
)
def test_a_mistake_is_named_with_its_source(
    arguments: list[str],
    variables: dict[str, str],
    lines: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names the setting and its source."""
    config = tmp_path / "streamer.toml"
    config.write_text(lines, encoding="utf-8", errors="surrogateescape")
    for name, value in variables.items():
        monkeypatch.setenv(f"STREAMER_{name}", value)
    assert message.format(config=config) in refusal("--config", str(config), *arguments)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that does not exist is an error."""
    missing = tmp_path / "missing.toml"
    assert refusal("--config", str(missing)) == f"cannot read {missing}: No such file or directory"


def test_an_unreadable_certificate_is_named(tmp_path: Path) -> None:
    """A path that cannot be read is an error before anything starts."""
    (tmp_path / "chain.pem").touch()
    arguments = ["--tls-certificate", f"{tmp_path}/chain.pem", "--tls-key", f"{tmp_path}/key.pem"]
    assert refusal(*arguments) == f"tls_key: {tmp_path}/key.pem cannot be read (from --tls-key)"


def test_a_command_takes_only_the_settings_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands ignore the settings that they do not use."""
    config = write_toml(tmp_path / "streamer.toml", {"port": 1, "log_level": "error"})
    monkeypatch.setenv("STREAMER_RATE_LIMIT", "7")
    monkeypatch.setenv("STREAMER_REDIS", "redis://h")
    settings = two_settings.main(["--config", config], standalone_mode=False)
    assert settings == Settings(redis="redis://h", log_level="error")
    assert "--port" in refusal("--port", "1", command=two_settings)
    settings = most_settings.main(["--config", config], standalone_mode=False)
    assert settings == Settings(port=1, log_level="error", rate_limit=7)
    assert "--memory" in refusal("--memory", command=most_settings)


def test_help_shows_each_setting_with_its_default_under_a_heading(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The help has the settings in sections."""
    every_setting.main(["--help"], standalone_mode=False, terminal_width=500)
    text = capsys.readouterr().out
    for name in NAMES:
        assert flag(name) in text
    assert text.index("\nOptions:") < text.index("--quiet") < text.index("\nSource:")
    assert text.index("\nListeners:") < text.index("--port PORT") < text.index("\nAdmission:")
    assert "--port PORT  " in text
    assert "0 picks a free one.  [default: 8765]" in text
    assert "--log-format text|json" in text
    assert "--unseen" not in text
    for metavar in ("--redis URL", "--tls-key FILE", "--allowed-origins LIST", "--rate-limit N"):
        assert metavar in text
