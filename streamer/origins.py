"""Origins of web pages (RFC 6454), as browsers write them in the header Origin."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

import idna

_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_WILDCARD: Final = "*."


def normalize_origin(text: str) -> str:
    """Return an origin as browsers write it: lower case, no default port, a host in ASCII.

    The host may begin with `*.`, which stands for one or more labels. Raises ValueError for a text
    that is not an origin.
    """
    parts = urlsplit(text.strip())
    if not _SCHEME.fullmatch(parts.scheme) or not parts.hostname:
        raise ValueError("an origin is SCHEME://HOST or SCHEME://HOST:PORT")
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("an origin has only a scheme, a host and a port")
    host = parts.hostname
    wildcard = _WILDCARD if host.startswith(_WILDCARD) else ""
    host = host.removeprefix(wildcard)
    if ":" in host:
        host = f"[{host}]"
    else:
        try:
            host = idna.encode(host, uts46=True).decode() if not host.isascii() else host
        except idna.IDNAError as error:
            raise ValueError(f"the host is none: {error}") from None
        if not host or "*" in host or any(character.isspace() for character in host):
            raise ValueError("a * stands only for the first labels of a host")
    is_default = parts.port is None or _DEFAULT_PORTS.get(parts.scheme) == parts.port
    return f"{parts.scheme}://{wildcard}{host}" + ("" if is_default else f":{parts.port}")


class OriginRules:
    """The origins that may connect; all if none is named."""

    def __init__(self, allowed: Iterable[str]) -> None:
        """`allowed` are normalized."""
        self._exact = frozenset(origin for origin in allowed if _WILDCARD not in origin)
        self._suffixes = tuple(
            tuple(origin.split("*", 1)) for origin in allowed if _WILDCARD in origin
        )

    def allow(self, origin: str | None) -> bool:
        """Whether a page of this origin may connect; None is a client that is no browser.

        Such a client sends no Origin, and no web page can make it connect.
        """
        if origin is None or not (self._exact or self._suffixes):
            return True
        try:
            normalized = normalize_origin(origin)
        except ValueError:
            return False
        return normalized in self._exact or any(
            normalized.startswith(scheme) and normalized.endswith(rest)
            for scheme, rest in self._suffixes
        )
