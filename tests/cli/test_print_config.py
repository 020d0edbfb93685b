"""The file that `streamer serve --print-config` prints."""

import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from streamer.cli import serve
from streamer.cli.errors import ExitCode
from streamer.cli.print_config import config_text
from streamer.config import Settings

FIELDS = attrs.fields(Settings)


def printed(*arguments: str) -> str:
    """Return the output of the command."""
    result = CliRunner().invoke(
        serve.command, ["--print-config", *arguments], standalone_mode=False
    )
    assert result.exception is None
    assert result.return_value == ExitCode.OK
    return result.stdout


def unusual(value: Any) -> Any:
    """Return another value than the default of a setting."""
    if isinstance(value, bool):
        return not value
    return value / 3 if isinstance(value, float) else value + 1


def every_setting_changed() -> Settings:
    """Return settings that differ from the defaults, but for two that contradict others."""
    key = Path('a "key" \\ \x7f\t\u00e9.pem')
    special: dict[str, Any] = {
        "redis": "redis://10.0.0.5:6380/1",
        "require_redis": True,
        "host": "0.0.0.0, ::1",
        "http_host": "unix:/run/streamer.sock",
        "http_allowed_hosts": ("a.example", "b.example"),
        "trusted_proxies": ("10.0.0.0/8",),
        "proxy_protocol": "required",
        "allowed_origins": ("https://a.example",),
        "auth": "required",
        "auth_jwks_url": "https://a.example/jwks.json",
        "auth_algorithms": ("EdDSA",),
        "auth_audience": "streamer",
        "auth_issuer": "https://a.example",
        "auth_leeway_seconds": 7.5,
        "auth_cookie": "token",
        "auth_client_id": "streamer",
        "auth_refresh_url": None,
        "public_topics": (),
        "compression_window_bits": 9,
        "memory": False,
        "log_level": "debug",
        "log_format": "json",
        "rate_limit": 0.1,
        "rate_limit_burst": 1e6,
    }
    plain = Settings()
    values: dict[str, Any] = {
        field.name: key if field.type == Path | None else unusual(getattr(plain, field.name))
        for field in FIELDS
        if field.name not in special
    }
    return Settings(**values, **special)


def test_the_file_gives_the_same_settings() -> None:
    """Each setting, whatever its type, is what it was before."""
    settings = every_setting_changed()
    assert Settings(**tomllib.loads(config_text(settings))) == settings


def test_the_command_reads_its_own_file(tmp_path: Path) -> None:
    """Printed again from the file, the text is the same."""
    text = printed("--port", "9000", "--host", "0.0.0.0", "--allowed-origins", "https://a.example")
    path = tmp_path / "streamer.toml"
    path.write_text(text)
    assert 'allowed_origins = ["https://a.example"]' in text.splitlines()
    assert printed("--config", str(path)) == text


def test_what_has_its_default_is_commented_out() -> None:
    """So that the file follows the defaults of later versions; each is there with its help."""
    text = printed()
    assert tomllib.loads(text) == {}
    unwrapped = text.replace("\n# ", " ")
    for field in FIELDS:
        assert f"# {field.name} " in text
        assert field.metadata["help"] in unwrapped
    assert "# port = 8765" in text.splitlines()
    assert "# rate_limit_burst = 200.0" in text.splitlines()
    assert "# tls_key is not set" in text.splitlines()


def test_a_default_that_follows_another_setting_is_still_one() -> None:
    """Only what was set is active."""
    assert tomllib.loads(printed("--rate-limit", "30")) == {"rate_limit": 30.0}


def test_a_changed_setting_is_shown_with_its_default() -> None:
    """In the line above it."""
    lines = printed("--port", "9000").splitlines()
    assert lines[lines.index("port = 9000") - 1] == "# Default: 8765"


@pytest.mark.parametrize("option", ["", "?ssl_password=hunter2"])
def test_secrets_are_left_out(option: str) -> None:
    """The text has no password, and says where to set the URL."""
    text = printed("--redis", f"rediss://user:hunter2@10.0.0.5/0{option}")
    assert "hunter2" not in text
    assert "user:***@10.0.0.5" in text
    assert "STREAMER_REDIS" in text
