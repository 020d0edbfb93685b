"""The messages that `streamer publish` publishes: one from flags, or many from lines of JSON."""

import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Any, Final

import attrs
import click
import orjson
import trio

from streamer.cli.errors import CommandError
from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.messages import (
    MarketStatus,
    OrderbookDelta,
    OrderbookUpdate,
    PriceUpdate,
)
from streamer.protocol.publications import KIND_OF_TYPE
from streamer.protocol.topics import Kind, SubscriptionType, Topic, parse_channel
from streamer.publisher import Destination

_READ_BYTES: Final = 65536
_MAX_LINE_BYTES: Final = 16 * 2**20
"""Far more than a server accepts; it bounds the memory for a file without line ends."""
_UTF8_BOM: Final = b"\xef\xbb\xbf"

_TOPIC_OF_TYPE: Final[Mapping[str, tuple[SubscriptionType, str]]] = {
    PriceUpdate.type: (SubscriptionType.STOCK, "stock_code"),
    OrderbookUpdate.type: (SubscriptionType.STOCK, "stock_code"),
    OrderbookDelta.type: (SubscriptionType.STOCK, "stock_code"),
    MarketStatus.type: (SubscriptionType.MARKET, "market"),
}
"""Type of a message -> the type of its topic, and the field that has the target."""


@attrs.frozen(kw_only=True)
class MessageFlags:
    """The data of one message, as given by flags; None: the flag was not given."""

    price: str | None
    change: str | None
    change_percent: str | None
    volume: str | None
    stock_code: str | None
    status: str | None
    json: str | None

    @property
    def given(self) -> list[str]:
        """The names of the flags that were given."""
        return [
            f"--{field.name.replace('_', '-')}"
            for field in attrs.fields(MessageFlags)
            if getattr(self, field.name) is not None
        ]


@attrs.frozen
class Message:
    """A message that is valid on its channel."""

    channel: str
    text: bytes
    line_number: int | None = None
    """The number of its line on stdin."""


# One message from flags


def message_from_flags(where: str, flags: MessageFlags) -> Message:
    """Make the message for a topic or channel from flags. Raises click.UsageError."""
    data = [flag for flag in ("--price", "--status", "--json") if flag in flags.given]
    if len(data) != 1:
        raise click.UsageError("one of --price, --status and --json says what to publish")
    details = [flag for flag in flags.given if flag not in data]
    if details and flags.price is None:
        raise click.UsageError(f"{details[0]} belongs with --price, not with {data[0]}")
    try:
        destination = Destination.parse(_channel(where, flags))
        return Message(destination.channel, destination.check(_text(destination, flags)))
    except (ValueError, InvalidPublicationError) as error:
        raise click.UsageError(f"{where}: {error}") from None


def _channel(where: str, flags: MessageFlags) -> str:
    """Return the channel itself, or the channel of a topic that carries such a message.

    A text that can be read as a channel is one: `stock:A:price` is a channel of stock A, not the
    topic of a stock `A:price`.
    """
    with suppress(ValueError):
        parse_channel(where)
        return where
    if where.partition(":")[0] not in tuple(SubscriptionType):
        return where
    topic = Topic.parse(where)
    if flags.json is None:
        kind = Kind.STATUS if flags.price is None else Kind.PRICE
    else:
        named = _decode(flags.json.encode()).get("type")
        if type(named) is not str or named not in KIND_OF_TYPE:
            raise ValueError(f"the JSON's type must be one of {', '.join(KIND_OF_TYPE)}")
        kind = KIND_OF_TYPE[named]
    if kind not in topic.kinds:
        raise ValueError(f"it carries {' and '.join(topic.kinds)}, not {kind}")
    return topic.channel(kind)


def _text(destination: Destination, flags: MessageFlags) -> bytes:
    if flags.json is not None:
        return flags.json.encode()
    topic = destination.topic
    if flags.price is None:
        status = {"type": MarketStatus.type, "market": topic.target, "status": flags.status}
        return orjson.dumps(status)
    stock_code = flags.stock_code
    if stock_code is None:
        if topic.subscription_type in {SubscriptionType.SECTOR, SubscriptionType.WATCHLIST}:
            raise ValueError("--stock-code must say which stock the price is of")
        stock_code = topic.target
    numbers = {
        "price": flags.price,
        "change": flags.change or "0",
        "change_percent": flags.change_percent or "0",
        "volume": flags.volume or "0",
    }
    return orjson.dumps(
        {"type": PriceUpdate.type, "stock_code": stock_code}
        | {name: orjson.Fragment(number) for name, number in numbers.items()}
    )


# Messages from lines


def message_from_line(line: bytes, line_number: int, *, channel: str | None) -> Message:
    """Make the message of a line, for `channel` or the one given by its type and key.

    Raises InvalidPublicationError.
    """
    if channel is None:
        decoded = _decode(line)
        named = decoded.get("type")
        if type(named) is not str or named not in _TOPIC_OF_TYPE:
            types = ", ".join(_TOPIC_OF_TYPE)
            raise InvalidPublicationError(f"without --channel its type must be one of {types}")
        subscription_type, field = _TOPIC_OF_TYPE[named]
        channel = f"{subscription_type}:{decoded.get(field)}:{KIND_OF_TYPE[named]}"
    return Message(channel, Destination.parse(channel).check(line), line_number)


def _decode(text: bytes) -> dict[str, Any]:
    try:
        decoded = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidPublicationError(f"not JSON: {error}") from None
    if type(decoded) is not dict:
        raise InvalidPublicationError(f"not a JSON object but {type(decoded).__name__}")
    return decoded


async def read_lines() -> AsyncGenerator[list[bytes], None]:
    """Yield the lines of stdin, without line ends, as many at a time as one read completes.

    A byte order mark before a line is left out: files that were concatenated have one in between.
    Raises CommandError for a line that is too long.
    """
    rest = b""
    at_end = False
    while not at_end:
        data = await _read_stdin()
        at_end = not data
        *lines, rest = (rest + (data or b"\n")).split(b"\n")  # the last line may have no end
        if len(rest) > _MAX_LINE_BYTES:
            raise CommandError(f"a line of more than {_MAX_LINE_BYTES} bytes")
        yield [line.removeprefix(_UTF8_BOM) for line in lines]


async def _read_stdin() -> bytes:
    """Return the next bytes of stdin, or none at its end.

    A read in a thread could not be cancelled, and a non-blocking stdin would make the terminal's
    stdout non-blocking too.
    """
    descriptor = sys.stdin.fileno()
    with suppress(PermissionError):  # epoll refuses a file, which is always readable
        await trio.lowlevel.wait_readable(descriptor)
    return os.read(descriptor, _READ_BYTES)
