"""New access tokens for refresh tokens, from the token endpoint of an identity provider."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import httpx2
import orjson
import structlog
import trio

from streamer.auth.claims import MAX_TOKEN_CHARACTERS
from streamer.auth.errors import invalid
from streamer.auth.requests import TIMEOUT_SECONDS, HttpProblem, request_json
from streamer.bounded_log import BoundedLog
from streamer.setting_rules import SettingError

_MAX_ANSWER_BYTES: Final = 65_536
"""An access, a refresh and an ID token, with room to spare."""

_MAX_REQUESTS: Final = 20
"""Requests at a time, so that clients cannot make this server flood its provider; more wait."""

log = structlog.get_logger()


class TokenEndpoint:
    """The token endpoint of an OAuth 2 server (RFC 6749, section 6)."""

    def __init__(self, url: str, client_id: str | None, client_secret_file: Path | None) -> None:
        """Read the secret. Raises SettingError if its file cannot be used."""
        self._url = url
        self._client_id = client_id
        self._auth: httpx2.Auth | None = None
        if client_secret_file is not None:
            assert client_id is not None, "the settings ask for both"
            self._auth = httpx2.BasicAuth(client_id, read_secret(client_secret_file))
        self._limiter = trio.CapacityLimiter(_MAX_REQUESTS)
        self._log = BoundedLog(log.warning)

    async def access_token(self, refresh_token: str) -> str:
        """Return a new access token, not verified yet. Raises TokenError."""
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        if self._client_id is not None and self._auth is None:
            form["client_id"] = self._client_id
        try:
            status, body = await self._post(form)
        except HttpProblem as error:
            self._log(
                "unavailable", "token endpoint unavailable", url=self._url, problem=str(error)
            )
            raise invalid("tokens cannot be refreshed now; try again", is_final=False) from None
        if status == httpx2.codes.OK:
            return self._token_of(body)
        self._log("refused", "token endpoint refused", url=self._url, status=status)
        if httpx2.codes.is_client_error(status) and status != httpx2.codes.TOO_MANY_REQUESTS:
            raise invalid("the identity provider does not accept the refresh token")
        raise invalid("tokens cannot be refreshed now; try again", is_final=False)

    async def _post(self, form: dict[str, str]) -> tuple[int, bytes]:
        # A client for each request: refreshes are minutes apart, and no task has to own the pool.
        async with (
            self._limiter,
            httpx2.AsyncClient(
                auth=self._auth, timeout=TIMEOUT_SECONDS, follow_redirects=False
            ) as client,
        ):
            return await request_json(
                client, "POST", self._url, max_bytes=_MAX_ANSWER_BYTES, form=form
            )

    def _token_of(self, body: bytes) -> str:
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        token = answer.get("access_token") if isinstance(answer, dict) else None
        if not isinstance(token, str) or len(token) > MAX_TOKEN_CHARACTERS:
            self._log("answer", "token endpoint answered without an access token", url=self._url)
            raise invalid("the identity provider answered without an access token", is_final=False)
        return token


def read_secret(path: Path) -> str:
    """Return the secret of this server as a client. Raises SettingError."""
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingError(
            "auth_client_secret_file", f"{path} cannot be read: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise SettingError("auth_client_secret_file", f"{path} is not UTF-8") from None
    if not secret or "\n" in secret:
        raise SettingError("auth_client_secret_file", f"{path} has not exactly one line")
    return secret
