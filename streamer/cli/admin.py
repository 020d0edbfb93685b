"""`streamer admin`: the operator's requests to a running system."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import orjson
from rich import box
from rich.console import Console
from rich.table import Table

from streamer.admin.models import (
    MAX_PAGE,
    MAX_RETRY_MS,
    ConnectionSort,
    ConnectionState,
    TopicSort,
)
from streamer.cli.admin_client import AdminClient
from streamer.cli.errors import CommandError
from streamer.protocol.topics import SubscriptionType

DEFAULT_URL: Final = "http://127.0.0.1:8766"

_HELP: Final = """Act on a running system: all servers and workers on one Redis.

\b
  streamer admin info --key-file operators
  streamer admin connections --user 42
  streamer admin disconnect --topic stock:005930 --reason maintenance --reconnect
  streamer admin revoke --user 42
  streamer admin publish user:42 '{"type": "alert", "alert_id": 7, …}'

The requests go to the HTTP listener of any server with --api-key-file. The variables
STREAMER_ADMIN_URL and STREAMER_API_KEY_FILE stand in for --url and --key-file.
"""


@click.group("admin", help=_HELP)
def command() -> None:
    """Group the operator's requests."""


def _with_client(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that all requests have, and pass a client made from them."""

    @click.option(
        "--url",
        envvar="STREAMER_ADMIN_URL",
        default=DEFAULT_URL,
        show_default=True,
        metavar="URL",
        help="The HTTP listener of a server.",
    )
    @click.option(
        "--key-file",
        envvar="STREAMER_API_KEY_FILE",
        required=True,
        type=click.Path(path_type=Path, allow_dash=True),
        metavar="FILE",
        help="A file whose first line is your key, KEY or NAME:KEY; - for stdin.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Write the answer as JSON.")
    @functools.wraps(function)
    def run(*arguments: Any, url: str, key_file: Path, as_json: bool, **options: Any) -> None:
        function(AdminClient(url, key_file, as_json), *arguments, **options)

    return run


def _limit(function: Callable[..., None]) -> Callable[..., None]:
    limited: Callable[..., None] = click.option(
        "--limit",
        type=click.IntRange(1, MAX_PAGE),
        default=100,
        show_default=True,
        metavar="N",
        help="The most rows.",
    )(
        click.option(
            "--cursor", metavar="TEXT", help="Continue where a page ended: its last line has it."
        )(function)
    )
    return limited


@command.command("disconnect")
@click.option("--user", metavar="ID", help="All connections of a user.")
@click.option("--session", metavar="HASH", help="One connection, by its hash in lists and logs.")
@click.option("--topic", metavar="TOPIC", help="All connections that hold a topic.")
@click.option("--reason", metavar="TEXT", help="The reason that the clients are given.")
@click.option("--reconnect", is_flag=True, help="Let the clients come back.")
@click.option(
    "--retry-after-ms",
    type=click.IntRange(0, MAX_RETRY_MS),
    metavar="MS",
    help="When they may; by default spread, so that they do not all come at once.",
)
@_with_client
def disconnect(client: AdminClient, **body: Any) -> None:
    """Close connections, of a user, of a session, or all that hold a topic."""
    client.post("disconnect", body, _show_closed)


@command.command("revoke")
@click.option("--user", metavar="ID", help="Tokens of a user.")
@click.option(
    "--issued-before",
    type=float,
    metavar="SECONDS",
    help="With --user: those issued before this time, in seconds since 1970.  [default: now]",
)
@click.option("--jti", metavar="ID", help="One token, by its id.")
@_with_client
def revoke(client: AdminClient, **body: Any) -> None:
    """Make tokens invalid, and close the connections that use them."""

    def show(answer: dict[str, Any]) -> None:
        _show_closed(answer)
        click.echo(f"the revocation is kept until {answer['kept_until']}")

    client.post("revoke", body, show)


@command.command("explain")
@click.argument("topic", metavar="TOPIC")
@click.option("--user", metavar="ID", help="A user whose token grants nothing besides.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="A file with a token; - for stdin.",
)
@_with_client
def explain(client: AdminClient, topic: str, *, user: str | None, token_file: Path | None) -> None:
    """Say which rule decides whether a client may have TOPIC: anonymous, a user, or a token."""

    def show(answer: dict[str, Any]) -> None:
        verdict = "allowed" if answer["allowed"] else "forbidden"
        who = "an anonymous client" if answer["user"] is None else f"user {answer['user']}"
        click.echo(f"{answer['topic']} is {verdict} to {who}: {answer['rule']}")

    token = None if token_file is None else _read(token_file).strip()
    client.post("explain", {"topic": topic, "user": user, "token": token}, show)


@command.command("connections")
@click.option("--user", metavar="ID", help="Those of a user.")
@click.option("--topic", metavar="TOPIC", help="Those that hold a topic.")
@click.option("--address", metavar="ADDRESS", help="Those from an address.")
@click.option(
    "--state", type=click.Choice([one.value for one in ConnectionState]), help="Those in a state."
)
@click.option(
    "--sort",
    type=click.Choice([one.value for one in ConnectionSort]),
    default=ConnectionSort.CONNECTED_AT.value,
    show_default=True,
    help="The column that they are sorted by.",
)
@click.option("--descending", is_flag=True, help="The largest first.")
@_limit
@_with_client
def connections(client: AdminClient, **body: Any) -> None:
    """List connections: those that fit all that is given."""
    columns = (
        "session",
        "user",
        "address",
        "state",
        "connected_at",
        "idle_seconds",
        "subscriptions",
        "delivered",
        "queued",
        "process",
    )

    def show(answer: dict[str, Any]) -> None:
        _show_table(answer["connections"], columns)
        _show_end(answer, f"{len(answer['connections'])} of {answer['total']} connections")

    client.post("connections", body, show)


@command.command("topics")
@click.argument("topic", metavar="[TOPIC]", required=False)
@click.option(
    "--type",
    "subscription_type",
    type=click.Choice([one.value for one in SubscriptionType]),
    help="Those of a type.",
)
@click.option(
    "--sort",
    type=click.Choice([one.value for one in TopicSort]),
    default=TopicSort.TOPIC.value,
    show_default=True,
    help="By name, or the largest first.",
)
@_limit
@_with_client
def topics(client: AdminClient, **body: Any) -> None:
    """List the topics that clients hold, or TOPIC alone."""
    columns = (
        "topic",
        "subscribers",
        "rate",
        "last_message_at",
        "sequence",
        "epoch",
        "producer",
        "publisher",
    )

    def show(answer: dict[str, Any]) -> None:
        _show_table(answer["topics"], columns)
        _show_end(answer, f"{len(answer['topics'])} topics")

    client.post("topics", body, show)


@command.command("publish")
@click.argument("topic", metavar="TOPIC")
@click.argument("message", metavar="MESSAGE")
@click.option(
    "--idempotency-key",
    metavar="TEXT",
    help="A name for this publication; with the same name it is not published again within a day.",
)
@_with_client
def publish(client: AdminClient, topic: str, message: str, *, idempotency_key: str | None) -> None:
    """Publish MESSAGE, JSON with its type, to TOPIC; - reads it from stdin.

    user:ID is the topic for an alert or a notification to a user.
    """

    def show(answer: dict[str, Any]) -> None:
        position = "without a position"
        if answer["epoch"] is not None:
            position = f"at {answer['epoch']} {answer['sequence']}"
        verb = "had been published" if answer["duplicate"] else "published"
        click.echo(f"{verb} {position}, received by {answer['receivers']} processes")

    text = _read(Path("-")) if message == "-" else message
    try:
        orjson.loads(text)
    except ValueError as error:
        raise click.UsageError(f"MESSAGE is not JSON: {error}") from None
    # As it is written, so that numbers keep their digits.
    body = {
        "topic": topic,
        "message": orjson.Fragment(text),
        "idempotency_key": idempotency_key,
    }
    client.post("publish", body, show)


@command.command("info")
@_with_client
def info(client: AdminClient) -> None:
    """List the server processes."""
    columns = (
        "process",
        "host",
        "pid",
        "version",
        "started_at",
        "connections",
        "ready",
        "reason",
    )

    def show(answer: dict[str, Any]) -> None:
        _show_table(answer["servers"], columns)

    client.post("info", {}, show)


def _show_closed(answer: dict[str, Any]) -> None:
    connections = "1 connection" if answer["count"] == 1 else f"{answer['count']} connections"
    click.echo(f"closed {connections} ({answer['answered']} of {answer['processes']} processes)")


def _show_table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Write rows as a table; with a pipe, as wide as it is."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in columns:
        is_number = any(isinstance(row[name], int | float) for row in rows)
        justify: Any = "right" if is_number else "left"
        table.add_column(name, no_wrap=True, justify=justify)
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in columns))
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 1000
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _show_end(answer: dict[str, Any], counted: str) -> None:
    rest = "" if answer["next"] is None else f"; more with --cursor {answer['next']}"
    click.echo(f"{counted}{rest}")


def _read(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: {error}") from None
