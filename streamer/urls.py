"""URLs: whether they are any, and without their secrets."""

import re
from typing import Final
from urllib.parse import urlsplit

_VISIBLE: Final = re.compile("[!-~]+")


def is_url(url: str, schemes: set[str]) -> bool:
    """Whether a text is a URL with one of these schemes and a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False


def is_websocket_url(url: str) -> bool:
    """Whether a text is the URL of a WebSocket.

    It goes into a request as it is, so other characters than visible ASCII have to be
    percent-encoded.
    """
    return is_url(url, {"ws", "wss"}) and _VISIBLE.fullmatch(url) is not None


def redact(url: str) -> str:
    """Return the URL without its password, for logs and error messages."""
    # Greedy up to the last @: a password that should have been percent-encoded may contain one.
    url = re.sub(r"(://[^:@/]*:).*@", r"\1***@", url)
    return re.sub(r"([?&]\w*password=)[^&'\"]*", r"\1***", url)
