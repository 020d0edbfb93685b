"""For producers: publish with positions, once and in order, also when Redis fails over.

async with open_publisher("redis://127.0.0.1") as publisher:
await publisher.publish("stock:005930:price", PriceUpdate("005930", 72500, 0, 0, 0))
"""

from streamer.protocol.errors import InvalidPublicationError
from streamer.publisher.core import PublisherStatistics
from streamer.publisher.destination import Destination, Payload
from streamer.publisher.publisher import Publisher, open_publisher
from streamer.publisher.receipts import PublishFailedError, PublishRefusedError, Receipt

__all__ = [
    "Destination",
    "InvalidPublicationError",
    "Payload",
    "PublishFailedError",
    "PublishRefusedError",
    "Publisher",
    "PublisherStatistics",
    "Receipt",
    "open_publisher",
]
