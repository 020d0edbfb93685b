# mypy: ignore-errors
"""uWebSockets (C++) through socketify: its own publish/subscribe, fed from Redis.

With TLS_CERTIFICATE and TLS_KEY (PEM files), clients connect with wss://.
"""

import json
import os
import sys

from redis_messages import messages
from socketify import App, AppOptions, CompressOptions, OpCode, WebSocket

REDIS_PORT, PORT = int(sys.argv[1]), int(sys.argv[2])
DEFLATE = bool(os.environ.get("DEFLATE"))
# A client that falls behind must be measured as late; the default disconnects it at 64 KiB.
MAX_BACKPRESSURE_BYTES = 64 * 1024 * 1024


def subscribe(client: WebSocket, request: str, _opcode: OpCode) -> None:
    """Take a subscription."""
    channels = json.loads(request)["subscribe"]
    for channel in channels:
        client.subscribe(channel)
    client.send(json.dumps({"subscribed": len(channels)}), OpCode.TEXT)


async def forward() -> None:
    """Hand each publication to uWebSockets."""
    async for channel, payload in messages(REDIS_PORT):
        app.publish(channel, payload, OpCode.TEXT, DEFLATE)


certificate = os.environ.get("TLS_CERTIFICATE")
app = App(
    AppOptions(cert_file_name=certificate, key_file_name=os.environ["TLS_KEY"])
    if certificate
    else None
)
app.ws(
    "/*",
    {
        "compression": CompressOptions.SHARED_COMPRESSOR if DEFLATE else CompressOptions.DISABLED,
        "max_backpressure": MAX_BACKPRESSURE_BYTES,
        "message": subscribe,
    },
)
app.listen(PORT)
# A strong reference: asyncio and socketify hold tasks weakly, so this one would be collected.
forwarding = app.loop.ensure_future(forward())
app.run()
