"""`streamer keys new`, `streamer token` and `streamer token check`: from a key to an identity.

Covers streamer.cli.keys.
"""

from __future__ import annotations

import io
import json
import os
import resource
import stat
import subprocess
import sys
import time
from pathlib import Path

import jwt
import pytest

from streamer.cli import main
from streamer.cli.errors import ExitCode
from tests.auth.provider import Key, running_provider

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def output(capsys: Capture, *arguments: str) -> str:
    """Return what a command prints."""
    assert main(arguments) == ExitCode.OK, capsys.readouterr().err
    return capsys.readouterr().out


def error(capsys: Capture, *arguments: str, code: ExitCode = ExitCode.FAILURE) -> str:
    """Return the error of a command, which is one line."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("streamer: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_the_printed_commands_are_a_server_and_its_token(capsys: Capture, directory: Path) -> None:
    """The key is where the next command looks for it, and the token is valid with it."""
    printed = output(capsys, "keys", "new")
    assert "streamer serve --auth required --auth-signing-key-file streamer-keys/" in printed
    assert "streamer token --user 42 --topic 'stock:*' --expires 1h" in printed
    token = output(capsys, "token", "--user", "42", "--topic", "stock:*", "--expires", "1h")
    checked = output(capsys, "token", "check", token)
    lines = dict(line.split(maxsplit=1) for line in checked.splitlines()[1:])
    assert checked.startswith("The token is valid.\n")
    assert (lines["user"], lines["topics"]) == ("42", "stock:*")
    claims = jwt.decode(token.strip(), options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 3600


def test_what_is_private_is_for_the_owner_alone(capsys: Capture, directory: Path) -> None:
    """Whatever the umask; the public key can be read."""
    previous = os.umask(0)
    try:
        printed = output(capsys, "keys", "new") + output(capsys, "keys", "new", "--secret")
    finally:
        os.umask(previous)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.glob("streamer-keys/*")
    }
    assert modes == {"signing-key.pem": 0o600, "keys.json": 0o644, "secret": 0o600}
    assert stat.S_IMODE((directory / "streamer-keys").stat().st_mode) == 0o700
    assert (directory / "streamer-keys/secret").read_text().strip() not in printed
    public = (directory / "streamer-keys/keys.json").read_text()
    assert json.loads(public)["keys"][0].keys() == {"kty", "crv", "x", "y", "kid", "use", "alg"}


def test_no_key_is_overwritten(capsys: Capture, directory: Path) -> None:
    """Every token would become invalid."""
    output(capsys, "keys", "new")
    before = (directory / "streamer-keys/signing-key.pem").read_bytes()
    assert "exists, and is not overwritten" in error(capsys, "keys", "new")
    assert (directory / "streamer-keys/signing-key.pem").read_bytes() == before


def test_a_directory_that_cannot_be_made_is_an_error(capsys: Capture, directory: Path) -> None:
    """It says which."""
    (directory / "file").touch()
    assert "cannot write file/keys" in error(capsys, "keys", "new", "--directory", "file/keys")


def test_the_public_keys_verify_without_the_private_one(capsys: Capture, directory: Path) -> None:
    """A server that only verifies needs no more."""
    output(capsys, "keys", "new")
    token = output(capsys, "token", "--user", "42")
    checked = output(capsys, "token", "check", "--auth-keys-file", "streamer-keys/keys.json", token)
    assert "42" in checked


def test_a_secret_signs_as_well(capsys: Capture, directory: Path) -> None:
    """For backends that share one."""
    output(capsys, "keys", "new", "--secret", "--directory", "here")
    key = ("--auth-secret-file", "here/secret")
    token = output(capsys, "token", *key, "--user", "삼성 1")
    assert "삼성 1" in output(capsys, "token", "check", *key, token)


def test_the_settings_of_the_server_are_those_of_the_token(
    capsys: Capture, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its file and variables, audience and issuer too."""
    output(capsys, "keys", "new", "--secret")
    config = directory / "streamer.toml"
    config.write_text(
        'auth = "required"\nauth_secret_file = "streamer-keys/secret"\n'
        'auth_audience = "streamer"\nauth_cookie = "token"\nport = 1\n'
    )
    monkeypatch.setenv("STREAMER_CONFIG", str(config))
    monkeypatch.setenv("STREAMER_AUTH_ISSUER", "https://a.example")
    token = output(capsys, "token", "--user", "42").strip()
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["aud"], claims["iss"]) == ("streamer", "https://a.example")
    assert "42" in output(capsys, "token", "check", token)
    monkeypatch.setenv("STREAMER_AUTH_AUDIENCE", "another")
    problem = error(capsys, "token", "check", token)
    assert "the token is for another audience (aud)" in problem
    assert "aud 'streamer'" in problem


def test_a_token_is_read_from_stdin(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no list of processes shows it."""
    output(capsys, "keys", "new")
    token = output(capsys, "token", "--user", "42")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"  {token}\n"))
    assert "42" in output(capsys, "token", "check")


def test_a_refresh_token_is_no_access_token(capsys: Capture, directory: Path) -> None:
    """`check` says so."""
    output(capsys, "keys", "new")
    token = output(capsys, "token", "--user", "42", "--refresh", "--expires", "30d")
    assert "the token is no access token" in error(capsys, "token", "check", token)


def test_what_is_wrong_is_said_without_the_token(capsys: Capture, directory: Path) -> None:
    """With the members that most often are the reason; no part of the signature."""
    output(capsys, "keys", "new")
    signature = "wrong" * 16
    token = output(capsys, "token", "--user", "42").strip()
    forged = f"{token.rpartition('.')[0]}.{signature}"
    problem = error(capsys, "token", "check", forged)
    assert "the token's signature is not valid" in problem
    assert "alg 'ES256'" in problem
    assert "sub '42'" in problem
    assert signature not in problem
    assert "not a JWT" in error(capsys, "token", "check", "hello")


def test_an_expired_token_is_shown_with_its_end(capsys: Capture, directory: Path) -> None:
    """In UTC."""
    output(capsys, "keys", "new", "--secret")
    secret = (directory / "streamer-keys/secret").read_bytes().strip()
    token = jwt.encode({"sub": "42", "exp": 0}, secret)
    problem = error(capsys, "token", "check", "--auth-secret-file", "streamer-keys/secret", token)
    assert "has expired" in problem
    assert "exp '1970-01-01T00:00:00Z'" in problem
    endless = jwt.encode({"sub": "42", "exp": int(time.time()) + 10**12}, secret)
    assert "beyond the calendar" in output(
        capsys, "token", "check", "--auth-secret-file", "streamer-keys/secret", endless
    )


def test_a_token_of_a_provider_is_checked_with_its_keys(capsys: Capture, directory: Path) -> None:
    """Fetched from its URL."""
    key = Key("1")
    with running_provider() as provider:
        provider.publish(key)
        arguments = ("token", "check", "--auth-jwks-url", provider.jwks_url)
        assert "42" in output(capsys, *arguments, key.sign())


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["token"], "--user is needed"),
        (["token", "--user", "a*b"], "--user: a target is"),
        (["token", "--user", "42", "--topic", "stock"], "--topic: 'stock' is not TYPE:TARGET"),
        (["token", "--user", "42", "--expires", "soon"], "'soon' is no time such as 30s"),
        (["token", "--user", "42", "--expires", "0s"], "'0s' is no time such as 30s"),
        (["token", "--user", "42", "--expires", "367d"], "'367d' is no time such as 30s"),
        (["token", "--user", "42"], "streamer-keys/signing-key.pem cannot be read: No such file"),
        (["token", "--user", "42"], "(streamer keys new makes one)"),
        (["token", "check", "a.b.c"], "(streamer keys new makes one)"),
        (
            ["token", "--user", "42", "--auth-jwks-url", "https://a.example"],
            "no key to sign with",
        ),
    ],
)
def test_a_mistake_is_a_usage_error(capsys: Capture, arguments: list[str], problem: str) -> None:
    """One line says what to change."""
    assert problem in error(capsys, *arguments, code=ExitCode.USAGE)


def test_a_token_can_be_piped(directory: Path) -> None:
    """Only the token is on stdout."""
    script = (
        '"$0" -m streamer keys new --directory k > commands; '
        'key="--auth-signing-key-file k/signing-key.pem"; '
        '"$0" -m streamer token $key --user 42 | "$0" -m streamer token check $key'
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["/bin/sh", "-c", script, sys.executable],
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,
        env=environment,
    )
    assert done.stdout.startswith("The token is valid.\nuser      42\n"), done.stderr
    assert done.stderr == ""


def test_half_a_pair_of_keys_is_never_written(capsys: Capture, directory: Path) -> None:
    """A private key beside the public one of another would sign what no server accepts."""
    (directory / "keys.json").write_text("{}")
    problem = error(capsys, "keys", "new", "--directory", str(directory))
    assert "keys.json exists, and is not overwritten" in problem
    assert [path.name for path in directory.iterdir()] == ["keys.json"]


@pytest.mark.parametrize("arguments", [(), ("--secret",)])
def test_a_key_that_does_not_fit_on_the_disk_is_not_there(
    capsys: Capture, directory: Path, arguments: tuple[str, ...]
) -> None:
    """The next attempt would not overwrite what is there of it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        problem = error(capsys, "keys", "new", "--directory", str(directory), *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot write" in problem
    assert "None" not in problem
    assert not list(directory.iterdir())


def test_a_token_on_stdin_may_be_any_bytes(tmp_path: Path) -> None:
    """It is no token then, which the error says."""
    secret = tmp_path / "secret"
    secret.write_text("a secret of the tests, of 32 bytes and more\n")
    ran = subprocess.run(
        [sys.executable, "-m", "streamer", "token", "check", "--auth-secret-file", str(secret)],
        input=b"\xff\xfe",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        check=False,
    )
    assert ran.returncode == ExitCode.FAILURE
    assert ran.stderr.startswith(b"streamer: error: the token is not a JWT")
