"""The version of the protocol, and the paths of its endpoints."""

from __future__ import annotations

from typing import Final

VERSION: Final = 1
"""The `protocol` in `connected`."""

WEBSOCKET_PATH: Final = f"/v{VERSION}/ws"

STREAM_PATH: Final = f"/v{VERSION}/stream"
"""Server-sent events, for clients that cannot open a WebSocket."""

SNAPSHOT_PATH: Final = f"/v{VERSION}/snapshot"
HISTORY_PATH: Final = f"/v{VERSION}/history"

HTTP_PATHS: Final = frozenset({STREAM_PATH, SNAPSHOT_PATH, HISTORY_PATH})
