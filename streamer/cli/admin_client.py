"""One request to the operator's API, for the commands of `streamer admin`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import click
import orjson

from streamer.admin.keys import split_key
from streamer.cli.errors import CommandError, ExitCode
from streamer.urls import redact

_TIMEOUT_SECONDS: Final = 30.0
"""Longer than the server takes for any request, its bounds on Redis included."""

Show = Callable[[dict[str, Any]], None]
"""Writes an answer for people."""


@attrs.frozen
class AdminClient:
    """Where the API is, who asks, and how answers are shown."""

    url: str
    key_file: Path
    as_json: bool

    def post(self, name: str, body: dict[str, Any], show: Show) -> None:
        """Post a request without the fields that are None, and show the answer.

        Raises CommandError if it is not carried out, or if not every process answered: then what
        was done is shown before.
        """
        import httpx2  # noqa: PLC0415 - it takes longer than the other commands need to start

        given = {field: value for field, value in body.items() if value is not None}
        try:
            content = orjson.dumps(given)
        except TypeError:
            raise CommandError("an argument is not UTF-8", ExitCode.USAGE) from None
        try:
            response = httpx2.post(
                f"{self.url.rstrip('/')}/v1/api/{name}",
                content=content,
                headers={
                    "Authorization": f"Bearer {_read_key(self.key_file)}",
                    "Content-Type": "application/json",
                },
                timeout=_TIMEOUT_SECONDS,
            )
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise CommandError(f"no answer from {redact(self.url)}: {error}") from None
        try:
            answer = orjson.loads(response.content)
            problem = answer.pop("error", None)
        except (AttributeError, ValueError):
            raise CommandError(
                f"{redact(self.url)} answered {response.status_code}, and no JSON: is it the HTTP"
                " listener of streamer?"
            ) from None
        if self.as_json:
            click.echo(orjson.dumps(answer if problem is None else {"error": problem} | answer))
        elif problem is None or "processes" in answer:
            show(answer)
        if response.status_code == httpx2.codes.NOT_FOUND:
            problem = "the API is off: start the server with --api-key-file"
        if problem is not None:
            raise CommandError(str(problem))
        processes, answered = answer.get("processes", 0), answer.get("answered", 0)
        if answered < processes:
            raise CommandError(f"only {answered} of {processes} processes answered")


def _read_key(path: Path) -> str:
    """Return the first key of a file in the server's format, KEY or NAME:KEY a line."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise CommandError(f"{path}: {reason}") from None
    for line in map(str.strip, text.splitlines()):
        if (named := split_key(line)) is not None:
            return named[1]
    raise CommandError(f"{path} has no key: KEY or NAME:KEY")
