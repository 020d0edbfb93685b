"""Market data from Redis, fanned out to WebSocket clients.

    from streamer import open_client, open_publisher, serve, Settings

The names in `__all__` are the public surface, described in docs/reference/python.md. Each is
imported from its module on first use, so a producer does not import the server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamer.client import (
        Account,
        Alert,
        Backoff,
        Client,
        ClientError,
        ClientStatistics,
        ClosedError,
        ConnectError,
        Data,
        DecodeError,
        Error,
        Event,
        Fault,
        Gap,
        MarketStatus,
        Notification,
        OrderbookUpdate,
        PriceLevel,
        PriceUpdate,
        RequestError,
        SubscriptionRejectedError,
        Violation,
        open_client,
    )
    from streamer.config import Settings
    from streamer.protocol.errors import ErrorCode, InvalidPublicationError
    from streamer.protocol.messages import GapReason, MarketPhase, Mode, Position, Priority
    from streamer.protocol.topics import Kind, SubscriptionType, Topic
    from streamer.publisher import (
        Publisher,
        PublisherStatistics,
        PublishFailedError,
        PublishRefusedError,
        Receipt,
        open_publisher,
    )
    from streamer.server import RedisRequired, Server, serve
    from streamer.setting_rules import SettingError
    from streamer.source.memory import MemoryBus
    from streamer.statistics import ServerStatistics

__version__ = "0.1.0"

__all__ = [
    "Account",
    "Alert",
    "Backoff",
    "Client",
    "ClientError",
    "ClientStatistics",
    "ClosedError",
    "ConnectError",
    "Data",
    "DecodeError",
    "Error",
    "ErrorCode",
    "Event",
    "Fault",
    "Gap",
    "GapReason",
    "InvalidPublicationError",
    "Kind",
    "MarketPhase",
    "MarketStatus",
    "MemoryBus",
    "Mode",
    "Notification",
    "OrderbookUpdate",
    "Position",
    "PriceLevel",
    "PriceUpdate",
    "Priority",
    "PublishFailedError",
    "PublishRefusedError",
    "Publisher",
    "PublisherStatistics",
    "Receipt",
    "RedisRequired",
    "RequestError",
    "Server",
    "ServerStatistics",
    "SettingError",
    "Settings",
    "SubscriptionRejectedError",
    "SubscriptionType",
    "Topic",
    "Violation",
    "__version__",
    "open_client",
    "open_publisher",
    "serve",
]

_NAMES_BY_MODULE = {
    "streamer.client": (
        "Account",
        "Alert",
        "Backoff",
        "Client",
        "ClientError",
        "ClientStatistics",
        "ClosedError",
        "ConnectError",
        "Data",
        "DecodeError",
        "Error",
        "Event",
        "Fault",
        "Gap",
        "MarketStatus",
        "Notification",
        "OrderbookUpdate",
        "PriceLevel",
        "PriceUpdate",
        "RequestError",
        "SubscriptionRejectedError",
        "Violation",
        "open_client",
    ),
    "streamer.config": ("Settings",),
    "streamer.protocol.errors": ("ErrorCode", "InvalidPublicationError"),
    "streamer.protocol.messages": ("GapReason", "MarketPhase", "Mode", "Position", "Priority"),
    "streamer.protocol.topics": ("Kind", "SubscriptionType", "Topic"),
    "streamer.publisher": (
        "Publisher",
        "PublisherStatistics",
        "PublishFailedError",
        "PublishRefusedError",
        "Receipt",
        "open_publisher",
    ),
    "streamer.server": ("RedisRequired", "Server", "serve"),
    "streamer.setting_rules": ("SettingError",),
    "streamer.source.memory": ("MemoryBus",),
    "streamer.statistics": ("ServerStatistics",),
}
_MODULES = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a name of the public surface (PEP 562)."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
