"""A plain HTTP request on the port of clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl

import attrs

from streamer.edge.credentials import find_token, hide_tokens, without_token
from streamer.edge.forwarded import Forwarding

MAX_PARAMETERS: Final = 200
"""Parameters of a query: more than any request needs, each topic in one of its own included."""

MAX_USER_AGENT_CHARACTERS: Final = 256
"""Characters of a User-Agent that are kept for as long as its client is connected."""


@attrs.frozen
class HttpRequest:
    """The parts of a request that an answer depends on."""

    method: str
    path: str
    parameters: tuple[tuple[str, str], ...]
    """Names and values of the query, decoded, without the token."""
    token: str | None = attrs.field(repr=False)
    origin: str | None
    user_agent: str | None
    last_event_id: str | None
    """The header that a browser sends when it reconnects to a stream."""
    forwarding: Forwarding
    query_problem: str | None = None
    """Why the query cannot be read, without any of it; then `parameters` is empty."""

    @property
    def query(self) -> Mapping[str, str]:
        """The parameters by name, without the token; the last one of each name."""
        return dict(self.parameters)


def read_http_request(
    method: bytes,
    path: str,
    query: str,
    headers: Mapping[bytes, bytes],
    *,
    cookie: str | None,
) -> HttpRequest:
    """Read a request; `headers` by names in lower case, `cookie` the name of that of a token."""
    parameters: list[tuple[str, str]] = []
    problem: str | None = None
    try:
        parameters = parse_qsl(
            query, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS
        )
    except UnicodeDecodeError:
        problem = "a parameter of the query is not UTF-8"
    except ValueError:
        problem = f"a query has at most {MAX_PARAMETERS} parameters"
    named = dict(parameters)
    public = without_token(named)

    def text(name: bytes, most_characters: int | None = None) -> str | None:
        value = headers.get(name)
        return None if value is None else hide_tokens(value.decode("latin-1"))[:most_characters]

    # A cursor may have the letters that a token begins with; nothing logs or shows it.
    last_event_id = headers.get(b"last-event-id")
    return HttpRequest(
        method=method.decode("ascii"),
        path=path,
        parameters=tuple((name, value) for name, value in parameters if name in public),
        token=find_token(headers, named, cookie=cookie),
        origin=text(b"origin"),
        user_agent=text(b"user-agent", MAX_USER_AGENT_CHARACTERS),
        last_event_id=None if last_event_id is None else last_event_id.decode("latin-1"),
        forwarding=Forwarding.from_headers(headers),
        query_problem=problem,
    )
