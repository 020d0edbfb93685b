"""`streamer check` as a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamer.cli import main
from streamer.cli.errors import ExitCode


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines on stdout."""
    return capsys.readouterr().out.splitlines()


def test_a_good_configuration_has_no_fault(
    redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each part, and exit code 0."""
    assert main(["check", "--redis", redis_url]) == ExitCode.OK
    found = lines(capsys)
    assert found[0] == "ok       settings: all are valid"
    assert {line.split()[1] for line in found} >= {"settings:", "redis:", "clock:", "ulimit:"}


def test_all_faults_of_a_configuration_come_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the file, variables and flags; one that follows from another is not repeated."""
    config = tmp_path / "streamer.toml"
    config.write_text(
        f'prot = 1\nhots = "::"\nredis = "http://a"\nauth = "always"\nauth_leeway_seconds = -1\n'
        f'tls_certificate = "{tmp_path}/absent.pem"\napi_key_file = "{tmp_path}/absent"\n'
        f'auth_keys_file = "{tmp_path}/keys"\n'
    )
    monkeypatch.setenv("STREAMER_WORKERS", "0")
    monkeypatch.setenv("STREAMER_NONSENSE", "1")
    code = main(["check", "--config", str(config), "--max-subscriptions", "x"])
    assert code == ExitCode.FAILURE
    found = [line for line in lines(capsys) if line.startswith("fault ")]
    problems = [line.split()[2] for line in found]
    assert problems == [
        "prot",
        "hots",
        "nonsense",
        "redis",
        "workers",
        "auth",
        "auth_leeway_seconds",
        "max_subscriptions",
        "tls_certificate",
        "api_key_file:",
    ]
    assert f"(from {config})" in found[0]
    assert "did you mean port?" in found[0]
    assert "(from --max-subscriptions)" in found[7]


def test_other_faults_come_beside_those_of_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Redis that is away and a bad key file are found, though a setting is wrong, too."""
    secret = tmp_path / "secret"
    secret.write_text("short")
    arguments = ["--redis", f"unix://{tmp_path}/absent.sock", "--port", "-1"]
    arguments += ["--auth", "required", "--auth-secret-file", str(secret)]
    assert main(["check", *arguments]) == ExitCode.FAILURE
    subjects = [line.split()[1] for line in lines(capsys) if line.startswith("fault ")]
    assert subjects == ["settings:", "redis:", "auth_secret_file:"]


def test_the_findings_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """With the worst level, and the same exit code."""
    assert main(["check", "--memory", "--json"]) == ExitCode.OK
    page = json.loads(capsys.readouterr().out)
    assert page["result"] in {"ok", "warning"}
    assert page["findings"][0] == {
        "level": "ok",
        "subject": "settings",
        "message": "all are valid",
    }
    assert main(["check", "--memory", "--port", "-1", "--json"]) == ExitCode.FAILURE
    assert json.loads(capsys.readouterr().out)["result"] == "fault"
