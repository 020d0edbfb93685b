"""Types of the names that publish as a producer, as an application sees them."""

from typing import assert_type

from streamer import (
    Position,
    Publisher,
    PublishFailedError,
    PublishRefusedError,
    Receipt,
    open_publisher,
)


async def publish() -> None:
    """A publication is acknowledged by a receipt."""
    async with open_publisher("redis://127.0.0.1:6379", history_length=10) as publisher:
        assert_type(publisher, Publisher)
        receipt = await publisher.publish("stock:005930:price", b"{}")
        assert_type(receipt, Receipt)
        assert_type(receipt.position, Position | None)
        assert_type(await publisher.publish_many([("stock:005930:price", b"{}")]), list[Receipt])
        assert_type(publisher.statistics().held, int)


def unacknowledged(error: PublishFailedError) -> tuple[int, ...]:
    """A failure names what Redis did not acknowledge."""
    assert_type(error.receipts, tuple[Receipt | None, ...])
    return assert_type(error.unacknowledged, tuple[int, ...])


def is_refusal(error: PublishFailedError) -> bool:
    """A refusal is a failure."""
    return isinstance(error, PublishRefusedError)


async def mistakes(publisher: Publisher) -> None:
    """Each line is an error to a type checker."""
    await publisher.publish("stock:005930:price", 72500)  # type: ignore[arg-type]
    with open_publisher("redis://127.0.0.1"):  # type: ignore[attr-defined]
        pass
