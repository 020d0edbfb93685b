"""Publish from FastAPI: uvicorn fastapi_producer:app.

REDIS_URL names the Redis; POST /prices/005930 with {"price": "72500.10", "volume": 3}.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel

from streamer import PublishFailedError
from streamer.publisher.asyncio import Publisher, open_publisher


class Trade(BaseModel):
    """A price as a client of this API sends it."""

    price: Decimal
    volume: int


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one publisher for all requests of this process."""
    async with open_publisher(os.environ["REDIS_URL"], hold_seconds=5) as app.state.publisher:
        yield


def publisher_of(request: Request) -> Publisher:
    """Return the publisher of the application."""
    publisher: Publisher = request.app.state.publisher
    return publisher


app = FastAPI(lifespan=lifespan)


@app.post("/prices/{code}")
async def publish_price(
    code: str, trade: Trade, publisher: Annotated[Publisher, Depends(publisher_of)]
) -> dict[str, int]:
    """Publish a price; answer with its sequence once Redis has it."""
    update = {
        "type": "price_update",
        "stock_code": code,
        "price": trade.price,
        "change": 0,
        "change_percent": 0,
        "volume": trade.volume,
    }
    try:
        receipt = await publisher.publish(f"stock:{code}:price", update)
    except PublishFailedError as error:
        raise HTTPException(503, "not published: try again later") from error
    assert receipt.position is not None
    return {"sequence": receipt.position.sequence}
