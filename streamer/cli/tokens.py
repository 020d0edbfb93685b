"""`streamer token`: sign a token for development, or say what is wrong with one."""

import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click
import trio

from streamer.cli.errors import CommandError, ExitCode
from streamer.cli.keys import DIRECTORY, SIGNING_KEY
from streamer.cli.logs import configure_logging
from streamer.cli.options import SettingsCommand, with_settings
from streamer.config import Settings
from streamer.protocol.patterns import TopicPattern
from streamer.protocol.topics import target_problem
from streamer.setting_rules import MAX_SECONDS, SettingError

if TYPE_CHECKING:
    from streamer.auth.identity import Identity

_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MAX_TOKEN_BYTES: Final = 65_536
"""Read from stdin: longer than any token that a server accepts."""

_HELP: Final = """Sign a token, and print it; `streamer token check` says what is wrong with one.

\b
  streamer keys new
  streamer token --user 42 --topic 'stock:*' --expires 1h

It is signed with auth_signing_key_file, or the first secret of auth_secret_file; by default with
the key that `streamer keys new` has written below this directory.
"""
_CHECK_HELP: Final = """Verify a token as a server with these settings does, and say what is wrong.

\b
  streamer token check --config streamer.toml < token.txt

Without TOKEN it is read from stdin, which no list of processes shows.
"""

_KEY_SETTINGS: Final = (
    "auth_signing_key_file",
    "auth_secret_file",
    "auth_keys_file",
    "auth_jwks_url",
)
_SIGNING_SETTINGS: Final = ("auth", *_KEY_SETTINGS, "auth_audience", "auth_issuer")
_CHECKING_SETTINGS: Final = (
    *_SIGNING_SETTINGS,
    "auth_algorithms",
    "auth_leeway_seconds",
    "auth_require_expiry",
)


def _with_development_key(given: Mapping[str, object]) -> dict[str, object]:
    """Turn auth on, and use the key of `streamer keys new` if no other is named."""
    completed = dict(given)
    if completed.get("auth", "none") == "none":
        completed["auth"] = "optional"
    if not any(name in completed for name in _KEY_SETTINGS):
        completed["auth_signing_key_file"] = str(DIRECTORY / SIGNING_KEY)
    return completed


class _Duration(click.ParamType[float]):
    """A time such as 30s, 15m, 1h or 7d, in seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Convert text to seconds."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d{1,9})([smhd])", value)
        seconds = int(match[1]) * _UNIT_SECONDS[match[2]] if match else 0
        if not 0 < seconds <= MAX_SECONDS:
            self.fail(f"{value!r} is no time such as 30s, 15m, 1h or 7d, up to a year", param, ctx)
        return float(seconds)


@click.group("token", invoke_without_command=True, help=_HELP)
@with_settings(only=_SIGNING_SETTINGS, complete=_with_development_key)
@click.option("--user", metavar="ID", help="The user: the claim sub.")
@click.option(
    "--topic",
    "topics",
    metavar="PATTERN",
    multiple=True,
    help="Topics to grant, such as 'stock:*' or watchlist:42/tech; may be repeated.",
)
@click.option(
    "--expires", type=_Duration(), default="1h", show_default=True, help="How long it is valid."
)
@click.option("--refresh", "is_refresh", is_flag=True, help="Sign a refresh token instead.")
def command(
    settings: Settings,
    *,
    user: str | None,
    topics: tuple[str, ...],
    expires: float,
    is_refresh: bool,
) -> None:
    """Sign a token, unless a subcommand is to run."""
    if click.get_current_context().invoked_subcommand is not None:
        return
    if user is None:
        raise click.UsageError("--user is needed: whose token is it?")
    if (problem := target_problem(user)) is not None:
        raise click.UsageError(f"--user: {problem}")
    for topic in topics:
        try:
            TopicPattern.parse(topic)
        except ValueError as error:
            raise click.UsageError(f"--topic: {error}") from None
    click.echo(_sign(settings, user, topics, expires, is_refresh=is_refresh))


def _sign(
    settings: Settings, user: str, topics: tuple[str, ...], seconds: float, *, is_refresh: bool
) -> str:
    # Imported here: it takes longer than the other commands need to start.
    from streamer.auth.signing import ACCESS, REFRESH, SigningKey  # noqa: PLC0415

    for name in ("auth_signing_key_file", "auth_secret_file"):
        if (path := getattr(settings, name)) is not None:
            break
    else:
        raise CommandError("no key to sign with: name auth_signing_key_file", ExitCode.USAGE)
    try:
        key = SigningKey.read(name, path)
    except SettingError as error:
        raise _unusable_keys(error) from None
    return key.token(
        user,
        use=REFRESH if is_refresh else ACCESS,
        topics=topics,
        issued_at=time.time(),
        lifetime_seconds=seconds,
        audience=settings.auth_audience,
        issuer=settings.auth_issuer,
    )


@command.command("check", cls=SettingsCommand, help=_CHECK_HELP)
@with_settings(only=_CHECKING_SETTINGS, complete=_with_development_key)
@click.argument("token", default="-")
def check(settings: Settings, *, token: str) -> None:
    """Verify a token."""
    configure_logging("warning", "text")
    try:
        text = sys.stdin.read(_MAX_TOKEN_BYTES) if token == "-" else token
        identity = trio.run(_authenticate, settings, text.strip())
    except UnicodeDecodeError:
        raise CommandError("the token is not a JWT: it is not UTF-8") from None
    except SettingError as error:
        raise _unusable_keys(error) from None
    click.echo("The token is valid.")
    for name, value in _described(identity):
        click.echo(f"{name:<8}  {value}")


async def _authenticate(settings: Settings, token: str) -> "Identity":
    from streamer.auth.authenticator import Authenticator  # noqa: PLC0415
    from streamer.auth.errors import TokenError  # noqa: PLC0415

    authenticator = Authenticator(settings)
    problem: str | None = None
    identity: Identity | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(authenticator.run)
        try:
            identity = await authenticator.authenticate(token)
        except TokenError as error:
            problem = error.message
        nursery.cancel_scope.cancel()
    if identity is None:
        raise CommandError(f"{problem}{_unproven(token)}")
    return identity


def _described(identity: "Identity") -> list[tuple[str, str]]:
    topics = " ".join(map(str, identity.patterns)) or "only public topics and the user's own"
    return [
        ("user", identity.user_id),
        ("topics", topics),
        ("issued", _moment(identity.issued_at)),
        ("expires", _moment(identity.expires_at)),
        ("id", identity.token_id or "none"),
    ]


def _moment(seconds: float | None) -> str:
    if seconds is None:
        return "never stated"
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return "beyond the calendar"


def _unproven(token: str) -> str:
    """Describe the members of a refused token that most often are wrong."""
    import jwt  # noqa: PLC0415

    try:
        decoded = jwt.decode_complete(token, options={"verify_signature": False})
    except jwt.InvalidTokenError:
        return ""
    members = [(name, decoded["header"].get(name)) for name in ("alg", "kid")]
    members += [(name, decoded["payload"].get(name)) for name in ("iss", "aud", "sub")]
    for name in ("nbf", "exp"):
        if isinstance(seconds := decoded["payload"].get(name), int | float):
            members.append((name, _moment(seconds)))
    found = ", ".join(f"{name} {value!r}" for name, value in members if value is not None)
    return f"; unproven, it says: {found}"


def _unusable_keys(error: SettingError) -> CommandError:
    hint = ""
    if str(DIRECTORY / SIGNING_KEY) in str(error):
        hint = " (streamer keys new makes one)"
    return CommandError(f"{error}{hint}", ExitCode.USAGE)
