"""The version of the protocol, and the path of its endpoint."""

from __future__ import annotations

from typing import Final

VERSION: Final = 1
"""The `protocol` in `connected`."""

WEBSOCKET_PATH: Final = f"/v{VERSION}/ws"
