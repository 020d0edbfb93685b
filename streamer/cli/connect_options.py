"""Options of the commands that connect to WebSockets: URLs, and certificates."""

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from streamer.cli.errors import CommandError
from streamer.urls import is_url, is_websocket_url, redact

with_ca: Final = click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Certificates (PEM) of the authorities to trust, in place of the system's.",
)
"""Add the option `ca` to a command; `ssl_context` takes its value."""

with_duration: Final = click.option(
    "--duration",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End after this time.",
)
"""Add the option `duration` to a command, in seconds; None: until a signal ends it."""


def check_url(_context: click.Context, _parameter: click.Parameter, url: str) -> str:
    """Return a URL of a WebSocket. Raises click.UsageError if it is none."""
    if not is_websocket_url(url):
        raise click.UsageError(f"{redact(url)!r} is no URL with the scheme ws or wss")
    return url


def check_urls(
    context: click.Context, parameter: click.Parameter, urls: Sequence[str]
) -> Sequence[str]:
    """Return URLs of WebSockets. Raises click.UsageError if one is none."""
    return [check_url(context, parameter, url) for url in urls]


def check_http_urls(
    _context: click.Context, _parameter: click.Parameter, urls: Sequence[str]
) -> Sequence[str]:
    """Return URLs of HTTP. Raises click.UsageError if one is none."""
    for url in urls:
        if not is_url(url, {"http", "https"}):
            raise click.UsageError(f"{redact(url)!r} is no URL with the scheme http or https")
    return urls


def ssl_context(ca: Path | None) -> ssl.SSLContext | None:
    """Return the context that trusts the authorities in a file; None without a file.

    Raises CommandError if the file has no certificates.
    """
    if ca is None:
        return None
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror if type(error) is OSError else "no certificates in PEM format"
        raise CommandError(f"{ca}: {reason}") from None
