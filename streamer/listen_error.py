"""Addresses to listen on as text, and the error of a listener that cannot be opened."""

from __future__ import annotations


class ListenError(OSError):
    """An address cannot be listened on; `settings` are the names of the settings that give it."""

    def __init__(self, place: str, settings: tuple[str, ...], error: OSError) -> None:
        """`place` is the address as text for people."""
        reason = error.strerror or str(error)
        super().__init__(error.errno, f"cannot listen on {place}: {reason}")
        self.place = place
        self.settings = settings


def place_of(host: str, port: int) -> str:
    """Return an address as in a URL: IPv6 in brackets."""
    host = without_brackets(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def without_brackets(host: str) -> str:
    """Return a host without the brackets that an IPv6 address has in a URL."""
    is_bracketed = host.startswith("[") and host.endswith("]")
    return host[1:-1] if is_bracketed else host


def split_hosts(text: str) -> list[str]:
    """Split a list of hosts at its commas."""
    return [name for name in map(str.strip, text.split(",")) if name]
