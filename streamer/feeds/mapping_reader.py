"""Read a mapping from a TOML file.

A file is read as a whole, and all that is wrong in it is reported at once, each with its key.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path as FilePath
from typing import Any, Final, TypeVar

from streamer.feeds.mapping import (
    PUBLICATION_KINDS,
    Condition,
    FeedMapping,
    Levels,
    MessageMapping,
    UpdateIds,
)
from streamer.feeds.mapping_values import UNITS, Number, Path, Template, Value
from streamer.feeds.websocket import DEFAULT_HEARTBEAT_SECONDS, FeedSource
from streamer.protocol.messages import (
    MarketPhase,
    MarketStatus,
    OrderbookDelta,
    OrderbookUpdate,
    PriceUpdate,
)
from streamer.protocol.topics import Kind, SubscriptionType, Topic
from streamer.urls import is_url, is_websocket_url

T = TypeVar("T")

_FIELDS: Final[Mapping[str, tuple[frozenset[str], frozenset[str]]]] = {
    PriceUpdate.type: (
        frozenset({"price"}),
        frozenset({"change", "change_percent", "volume", "quantity", "reference", "stock_code"}),
    ),
    OrderbookUpdate.type: (frozenset({"bids", "asks"}), frozenset({"stock_code"})),
    OrderbookDelta.type: (frozenset({"bids", "asks"}), frozenset({"stock_code"})),
    MarketStatus.type: (frozenset({"status"}), frozenset({"market"})),
}
"""The type of a publication -> the fields that its mapping must have, and may have."""

_RESERVED: Final = frozenset(
    {"type", "timestamp", "epoch", "sequence", "previous", "snapshot", "subscription_type"}
    | {"target", "checksum"}
)
"""Members that the server writes, or that have a field of their own."""


class MappingError(Exception):
    """A mapping cannot be used; the text has every fault, one a line."""

    def __init__(self, path: FilePath, problems: Sequence[str]) -> None:
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))
        self.problems = tuple(problems)


def read_mapping(path: FilePath) -> FeedMapping:
    """Read a mapping. Raises MappingError, and OSError if the file cannot be read."""
    try:
        contents = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except ValueError as error:  # not TOML, or not UTF-8
        raise MappingError(path, [f"not TOML: {error}"]) from None
    problems: list[str] = []
    root = _Table(contents, "", problems)
    sources = _sources(root.table("feed"))
    messages = tuple(map(_message, root.tables("message")))
    root.finish()
    if not messages and not problems:
        problems.append("message: at least one [[message]] is needed")
    if problems:
        raise MappingError(path, problems)
    return FeedMapping(sources, messages)


_NAMES: Final = {
    str: "a string",
    bool: "true or false",
    dict: "a table",
    list: "a list",
    int: "a number",
    Decimal: "a number",
}


class _Table:
    """A table of the file that is taken apart, and notes what is wrong."""

    def __init__(self, contents: Mapping[str, Any], key: str, problems: list[str]) -> None:
        self.contents = contents
        self.key = key
        self.problems = problems
        self._known: set[str] = set()

    def full(self, name: str) -> str:
        return f"{self.key}.{name}" if self.key else name

    def reject(self, name: str, problem: str) -> None:
        self.problems.append(f"{self.full(name)}: {problem}" if name else f"{self.key}: {problem}")

    def get(self, name: str, *types: type, required: bool = False) -> Any:
        """Return a member of one of these types; None if there is none, or a wrong one."""
        self._known.add(name)
        if name not in self.contents:
            if required:
                self.reject(name, "is needed")
            return None
        value = self.contents[name]
        if type(value) is Decimal and not value.is_finite():
            self.reject(name, f"expected a number, got {value}")
            return None
        if type(value) in types:
            return value
        expected = " or ".join(dict.fromkeys(_NAMES[kind] for kind in types))
        self.reject(name, f"expected {expected}, got {_NAMES.get(type(value), 'something else')}")
        return None

    def parsed(self, name: str, parse: Callable[[str], T], *, required: bool = False) -> T | None:
        """Return what `parse` makes of a string."""
        text = self.get(name, str, required=required)
        return None if text is None else self.attempt(name, parse, text)

    def attempt(self, name: str, parse: Callable[[Any], T], value: Any) -> T | None:
        """Return what `parse` makes of a value; a ValueError is a fault of the file."""
        try:
            return parse(value)
        except ValueError as error:
            self.reject(name, str(error))
            return None

    def strings(self, name: str, *, required: bool = False) -> list[str]:
        """Return a string, or a list of them, as a list."""
        value = self.get(name, str, list, required=required)
        if value is None:
            return []
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(item, str) for item in values):
            self.reject(name, "expected a string, or a list of strings")
            return []
        return values

    def table(self, name: str) -> _Table:
        return _Table(self.get(name, dict) or {}, self.full(name), self.problems)

    def tables(self, name: str) -> list[_Table]:
        items = self.get(name, list) or []
        if not all(isinstance(item, dict) for item in items):
            self.reject(name, f"write it as [[{self.full(name)}]]")
            return []
        return [
            _Table(item, f"{self.full(name)}[{index}]", self.problems)
            for index, item in enumerate(items)
        ]

    def finish(self) -> None:
        """Note the members that nobody has asked for."""
        for name in self.contents:
            if name not in self._known:
                alike = difflib.get_close_matches(name, self._known, n=1)
                hint = f"; did you mean {alike[0]}?" if alike else ""
                self.reject(name, f"is not known{hint}")


def _sources(table: _Table) -> tuple[FeedSource, ...]:
    if not table.contents:
        return ()
    urls = table.strings("url", required=True)
    if not all(map(is_websocket_url, urls)):
        table.reject("url", "is no URL with the scheme ws or wss")
    fetch = table.strings("fetch")
    if not all(is_url(url, {"http", "https"}) for url in fetch):
        table.reject("fetch", "is no URL with the scheme http or https")
    seconds = table.get("heartbeat_seconds", int, Decimal)
    if seconds is not None and seconds <= 0:
        table.reject("heartbeat_seconds", "must be above 0")
    heartbeat = table.get("heartbeat", str)
    subscribe = table.strings("subscribe")
    table.finish()
    return tuple(
        FeedSource(
            url=url,
            subscribe=tuple(subscribe),
            heartbeat=heartbeat,
            heartbeat_seconds=float(seconds or DEFAULT_HEARTBEAT_SECONDS),
            fetch=tuple(fetch),
        )
        for url in urls
    )


def _message(table: _Table) -> MessageMapping:
    message_type = table.get("publish", str, required=True)
    if message_type is not None and message_type not in _FIELDS:
        table.reject("publish", f"expected one of {', '.join(_FIELDS)}, got {message_type!r}")
        message_type = None
    conditions = _conditions(table.table("when"))
    each = table.parsed("each", Path.parse)
    topics = _topics(table, message_type)
    fields = table.table("fields")
    values, bids, asks, timestamp = _fields(fields, message_type)
    if message_type == MarketStatus.type:
        _check_status(fields, values.get("status"))
    is_for_stocks = all(template.sample.startswith("stock:") for template in topics)
    if message_type == PriceUpdate.type and not is_for_stocks and "stock_code" not in values:
        fields.reject("stock_code", "is needed, since not every topic is of a stock")
    extra = _extra(table.table("extra"), message_type)
    ids = _ids(table, message_type)
    table.finish()
    return MessageMapping(
        key=table.key,
        type=message_type or "",
        conditions=conditions,
        each=each,
        topics=topics,
        fields=values,
        bids=bids,
        asks=asks,
        timestamp=timestamp,
        extra=extra,
        ids=ids,
    )


def _conditions(table: _Table) -> tuple[Condition, ...]:
    conditions: list[Condition] = []
    for name, wanted in table.contents.items():
        path = table.attempt(name, Path.parse, name)
        if path is None:
            continue
        if isinstance(wanted, dict):
            conditions += _special_condition(_Table(wanted, table.full(name), table.problems), path)
            continue
        options = wanted if isinstance(wanted, list) else [wanted]
        if not options or not all(type(option) in {str, bool, int, Decimal} for option in options):
            table.reject(name, "expected a constant, a list of constants, or a table")
            continue
        conditions.append(Condition(path, options=frozenset(map(constant_text, options))))
    return tuple(conditions)


def _special_condition(table: _Table, path: Path) -> list[Condition]:
    pattern = table.parsed("pattern", _pattern)
    exists = table.get("exists", bool)
    table.finish()
    if len(table.contents) != 1:
        table.reject("", "expected { pattern = … } or { exists = … }; is the path in quotes?")
    return [Condition(path, pattern=pattern, exists=exists)]


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None


def constant_text(value: Any) -> str:
    """Return the text by which a constant of TOML and a value of JSON are compared."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _topics(table: _Table, message_type: str | None) -> tuple[Template, ...]:
    templates: list[Template] = []
    for text in table.strings("topic", required=True):
        template = table.attempt("topic", Template.parse, text)
        if template is None:
            continue
        topic = table.attempt("topic", Topic.parse, template.sample)
        if topic is None:
            continue
        if topic.subscription_type is SubscriptionType.USER or (
            message_type is not None and PUBLICATION_KINDS[message_type] not in topic.kinds
        ):
            table.reject("topic", f"{topic.subscription_type} carries no {message_type}")
            continue
        templates.append(template)
    return tuple(templates)


def _fields(
    table: _Table, message_type: str | None
) -> tuple[dict[str, Value], Levels | None, Levels | None, Value | None]:
    required, optional = _FIELDS.get(message_type or "", (frozenset(), frozenset(table.contents)))
    values: dict[str, Value] = {}
    sides: dict[str, Levels | None] = {"bids": None, "asks": None}
    for name in sorted(required) + sorted(optional):
        if name in sides:
            sides[name] = _levels(table, name)
        elif name != "timestamp" and (value := _value(table, name, required=name in required)):
            values[name] = value
    timestamp = _value(table, "timestamp", is_time=True)
    if message_type is not None:
        table.finish()
    return values, sides["bids"], sides["asks"], timestamp


def _value(
    table: _Table, name: str, *, required: bool = False, is_time: bool = False
) -> Value | None:
    wanted = table.get(name, str, dict, required=required)
    if wanted is None:
        return None
    if isinstance(wanted, str):
        path = table.attempt(name, Path.parse, wanted)
        return None if path is None else Value(path)
    own = _Table(wanted, table.full(name), table.problems)
    path = own.parsed("path", Path.parse)
    constant = own.get("value", str, bool, int, Decimal)
    if ("path" in wanted) == ("value" in wanted):
        own.reject("", "expected either path or value")
    unit = own.get("unit", str) if is_time else None
    if unit is not None and unit not in UNITS:
        own.reject("unit", f"expected one of {', '.join(UNITS)}, got {unit!r}")
    times = None if is_time else own.get("times", int, Decimal)
    values = None if is_time else _lookup(own)
    own.finish()
    if type(constant) in {int, Decimal}:
        constant = Number(constant_text(constant))
    return Value(path, constant, None if times is None else Decimal(times), values, unit)


def _lookup(table: _Table) -> dict[str, str] | None:
    values = table.get("values", dict)
    if values is not None and not all(isinstance(value, str) for value in values.values()):
        table.reject("values", "expected strings")
        return None
    return None if values is None else dict(values)


def _levels(table: _Table, name: str) -> Levels | None:
    wanted = table.get(name, str, dict, required=True)
    if wanted is None:
        return None
    own = _Table(
        {"each": wanted} if isinstance(wanted, str) else wanted, table.full(name), table.problems
    )
    each = own.parsed("each", Path.parse, required=True)
    # By default a level is a pair, as with most exchanges.
    price = own.parsed("price", Path.parse) or Path.parse("0")
    quantity = own.parsed("quantity", Path.parse) or Path.parse("1")
    orders = own.parsed("orders", Path.parse)
    own.finish()
    return None if each is None else Levels(each, price, quantity, orders)


def _check_status(table: _Table, status: Value | None) -> None:
    phases = set(MarketPhase)
    if status is None:
        return
    if status.values is not None and not phases.issuperset(status.values.values()):
        table.reject("status.values", f"each must become one of {', '.join(MarketPhase)}")
    if status.path is None and status.constant not in phases:
        table.reject("status.value", f"expected one of {', '.join(MarketPhase)}")


def _extra(table: _Table, message_type: str | None) -> dict[str, Value]:
    required, optional = _FIELDS.get(message_type or "", (frozenset(), frozenset()))
    taken = required | optional | _RESERVED
    values: dict[str, Value] = {}
    for name in table.contents:
        value = _value(table, name)
        if name in taken:
            table.reject(
                name, "belongs in fields" if name in required | optional else "is reserved"
            )
        elif value is not None:
            values[name] = value
    return values


def _ids(table: _Table, message_type: str | None) -> UpdateIds | None:
    own = table.table("update_ids")
    if not own.contents:
        return None
    last = _value(own, "last", required=True)
    first, previous = _value(own, "first"), _value(own, "previous")
    own.finish()
    if message_type is not None and PUBLICATION_KINDS[message_type] is not Kind.ORDERBOOK:
        own.reject("", f"{message_type} has no update ids")
    return None if last is None else UpdateIds(last, first, previous)
