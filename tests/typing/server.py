"""Types of the names that run a server, as an application sees them."""

from functools import partial
from pathlib import Path
from typing import assert_type

import trio

from streamer import MemoryBus, Server, ServerStatistics, SettingError, Settings, serve


async def run_beside_something_else() -> None:
    """`serve` is a task that hands out its `Server`, and can be shut down by an event."""
    settings = Settings(memory=True, port=0, tls_certificate=Path("chain.pem"))
    assert_type(settings.port, int)
    assert_type(settings.allowed_origins, tuple[str, ...])
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(partial(serve, settings, shutdown=trio.Event()))
        assert_type(server.websocket_url, str)
        assert_type(server.bus, MemoryBus | None)
        assert_type(server.statistics(), ServerStatistics)
        assert_type(server.statistics().active_connections, int)
        assert_type(server.readiness().ready, bool)
        if server.bus is not None:
            assert_type(server.bus.publish("stock:005930:price", b"{}"), int)
        server.shutdown()
    assert_type(await serve(settings), None)


def name_the_setting(error: SettingError) -> str:
    """A refused value names its setting."""
    return assert_type(error.setting, str)


def mistakes() -> None:
    """Each line is an error to a type checker."""
    Settings(port="8765")  # type: ignore[arg-type]
    Settings(8765)  # type: ignore[call-arg, arg-type]
    Settings(ports=8765)  # type: ignore[call-arg]
    Settings().port = 1  # type: ignore[misc]
