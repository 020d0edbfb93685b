"""Turn the messages of a feed into publications, by a mapping."""

from __future__ import annotations

import decimal
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any, Final

import attrs

from streamer.feeds.book_chains import BookChain, Ids
from streamer.feeds.kept_books import KeptBook, Members
from streamer.feeds.mapping import Condition, FeedMapping, Levels, MessageMapping
from streamer.feeds.mapping_values import (
    Number,
    Path,
    Scope,
    UnfitMessageError,
    Value,
    decimal_of,
    json_text,
    number_of,
    read_json,
    time_text,
)
from streamer.feeds.recording_lines import Origin
from streamer.protocol.messages import MarketStatus, OrderbookDelta, OrderbookUpdate, PriceUpdate
from streamer.protocol.topics import Topic

Publication = tuple[str, bytes]
"""A channel and the JSON for it."""

_CHANGE_START: Final = b'{"type":"%s",' % OrderbookDelta.type.encode()
_PERCENT_STEP: Final = Decimal("0.0001")
_USUAL_DIGITS: Final = 28
_BOOKS: Final = frozenset({OrderbookUpdate.type, OrderbookDelta.type})
_NS_PER_US: Final = 1000


def is_change(publication: Publication) -> bool:
    """Whether a publication of a mapper changes an order book, so that it needs the one before."""
    return publication[1].startswith(_CHANGE_START)


@attrs.define
class MapperCounts:
    """Counts of a feed's messages so far."""

    messages: int = 0
    ignored: int = 0
    """Messages that no part of the mapping is for."""
    invalid: int = 0
    """Messages, or items of their lists, that cannot be what the mapping says that they are."""
    withheld: int = 0
    """Changes of order books that do not follow a whole book that was published."""


@attrs.define
class _Prices:
    """The bases of changes and volumes of a topic, where the feed does not name them."""

    first: Decimal
    volume: Decimal = Decimal(0)


class Mapper:
    """Maps messages. Bad ones are counted and reported, and cost nothing else."""

    def __init__(
        self,
        mapping: FeedMapping,
        *,
        on_problem: Callable[[str, str], object],
        on_hole: Callable[[str, Origin], object] = lambda _channel, _origin: None,
    ) -> None:
        """`on_problem` is called for each bad message, with the mapping's key and the reason.

        `on_hole` is called when changes of an order book are missing, with its channel and the
        origin of the message: only a new snapshot helps.
        """
        self._messages = mapping.messages
        changes = [own for own in mapping.messages if own.type == OrderbookDelta.type]
        self._has_changes = bool(changes)
        self._has_bare_changes = any(own.ids is None for own in changes)
        self._on_problem = on_problem
        self._on_hole = on_hole
        self._chains: dict[str, BookChain] = {}
        self._books: dict[str, KeptBook] = {}
        """The books of the channels on which changes are published."""
        self._prices: dict[str, _Prices] = {}
        self.counts = MapperCounts()
        # Sums and differences are exact. Never divide in it: the digits would fill the memory.
        self._exact = decimal.Context(prec=decimal.MAX_PREC)

    def map(self, text: str | bytes, received_ns: int, origin: Origin) -> list[Publication]:
        """Return the publications that follow from a message."""
        self.counts.messages += 1
        try:
            root = read_json(text)
        except ValueError as error:
            self._reject("message", f"not JSON: {error}")
            return []
        publications: list[Publication] = []
        is_known = False
        for mapping in self._messages:
            captured = _match(mapping.conditions, root)
            if captured is None:
                continue
            is_known = True
            try:
                items = _items(mapping.each, root)
            except ValueError as error:
                self._reject(mapping.key, str(error))
                continue
            for item in items:
                scope = Scope(root, item, captured)
                try:
                    publications += self._publications(mapping, scope, received_ns, origin)
                except (ArithmeticError, ValueError) as error:
                    self._reject(mapping.key, str(error) or type(error).__name__)
                    if mapping.type in _BOOKS and mapping.ids is None and self._has_bare_changes:
                        # Without ids, nothing else would show that it is missing.
                        self.lose_books()
                        self._on_hole(mapping.key, origin)
        self.counts.ignored += not is_known
        return publications

    def lose_books(self, channel: str | None = None) -> None:
        """Withhold changes, of one channel or of all, until the next whole books.

        The caller has lost publications.
        """
        for own_channel, chain in self._chains.items():
            if channel in {None, own_channel}:
                chain.lose()

    def renew_book(self, channel: str) -> None:
        """Publish the whole book of a channel at its next change: somebody waits for it."""
        if (book := self._books.get(channel)) is not None:
            book.is_wanted = True

    def kept_book(self, channel: str) -> KeptBook | None:
        """Return the book of a channel on which changes are published, once there is one."""
        return self._books.get(channel)

    def _reject(self, key: str, reason: str) -> None:
        self.counts.invalid += 1
        self._on_problem(key, reason)

    def _publications(
        self, mapping: MessageMapping, scope: Scope, received_ns: int, origin: Origin
    ) -> Iterator[Publication]:
        topics = [Topic.parse(template.fill(scope)) for template in mapping.topics]
        timestamp = (
            time_text(received_ns // _NS_PER_US)
            if mapping.timestamp is None
            else mapping.timestamp.timestamp(scope)
        )
        ids = _ids(mapping, scope)
        for topic in topics:
            channel = topic.channel(mapping.kind)
            members = {"type": mapping.type} | self._members(mapping, scope, topic, channel)
            members["timestamp"] = timestamp
            for name, value in mapping.extra.items():
                if (found := _plain(value, scope)) is not None:
                    members[name] = found
            payload = json_text(members)
            if mapping.type in _BOOKS:
                for text in self._chained(mapping.type, channel, ids, payload, origin):
                    own = members if text is payload else read_json(text)
                    kept = self._kept(channel, own, text, received_ns)
                    if kept is None:
                        self.counts.withheld += 1
                    else:
                        yield channel, kept
            else:
                yield channel, payload

    def _members(
        self, mapping: MessageMapping, scope: Scope, topic: Topic, channel: str
    ) -> dict[str, Any]:
        fields = mapping.fields
        if mapping.type == MarketStatus.type:
            market = fields["market"].string(scope) if "market" in fields else topic.target
            return {"market": market, "status": fields["status"].string(scope)}
        code = fields["stock_code"].string(scope) if "stock_code" in fields else topic.target
        if mapping.type == PriceUpdate.type:
            return {"stock_code": code} | self._price(mapping, scope, f"{channel} {code}")
        assert mapping.bids is not None  # a mapping without them is refused
        assert mapping.asks is not None
        is_whole = mapping.type == OrderbookUpdate.type
        return {
            "stock_code": code,
            "bids": _levels(mapping.bids, scope, is_whole=is_whole, descending=True),
            "asks": _levels(mapping.asks, scope, is_whole=is_whole, descending=False),
        }

    def _price(self, mapping: MessageMapping, scope: Scope, key: str) -> dict[str, Any]:
        """Return the members of a price; what the feed does not say is counted."""
        fields = mapping.fields
        texts = {
            name: value.number(scope)
            for name, value in fields.items()
            if name not in {"stock_code", "reference"}
        }
        price = decimal_of(texts["price"], "price")
        prices = self._prices.get(key)
        if prices is None:
            prices = self._prices[key] = _Prices(price)
        reference = prices.first
        if "reference" in fields:
            reference = decimal_of(fields["reference"].number(scope), "reference")
        change = self._exact.subtract(price, reference)
        if "change" not in texts:
            texts["change"] = format(change, "f")
        if "change_percent" not in texts:
            percent = self._percent(change, reference)
            texts["change_percent"] = format(percent, "f")
        if "quantity" in texts:
            quantity = decimal_of(texts["quantity"], "quantity")
            prices.volume = self._exact.add(prices.volume, quantity)
        if "volume" not in texts:
            texts["volume"] = format(prices.volume, "f")
        order = ("price", "change", "change_percent", "volume", "quantity")
        return {name: Number(texts[name]) for name in order if name in texts}

    def _kept(
        self, channel: str, members: Members, payload: bytes, received_ns: int
    ) -> bytes | None:
        """Return what to publish of a book or a change: now and then, a book in place of it.

        None: nothing, after a book that was refused.
        """
        if members["type"] == OrderbookUpdate.type:
            if self._has_changes:
                self._books[channel] = KeptBook.of(members, payload, received_ns)
            return payload
        return self._books[channel].change(members, payload, received_ns)

    def _percent(self, change: Decimal, reference: Decimal) -> Decimal:
        """Return a change in percent, with its sign also where prices are below 0."""
        if not reference:
            return Decimal(0)
        hundredfold = self._exact.multiply(change, 100)
        # Some digits more than the quotient has before the point; by default it might not fit.
        digits = hundredfold.adjusted() - reference.adjusted() + 10
        context = decimal.Context(prec=max(_USUAL_DIGITS, digits))
        percent = context.divide(hundredfold, abs(reference))
        # Adding 0 makes 0.0000 of -0.0000.
        return context.add(context.quantize(percent, _PERCENT_STEP), 0)

    def _chained(
        self, message_type: str, channel: str, ids: Ids, payload: bytes, origin: Origin
    ) -> Sequence[bytes]:
        chain = self._chains.get(channel)
        if chain is None:
            chain = self._chains[channel] = BookChain()
        withheld, holes = chain.withheld, chain.holes
        if message_type == OrderbookUpdate.type:
            published = chain.whole(ids, payload, origin)
        else:
            published = chain.change(ids, payload, origin)
        self.counts.withheld += chain.withheld - withheld
        if chain.holes > holes:
            self._on_hole(channel, origin)
        return published


def _match(conditions: Sequence[Condition], root: Any) -> dict[str, str] | None:
    """Return what the patterns of conditions capture; None if a condition is not met."""
    captured: dict[str, str] = {}
    for condition in conditions:
        value = condition.path.of(root)
        if condition.exists is not None:
            if (value is not None) != condition.exists:
                return None
            continue
        if type(value) is bool:
            value = "true" if value else "false"
        if not isinstance(value, str):
            return None
        if condition.pattern is not None:
            match = condition.pattern.fullmatch(value)
            if match is None:
                return None
            captured.update({k: v for k, v in match.groupdict().items() if v is not None})
        elif condition.options is not None and value not in condition.options:
            return None
    return captured


def _items(each: Path | None, root: Any) -> list[Any]:
    if each is None:
        return [root]
    items = each.of(root)
    if not isinstance(items, list):
        raise UnfitMessageError(f"{each.text} is no list")
    return items


def _ids(mapping: MessageMapping, scope: Scope) -> Ids:
    if mapping.ids is None:
        return Ids()

    def integer(value: Value | None) -> int | None:
        if value is None:
            return None
        text = value.string(scope)
        if len(text) > 20 or not text.isascii() or not text.isdecimal():
            raise UnfitMessageError(f"{value.name} is no id of an update: {text[:40]!r}")
        return int(text)

    return Ids(integer(mapping.ids.last), integer(mapping.ids.first), integer(mapping.ids.previous))


def _levels(
    levels: Levels, scope: Scope, *, is_whole: bool, descending: bool
) -> list[dict[str, Any]]:
    """Return one side of a book, best price first; a whole book has no empty levels."""
    found = levels.each.find(scope)
    if not isinstance(found, list):
        raise UnfitMessageError(f"{levels.each.text} is no list")
    sortable: list[tuple[Decimal, dict[str, Any]]] = []
    for item in found:
        price = number_of(levels.price.of(item), f"a price of {levels.each.text}")
        quantity = number_of(levels.quantity.of(item), f"a quantity of {levels.each.text}")
        amount = decimal_of(quantity, "a quantity")
        if is_whole and not amount:
            continue
        if amount < 0 and not is_whole:
            raise UnfitMessageError(f"a quantity of {levels.each.text} is below 0")
        level: dict[str, Any] = {"price": Number(price), "quantity": Number(quantity)}
        if levels.orders is not None:
            orders = levels.orders.of(item)
            level["orders"] = Number(number_of(orders, f"the orders of {levels.each.text}"))
        sortable.append((decimal_of(price, "a price"), level))
    sortable.sort(key=lambda pair: pair[0], reverse=descending)
    return [level for _, level in sortable]


def _plain(value: Value, scope: Scope) -> Any:
    """Return a value as it is in the message, multiplied if the mapping says so."""
    return Number(value.number(scope)) if value.times is not None else value.raw(scope)
