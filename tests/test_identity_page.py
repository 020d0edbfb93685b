"""The page docs/how-to/identity.md: its commands and backends give tokens that a server accepts.

The backends are those of docs/examples/identity, in the real frameworks.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import threading
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

import httpx2
import pytest
import trio

from streamer.auth.authenticator import Authenticator
from streamer.auth.errors import TokenError
from streamer.cli import main
from streamer.cli.errors import ExitCode
from streamer.config import Settings
from streamer.protocol.errors import ErrorCode
from tests.helpers.http import http_client

PROJECT: Final = Path(__file__).parent.parent
PAGE: Final = (PROJECT / "docs" / "how-to" / "identity.md").read_text(encoding="utf-8")
EXAMPLES: Final = PROJECT / "docs" / "examples" / "identity"
SECRET: Final = "a secret of the tests, of 32 bytes and more"


def commands(section: str) -> list[str]:
    """The shell commands of a section."""
    _, _, text = PAGE.partition(f"## {section}\n")
    blocks = re.findall(r"```sh\n(.*?)```", text.partition("\n## ")[0], flags=re.DOTALL)
    return "".join(blocks).splitlines()


def settings_of(command: str) -> dict[str, Any]:
    """The settings about identity of a `streamer serve`."""
    words = shlex.split(command)
    assert words[:2] == ["streamer", "serve"]
    flags = [word for word in words[2:] if word != "--memory"]
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return {flag.removeprefix("--").replace("-", "_"): value for flag, value in pairs}


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import an example, with the secret of the tests."""
    monkeypatch.setenv("STREAMER_SECRET", SECRET)
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def check_token(answer: dict[str, Any], directory: Path) -> None:
    """The token is one of user 42 for a server with the settings of the page."""
    path = directory / "secret"
    path.write_text(SECRET)
    authenticator = Authenticator(
        Settings(auth="required", auth_secret_file=path, auth_audience="streamer")
    )
    identity = await authenticator.authenticate(answer["token"])
    assert identity.user_id == "42"
    assert identity.token_id
    assert list(map(str, identity.patterns)) == ["stock:*", "market:*"]
    assert identity.expires_at is not None
    assert identity.issued_at is not None
    assert identity.expires_at - identity.issued_at == answer["expires_in"] == 600


async def test_the_first_commands_work_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a key to a token that the server of the page accepts."""
    monkeypatch.chdir(tmp_path)
    new, serve, sign, check = commands("Try it")
    assert main(shlex.split(new)[1:]) == ExitCode.OK
    settings = Settings(**settings_of(serve))
    capsys.readouterr()
    command, _, file = sign.partition(" > ")
    assert main(shlex.split(command)[1:]) == ExitCode.OK
    token = capsys.readouterr().out.strip()
    (tmp_path / file).write_text(token)
    identity = await Authenticator(settings).authenticate(token)
    assert identity.user_id == "42"
    assert check == f"streamer token check < {file}"
    check_arguments = [*shlex.split(check.partition(" <")[0])[1:], token]
    assert await trio.to_thread.run_sync(main, check_arguments) == ExitCode.OK


def test_the_secret_of_the_page_is_one_for_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that makes it, and the one that uses it."""
    monkeypatch.chdir(tmp_path)
    new, serve, *_ = commands("With a secret that your backend knows")
    assert main(shlex.split(new)[1:]) == ExitCode.OK
    Authenticator(Settings(**settings_of(serve)))


def test_the_file_of_the_page_is_one_of_settings() -> None:
    """For an identity provider."""
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    Settings(**tomllib.loads(text))


async def test_refresh_tokens_are_signed_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a token gives access tokens with its topics."""
    monkeypatch.chdir(tmp_path)
    new, serve, *_ = commands("Try it")
    assert main(shlex.split(new)[1:]) == ExitCode.OK
    capsys.readouterr()
    (command,) = re.findall(r"`(streamer token --refresh[^`]*)`", PAGE)
    assert main(shlex.split(command)[1:]) == ExitCode.OK
    token = capsys.readouterr().out.strip()
    authenticator = Authenticator(Settings(**settings_of(serve)))
    _, identity = await authenticator.refresh(token)
    assert list(map(str, identity.patterns)) == ["stock:*"]
    with pytest.raises(TokenError) as refused:
        await authenticator.authenticate(token)
    assert refused.value.code is ErrorCode.INVALID_TOKEN


async def test_a_fastapi_backend_issues_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To those who are logged in, and to nobody else."""
    app = load("fastapi_tokens", monkeypatch).app
    transport = httpx2.ASGITransport(app)
    async with http_client(transport=transport, base_url="http://backend") as client:
        assert (await client.post("/streamer-token")).status_code == 401
        client.cookies.set("session", "alices-session")
        await check_token((await client.post("/streamer-token")).json(), tmp_path)


def log_in(get_response: Any) -> Any:
    """Middleware: the user whom a header names is logged in, as by Django's own middleware."""

    def respond(request: Any) -> Any:
        user_id = request.headers.get("X-User")
        request.user = SimpleNamespace(is_authenticated=user_id is not None, pk=user_id)
        return get_response(request)

    return respond


class Quiet(WSGIRequestHandler):
    """Logs nothing."""

    def log_message(self, *arguments: object) -> None:
        """Write no log."""


async def test_a_django_backend_issues_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To those who are logged in, and to nobody else."""
    from django.conf import settings  # noqa: PLC0415
    from django.core.wsgi import get_wsgi_application  # noqa: PLC0415

    urls = load("django_tokens", monkeypatch)
    settings.configure(
        ROOT_URLCONF=urls,
        ALLOWED_HOSTS=["127.0.0.1"],
        MIDDLEWARE=[f"{__name__}.log_in"],
        LOGGING_CONFIG=None,
    )
    server = make_server("127.0.0.1", 0, get_wsgi_application(), handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        async with http_client(base_url=f"http://127.0.0.1:{server.server_port}") as client:
            assert (await client.post("/streamer-token")).status_code == 401
            assert (await client.get("/streamer-token")).status_code == 405
            answer = await client.post("/streamer-token", headers={"X-User": "42"})
            await check_token(answer.json(), tmp_path)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
