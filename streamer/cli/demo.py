"""`streamer demo`: a server and a simulated market in one process, without Redis."""

import shlex
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, aclosing
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import click
import trio
from click.core import ParameterSource

from streamer.cli.demo_users import ALERT_USERS, DemoUser, demo_users
from streamer.cli.errors import CommandError, ExitCode
from streamer.cli.logs import configure_logging
from streamer.cli.options import SETTINGS_HELP, SettingsCommand, with_settings
from streamer.cli.serve import allow_many_connections, handle_signals, run_server
from streamer.cli.signals import ignore_hangup
from streamer.config import Settings
from streamer.feeds.playback import play
from streamer.feeds.price_alerts import with_price_alerts
from streamer.feeds.simulated import LEVELS, SimulatedMarket
from streamer.protocol.topics import SubscriptionType, Topic
from streamer.source.memory import MemoryBus

if TYPE_CHECKING:
    from streamer.admin.market import MarketPage
    from streamer.server import Server

_HELP: Final = f"""Run a server and a simulated market in one process, without Redis.

A dozen Korean stocks trade at made-up prices in two markets, which open and close every two
minutes or so. The demo prints the address of a page to open in a browser, commands to watch it from
another terminal, and the topics that can be subscribed to. Two users have alerts, unless settings
say how clients are identified.

\b
  streamer demo
  streamer demo --open                              the page, in a browser
  streamer demo --rate 500                          a busy market
  streamer demo --port 9000 --http-port 9001        where the usual ports are taken

Ctrl-C or SIGTERM closes the connections of the clients; a second one ends it at once.

{SETTINGS_HELP}
"""

_SETTINGS_OF_REDIS: Final = (
    "redis",
    "memory",
    "require_redis",
    "workers",
    "probe_interval_seconds",
    "probe_timeout_seconds",
    "subscribe_timeout_seconds",
)


@click.command("demo", cls=SettingsCommand, help=_HELP)
@click.option(
    "--rate",
    "trades_per_second",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    metavar="N",
    help="Trades per second while the market is open, of all stocks together. Each is published "
    "as a price of its stock and sector, and followed by the stock's order book.",
)
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="The seed of the random numbers: the same seed gives the same prices.",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
@with_settings(without=_SETTINGS_OF_REDIS)
def command(settings: Settings, trades_per_second: float, seed: int, *, open_browser: bool) -> int:
    """Run the server and the market until a signal ends them."""
    configure_logging(settings.log_level, settings.log_format)
    allow_many_connections()
    ignore_hangup()
    market = SimulatedMarket(
        seed=seed, started_at=datetime.now(UTC), trades_per_second=trades_per_second
    )
    settings = attrs.evolve(settings, memory=True)
    with ExitStack() as stack:
        users: list[DemoUser] = []
        if not _is_identity_given():
            watchlist = Topic(SubscriptionType.WATCHLIST, market.watchlist.id)
            try:
                settings, users = stack.enter_context(
                    demo_users(settings, public_topics=[str(watchlist)])
                )
            except OSError as error:
                raise CommandError(f"cannot write the tokens of the users: {error}") from None
        return trio.run(_run, settings, market, users, open_browser)


def _is_identity_given() -> bool:
    """Whether a flag, a variable or the file sets anything about tokens."""
    context = click.get_current_context()
    return any(
        context.get_parameter_source(field.name) is not ParameterSource.DEFAULT
        for field in attrs.fields(Settings)
        if field.name == "auth" or field.name.startswith("auth_")
    )


async def _run(
    settings: Settings, market: SimulatedMarket, users: Sequence[DemoUser], open_browser: bool
) -> ExitCode:
    # Imported here: it takes longer than the other commands need to start.
    from streamer.server import serve  # noqa: PLC0415

    code = ExitCode.FAILURE
    failure: CommandError | None = None
    async with trio.open_nursery() as nursery:

        def announce(server: "Server") -> None:
            click.echo("\n".join(_introduction(server, market, users)))
            if open_browser:
                # In a thread: some browsers only return when they end.
                nursery.start_soon(
                    partial(trio.to_thread.run_sync, abandon_on_cancel=True),
                    webbrowser.open,
                    _page_url(server),
                )
            assert server.bus is not None  # since memory=True
            nursery.start_soon(_trade, market, server.bus)

        run = partial(serve, market=_page(market, users))
        try:
            code = await run_server(run, settings, handle_signals, announce)
        except CommandError as error:  # raised outside of the nursery, which would wrap it
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return code


async def _trade(market: SimulatedMarket, bus: MemoryBus) -> None:
    async with aclosing(play(with_price_alerts(market, ALERT_USERS))) as batches:
        async for batch in batches:
            for message in batch:
                bus.publish(message.channel, message.payload)


def _page(market: SimulatedMarket, users: Sequence[DemoUser]) -> "MarketPage":
    from streamer.admin.market import ListedStock, MarketPage  # noqa: PLC0415 - as above

    return MarketPage(
        stocks=[
            ListedStock(stock.code, stock.name, stock.market, stock.sector)
            for stock in market.stocks
        ],
        markets=list(dict.fromkeys(stock.market for stock in market.stocks)),
        levels=LEVELS,
        token=users[0].token if users else None,
    )


def _page_url(server: "Server") -> str:
    from streamer.admin.market import MARKET_PATH  # noqa: PLC0415 - as above

    return f"{server.http_url}{MARKET_PATH}"


def _introduction(
    server: "Server", market: SimulatedMarket, users: Sequence[DemoUser]
) -> Iterator[str]:
    """Yield the lines to print."""
    topics = f"stock:{market.stocks[0].code} market:{market.stocks[0].market}"
    yield f"Open       {_page_url(server)}"
    yield f"WebSocket  {server.websocket_url}"
    yield f"HTTP       {server.http_url}"
    yield ""
    yield "Watch it from another terminal:"
    yield f"  streamer listen --url {server.websocket_url} {topics}"
    yield f"  curl {server.http_url}/v1/ws/stats"
    yield f"  curl {server.http_url}/v1/ws/connections"
    yield ""
    if users:
        names = " and ".join(user.id for user in users)
        yield f"Alerts of {names}; the page shows those of {users[0].id}:"
        for user in users:
            file = shlex.quote(str(user.token_file))
            yield f"  streamer listen --url {server.websocket_url} --token-file {file}"
        yield ""
    yield "Topics to subscribe to:"
    for topic, what in _topics(market):
        yield f"  {topic!s:<26}  {what}"
    yield ""
    yield "Ctrl-C ends the demo."


def _topics(market: SimulatedMarket) -> Iterator[tuple[Topic, str]]:
    for stock in market.stocks:
        yield Topic(SubscriptionType.STOCK, stock.code), f"{stock.name}, {stock.market}"
    for name in dict.fromkeys(stock.market for stock in market.stocks):
        yield Topic(SubscriptionType.MARKET, name), "opens and closes"
    for sector in dict.fromkeys(stock.sector for stock in market.stocks):
        members = [stock.name for stock in market.stocks if stock.sector == sector]
        yield Topic(SubscriptionType.SECTOR, sector), ", ".join(members)
    watched = [stock.name for stock in market.stocks if stock.code in market.watchlist.codes]
    yield Topic(SubscriptionType.WATCHLIST, market.watchlist.id), ", ".join(watched)
