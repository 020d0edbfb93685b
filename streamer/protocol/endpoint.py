"""The version of the protocol, and the path at which it is spoken."""

from __future__ import annotations

from typing import Final

VERSION: Final = 1
"""The `protocol` in `connected`."""

WEBSOCKET_PATH: Final = f"/v{VERSION}/ws"
