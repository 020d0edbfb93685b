"""`streamer publish`: one message from flags, or a stream of them as JSON lines."""

import itertools
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import attrs
import click
import orjson
import trio

from streamer.cli.errors import CommandError, ExitCode
from streamer.cli.options import SettingsCommand, with_settings
from streamer.cli.redis import check_redis
from streamer.config import Settings
from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.messages import (
    DATA_MESSAGES,
    MarketPhase,
    MarketStatus,
    OrderbookUpdate,
    PriceUpdate,
)
from streamer.protocol.topics import Kind, SubscriptionType, Topic, parse_channel
from streamer.publisher.destination import Destination
from streamer.publisher.publisher import (
    Publisher,
    PublishFailedError,
    PublishRefusedError,
    Receipt,
    open_publisher,
)

_READ_BYTES: Final = 65536

_HELP: Final = """Publish market data to Redis, for every server that reads from it.

WHERE is a topic such as stock:005930 or market:KOSPI, one of its Redis channels such as
stock:005930:orderbook, or a user's channel such as alerts:u1. What is published comes from flags:

\b
  streamer publish stock:005930 --price 72500
  streamer publish stock:005930 --price 72500 --change -500 --change-percent -0.68 --volume 1200
  streamer publish market:KOSPI --status open
  streamer publish alerts:u1 --json '{"alert_id": 1, "stock_code": "005930", …}'

With - as WHERE, each line of stdin is a message as JSON, and its type and key tell the channel:
price_update and orderbook_update go to stock:STOCK_CODE, market_status goes to market:MARKET.

\b
  streamer publish - < messages.jsonl
  my-feed | streamer publish - --channel sector:IT:price

A message gets the next position of its topic and is kept in the topic's history, so that clients
that reconnect are brought what they missed. Numbers are published with the digits that were typed.
A summary on stderr tells what was published and whether a server received it.
"""

_JSON_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)

_KIND_OF_TYPE: Final[Mapping[str, Kind]] = {
    model.type: kind for kind, model in DATA_MESSAGES.items()
}

_TOPIC_OF_TYPE: Final[Mapping[str, tuple[SubscriptionType, str]]] = {
    PriceUpdate.type: (SubscriptionType.STOCK, "stock_code"),
    OrderbookUpdate.type: (SubscriptionType.STOCK, "stock_code"),
    MarketStatus.type: (SubscriptionType.MARKET, "market"),
}
"""The topic that a message of a type belongs to by itself, and the field that names its target."""


class _Number(click.ParamType[str]):
    """A number as JSON writes it, kept as text: a float would not give back the digits."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text itself."""
        if not _JSON_NUMBER.fullmatch(value):
            self.fail(f"{value!r} is not a number, such as 72500 or -0.68", param, ctx)
        return str(value)


@attrs.frozen(kw_only=True)
class _Flags:
    """The data of one message, as given on the command line."""

    price: str | None
    change: str | None
    change_percent: str | None
    volume: str | None
    stock_code: str | None
    status: str | None
    json: str | None

    @property
    def given(self) -> list[str]:
        """The flags that were given."""
        return [
            f"--{field.name.replace('_', '-')}"
            for field in attrs.fields(_Flags)
            if getattr(self, field.name) is not None
        ]


@click.command("publish", cls=SettingsCommand, help=_HELP)
@click.argument("where", metavar="WHERE")
@click.option("--price", type=_Number(), metavar="N", help="A price_update with this price.")
@click.option("--change", type=_Number(), metavar="N", help="With --price.  [default: 0]")
@click.option("--change-percent", type=_Number(), metavar="N", help="With --price.  [default: 0]")
@click.option("--volume", type=_Number(), metavar="N", help="With --price.  [default: 0]")
@click.option(
    "--stock-code",
    metavar="CODE",
    help="With --price, the stock that it is of; needed for a sector and a watchlist.",
)
@click.option(
    "--status",
    type=click.Choice([phase.value for phase in MarketPhase]),
    help="A market_status with this status.",
)
@click.option("--json", metavar="TEXT", help="Any message, as JSON.")
@click.option(
    "--channel",
    metavar="CHANNEL",
    help="With -, the Redis channel of all lines, whatever they are about.",
)
@click.option(
    "--skip-invalid",
    is_flag=True,
    help="With -, tell of a line that is no valid message and go on; without it, end there.",
)
@click.option(
    "--plain",
    is_flag=True,
    help="Without position and history: what is missed stays missed, as with Redis' own PUBLISH.",
)
@click.option(
    "--hold-seconds",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to try again when Redis goes away.",
)
@click.option(
    "--verbose", is_flag=True, help="Write a JSON line to stdout for each message published."
)
@with_settings(only=("redis", "history_length", "history_seconds"))
def command(
    settings: Settings,
    where: str,
    *,
    channel: str | None,
    skip_invalid: bool,
    plain: bool,
    hold_seconds: float,
    verbose: bool,
    **flags: str | None,
) -> None:
    """Publish what the flags say, or what comes on stdin."""
    message = _Flags(**flags)
    publish: _Publish
    if where == "-":
        if message.given:
            raise click.UsageError(f"{message.given[0]} is for one message, - for lines of stdin")
        publish = partial(_publish_lines, channel=channel, skip_invalid=skip_invalid)
    else:
        if channel is not None or skip_invalid:
            raise click.UsageError("--channel and --skip-invalid are for lines of stdin, with -")
        publish = partial(_publish_one, _from_flags(where, message))
    trio.run(_run, settings, hold_seconds, not plain, _Account(verbose=verbose), publish)


@attrs.frozen
class _Message:
    """One to publish, valid on its channel."""

    channel: str
    text: bytes
    line_number: int | None = None
    """In what was read from stdin."""


# One message from flags


def _from_flags(where: str, flags: _Flags) -> _Message:
    data = [flag for flag in ("--price", "--status", "--json") if flag in flags.given]
    if len(data) != 1:
        raise click.UsageError("one of --price, --status and --json says what to publish")
    details = [flag for flag in flags.given if flag not in data]
    if details and flags.price is None:
        raise click.UsageError(f"{details[0]} belongs with --price, not with {data[0]}")
    try:
        destination = Destination.parse(_channel(where, flags))
        return _Message(destination.channel, destination.check(_text(destination, flags)))
    except (ValueError, InvalidPublicationError) as error:
        raise click.UsageError(f"{where}: {error}") from None


def _channel(where: str, flags: _Flags) -> str:
    """The channel that is meant: of a topic, the one for what is published.

    What can be read as a channel is one: `stock:A:price` is of stock A, not of a stock `A:price`.
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
        if type(named) is not str or named not in _KIND_OF_TYPE:
            raise ValueError(f"the JSON's type must be one of {', '.join(_KIND_OF_TYPE)}")
        kind = _KIND_OF_TYPE[named]
    if kind not in topic.kinds:
        raise ValueError(f"it carries {' and '.join(topic.kinds)}, not {kind}")
    return topic.channel(kind)


def _text(destination: Destination, flags: _Flags) -> bytes:
    if flags.json is not None:
        return flags.json.encode()
    topic = destination.topic
    if flags.price is None:
        status = {"type": MarketStatus.type, "market": topic.target, "status": flags.status}
        return orjson.dumps(status)
    stock_code = flags.stock_code
    if stock_code is None:
        if topic.subscription_type in (SubscriptionType.SECTOR, SubscriptionType.WATCHLIST):
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


# Many from stdin


def _from_line(line: bytes, channel: str | None) -> tuple[str, bytes]:
    """The channel and the text of a line. Raises InvalidPublicationError."""
    if channel is None:
        decoded = _decode(line)
        named = decoded.get("type")
        if type(named) is not str or named not in _TOPIC_OF_TYPE:
            types = ", ".join(_TOPIC_OF_TYPE)
            raise InvalidPublicationError(f"without --channel its type must be one of {types}")
        subscription_type, field = _TOPIC_OF_TYPE[named]
        channel = f"{subscription_type}:{decoded.get(field)}:{_KIND_OF_TYPE[named]}"
    return channel, Destination.parse(channel).check(line)


def _decode(text: bytes) -> dict[str, Any]:
    try:
        decoded = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidPublicationError(f"not JSON: {error}") from None
    if type(decoded) is not dict:
        raise InvalidPublicationError(f"not a JSON object but {type(decoded).__name__}")
    return decoded


async def _read_stdin() -> bytes:
    """The next bytes of stdin, none at its end.

    In a thread, a read could not be interrupted; non-blocking, stdin would take the terminal's
    stdout along.
    """
    descriptor = sys.stdin.fileno()
    with suppress(PermissionError):  # a file, which epoll does not know: it is always readable
        await trio.lowlevel.wait_readable(descriptor)
    return os.read(descriptor, _READ_BYTES)


# Publishing


@attrs.define
class _Account:
    """What has been published, and tells of it."""

    verbose: bool
    messages: int = 0
    received: int = 0
    skipped: int = 0

    async def publish(self, publisher: Publisher, messages: Sequence[_Message]) -> None:
        """Publish and count them; raises CommandError when not all are acknowledged."""
        receipts: Sequence[Receipt | None]
        failure: CommandError | None = None
        try:
            receipts = await publisher.publish_many([(m.channel, m.text) for m in messages])
        except PublishFailedError as failed:
            receipts = failed.receipts
            line_number = messages[failed.unacknowledged[0]].line_number
            place = f"from line {line_number}: " if line_number else ""
            refused = isinstance(failed, PublishRefusedError)
            code = ExitCode.FAILURE if refused else ExitCode.REDIS_REQUIRED
            failure = CommandError(f"{place}{failed}", code)
        for message, receipt in zip(messages, receipts, strict=True):
            if receipt is not None:
                self._count(message, receipt)
        if failure is not None:
            raise failure

    def _count(self, message: _Message, receipt: Receipt) -> None:
        self.messages += 1
        self.received += receipt.receivers
        if self.verbose:
            position = attrs.asdict(receipt.position) if receipt.position else {}
            told = {"channel": message.channel, **position, "receivers": receipt.receivers}
            click.echo(orjson.dumps(told))

    def skip(self, reason: str) -> None:
        """Tell of a line that is left out."""
        self.skipped += 1
        click.echo(f"skipped {reason}", err=True)

    def summary(self) -> str:
        """One line for people."""
        messages = "1 message" if self.messages == 1 else f"{self.messages} messages"
        received = f"received {self.received} times" if self.received else "no server received any"
        skipped = f"; {self.skipped} invalid lines skipped" if self.skipped else ""
        return f"published {messages}, {received}{skipped}"


_Publish = Callable[[Publisher, _Account], Awaitable[None]]


async def _run(
    settings: Settings,
    hold_seconds: float,
    positioned: bool,
    account: _Account,
    publish: _Publish,
) -> None:
    await check_redis(settings.redis, client_name="streamer-publish")
    async with open_publisher(
        settings.redis,
        positioned=positioned,
        history_length=settings.history_length,
        history_seconds=settings.history_seconds,
        hold_seconds=hold_seconds,
    ) as publisher:
        try:
            await publish(publisher, account)
        finally:
            click.echo(account.summary(), err=True)


async def _publish_one(message: _Message, publisher: Publisher, account: _Account) -> None:
    await account.publish(publisher, [message])


async def _publish_lines(
    publisher: Publisher, account: _Account, *, channel: str | None, skip_invalid: bool
) -> None:
    """Publish lines as they come, in one go what one read brings."""
    line_numbers = itertools.count(1)
    rest = b""
    at_end = False
    while not at_end:
        data = await _read_stdin()
        at_end = not data
        *lines, rest = (rest + (data or b"\n")).split(b"\n")  # the last line may have no end
        messages: list[_Message] = []
        invalid: CommandError | None = None
        for line, line_number in zip(lines, line_numbers, strict=False):
            if not line.strip():
                continue
            try:
                messages.append(_Message(*_from_line(line, channel), line_number))
            except InvalidPublicationError as error:
                if not skip_invalid:
                    invalid = CommandError(f"line {line_number}: {error}")
                    break
                account.skip(f"line {line_number}: {error}")
        await account.publish(publisher, messages)
        if invalid is not None:
            raise invalid
