"""The error of a listener that cannot be opened."""

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
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
