"""`streamer publish`: one message from flags, or a stream of them as JSON lines."""

import itertools
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Final

import attrs
import click
import orjson
import trio

from streamer.cli.errors import CommandError, ExitCode
from streamer.cli.options import SettingsCommand, with_settings
from streamer.cli.producer import PRODUCER_SETTINGS, open_producer, with_hold
from streamer.cli.publish_messages import (
    Message,
    MessageFlags,
    message_from_flags,
    message_from_line,
    read_lines,
)
from streamer.config import Settings
from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.messages import MarketPhase
from streamer.publisher import (
    Publisher,
    PublishFailedError,
    PublishRefusedError,
    Receipt,
)

_HELP: Final = """Publish market data to Redis, for every server that reads from it.

WHERE is a topic such as stock:005930 or market:KOSPI, one of its Redis channels such as
stock:005930:orderbook, or a user's channel such as alerts:u1. Flags give the message:

\b
  streamer publish stock:005930 --price 72500
  streamer publish stock:005930 --price 72500 --change -500 --change-percent -0.68 --volume 1200
  streamer publish market:KOSPI --status open
  streamer publish alerts:u1 --json '{"alert_id": 1, "stock_code": "005930", …}'

With - as WHERE, each line of stdin is a message as JSON. Its channel follows from its type and key:
price_update and orderbook_update go to stock:STOCK_CODE, market_status goes to market:MARKET.

\b
  streamer publish - < messages.jsonl
  my-feed | streamer publish - --channel sector:IT:price

A message gets the next position of its topic and is kept in the topic's history, from which clients
that reconnect get the messages that they missed. Numbers are published with the digits as typed. A
summary on stderr says how many messages were published, and whether a server received them.
"""

_JSON_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)


class _Number(click.ParamType[str]):
    """A number as JSON writes it, kept as text: a float would lose digits."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text itself."""
        if not _JSON_NUMBER.fullmatch(value):
            self.fail(f"{value!r} is not a number, such as 72500 or -0.68", param, ctx)
        return str(value)


@click.command("publish", cls=SettingsCommand, help=_HELP)
@click.argument("where", metavar="WHERE")
@click.option("--price", type=_Number(), metavar="N", help="A price_update with this price.")
@click.option("--change", type=_Number(), metavar="N", help="With --price.  [default: 0]")
@click.option("--change-percent", type=_Number(), metavar="N", help="With --price.  [default: 0]")
@click.option("--volume", type=_Number(), metavar="N", help="With --price.  [default: 0]")
@click.option(
    "--stock-code",
    metavar="CODE",
    help="With --price, its stock; needed for a sector and a watchlist.",
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
    help="With -, the Redis channel of all lines.",
)
@click.option(
    "--skip-invalid",
    is_flag=True,
    help="With -, report a line that is no valid message and go on, instead of ending there.",
)
@click.option(
    "--plain",
    is_flag=True,
    help="By Redis' own PUBLISH, without position and history: missed messages are lost, and one "
    "whose answer is lost is not sent again.",
)
@with_hold
@click.option(
    "--verbose", is_flag=True, help="Write a JSON line to stdout for each message published."
)
@with_settings(only=PRODUCER_SETTINGS)
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
    """Publish one message from flags, or the lines of stdin."""
    message = MessageFlags(**flags)
    publish: _Publish
    if where == "-":
        if message.given:
            raise click.UsageError(f"{message.given[0]} is for one message, - for lines of stdin")
        publish = partial(_publish_lines, channel=channel, skip_invalid=skip_invalid)
    else:
        if channel is not None or skip_invalid:
            raise click.UsageError("--channel and --skip-invalid are for lines of stdin, with -")
        publish = partial(_publish_one, message_from_flags(where, message))
    trio.run(_run, settings, hold_seconds, not plain, _Account(verbose=verbose), publish)


@attrs.define
class _Account:
    """Counts published messages, and reports them."""

    verbose: bool
    messages: int = 0
    received: int = 0
    skipped: int = 0

    async def publish(self, publisher: Publisher, messages: Sequence[Message]) -> None:
        """Publish and count messages. Raises CommandError if not all are acknowledged."""
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

    def _count(self, message: Message, receipt: Receipt) -> None:
        self.messages += 1
        self.received += receipt.receivers
        if self.verbose:
            position = attrs.asdict(receipt.position) if receipt.position else {}
            line = {"channel": message.channel, **position, "receivers": receipt.receivers}
            click.echo(orjson.dumps(line))

    def skip(self, reason: str) -> None:
        """Report a line that is skipped."""
        self.skipped += 1
        click.echo(f"skipped {reason}", err=True)

    def summary(self) -> str:
        """Return the counts as a line for people."""
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
    async with open_producer(
        settings,
        client_name="streamer-publish",
        hold_seconds=hold_seconds,
        positioned=positioned,
    ) as publisher:
        try:
            await publish(publisher, account)
        finally:
            click.echo(account.summary(), err=True)


async def _publish_one(message: Message, publisher: Publisher, account: _Account) -> None:
    try:
        publisher.check_size(message.text)
    except InvalidPublicationError as error:
        raise CommandError(f"{message.channel}: {error}") from None
    await account.publish(publisher, [message])


async def _publish_lines(
    publisher: Publisher, account: _Account, *, channel: str | None, skip_invalid: bool
) -> None:
    """Publish the lines of stdin; those that one read completes form one pipeline."""
    line_numbers = itertools.count(1)
    async with aclosing(read_lines()) as reads:
        async for lines in reads:
            messages: list[Message] = []
            invalid: CommandError | None = None
            for line, line_number in zip(lines, line_numbers, strict=False):
                if not line.strip():
                    continue
                try:
                    message = message_from_line(line, line_number, channel=channel)
                    publisher.check_size(message.text)
                    messages.append(message)
                except InvalidPublicationError as error:
                    if not skip_invalid:
                        invalid = CommandError(f"line {line_number}: {error}")
                        break
                    account.skip(f"line {line_number}: {error}")
            await account.publish(publisher, messages)
            if invalid is not None:
                raise invalid
