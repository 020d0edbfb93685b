"""The values of a mapping: paths into a message, and what becomes of what is found there.

Numbers stay the text that they are in the message. A float is never made of one.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from typing import Any, Final, NoReturn

import attrs
import orjson

from streamer.protocol.codec import utc_timestamp
from streamer.protocol.publications import MAX_EXPONENT, MAX_NUMBER_CHARACTERS

_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_JSON_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,4})?")

_EXACT: Final = Context(prec=2 * (MAX_NUMBER_CHARACTERS + MAX_EXPONENT))
"""Products of numbers have all their digits."""

UNITS: Final[Mapping[str, int]] = {
    "s": 1,
    "ms": 1_000,
    "us": 1_000_000,
    "ns": 1_000_000_000,
}
"""Units of times since the Unix epoch -> how many of them are a second."""

CASES: Final = {"": lambda text: text, "upper": str.upper, "lower": str.lower}
"""Conversions of a value in a template: `{symbol:upper}`."""


class UnfitMessageError(ValueError):
    """A message is not what a mapping says that it is; the text says which part."""


class Number(str):
    """The text of a number in JSON."""

    __slots__ = ()


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_float=Number, parse_int=Number, parse_constant=_refuse)


def read_json(text: str | bytes) -> Any:
    """Read JSON, with each number as its text (`Number`). Raises ValueError."""
    try:
        return _DECODER.decode(text if isinstance(text, str) else text.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_text(value: Any) -> bytes:
    """Return the JSON of a value that `read_json` has read, or that has `orjson.Fragment`s.

    Raises ValueError for text that is not UTF-8.
    """
    try:
        return orjson.dumps(value, default=_fragment, option=orjson.OPT_PASSTHROUGH_SUBCLASS)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _fragment(value: Any) -> orjson.Fragment:
    if isinstance(value, Number):
        return orjson.Fragment(value.encode())
    raise TypeError(f"{type(value).__name__} is no JSON value")


@attrs.frozen
class Scope:
    """The message, and the part of it, to which a mapping is applied."""

    root: Any
    item: Any
    captured: Mapping[str, str] = attrs.field(factory=dict)
    """Names -> the text that a pattern has captured."""


@attrs.frozen
class Path:
    """A path to a value: `data.b.0.1`; `$.` at the beginning: from the whole message."""

    text: str
    segments: tuple[str, ...]
    from_root: bool

    @classmethod
    def parse(cls, text: str) -> Path:
        """Raises ValueError."""
        from_root = text.startswith("$.")
        segments = tuple(text.removeprefix("$.").split("."))
        if not all(segments):
            raise ValueError(f"{text!r} is no path such as data.price")
        return cls(text, segments, from_root)

    def find(self, scope: Scope) -> Any:
        """Return the value, or None where there is none or null."""
        if len(self.segments) == 1 and self.text in scope.captured:
            return scope.captured[self.text]
        return self.of(scope.root if self.from_root else scope.item)

    def of(self, value: Any) -> Any:
        """Return the value below another one; None where there is none or null."""
        for segment in self.segments:
            if isinstance(value, dict):
                value = value.get(segment)
            elif isinstance(value, list) and segment.isdecimal() and int(segment) < len(value):
                value = value[int(segment)]
            else:
                return None
        return value


def number_of(value: Any, name: str) -> str:
    """Return the text of a number: a JSON number, or one as a string.

    Raises UnfitMessageError.
    """
    if not isinstance(value, str):
        raise UnfitMessageError(f"{name} is {_shown(value)}")
    if type(value) is not Number and _JSON_NUMBER.fullmatch(value) is None:
        raise UnfitMessageError(f"{name} is no number: {value[:40]!r}")
    return str(value)


def decimal_of(text: str, name: str) -> Decimal:
    """Return the value of a number's text, within the bounds of publications.

    Raises UnfitMessageError.
    """
    number = Decimal(text)
    if len(text) > MAX_NUMBER_CHARACTERS or abs(number.adjusted()) > MAX_EXPONENT:
        raise UnfitMessageError(f"{name} is beyond the bounds of numbers")
    return number


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    return {bool: "a boolean", dict: "an object", list: "a list"}.get(type(value), "a string")


@attrs.frozen
class Value:
    """A value of a message, or a constant."""

    path: Path | None
    constant: Any = None
    """With numbers as `Number`."""
    times: Decimal | None = None
    """A factor for a number."""
    values: Mapping[str, str] | None = None
    """The text of a value -> what it becomes."""
    unit: str | None = None
    """The unit of a time since the Unix epoch; None: the time is text, RFC 3339."""

    @property
    def name(self) -> str:
        """The value's name, for errors."""
        return "the constant" if self.path is None else self.path.text

    def raw(self, scope: Scope) -> Any:
        """Return the value as it is in the message; None where there is none."""
        found = self.constant if self.path is None else self.path.find(scope)
        if self.values is None or found is None:
            return found
        key = found if isinstance(found, str) else json_text(found).decode()
        if key not in self.values:
            raise UnfitMessageError(f"{self.name} is {key[:40]!r}, for which there is no value")
        return self.values[key]

    def number(self, scope: Scope) -> str:
        """Return the text of a number. Raises UnfitMessageError."""
        text = number_of(self.raw(scope), self.name)
        if self.times is None:
            return text
        return format(_EXACT.multiply(decimal_of(text, self.name), self.times), "f")

    def string(self, scope: Scope) -> str:
        """Return text; that of a number, too. Raises UnfitMessageError."""
        found = self.raw(scope)
        if not isinstance(found, str):
            raise UnfitMessageError(f"{self.name} is {_shown(found)}")
        return str(found)

    def timestamp(self, scope: Scope) -> str:
        """Return a time as RFC 3339. Raises UnfitMessageError."""
        if self.unit is None:
            return self.string(scope)
        number = decimal_of(number_of(self.raw(scope), self.name), self.name)
        micros = number * 1_000_000 / UNITS[self.unit]
        return time_text(int(micros))


def time_text(unix_us: int) -> str:
    """Return a time in microseconds since the Unix epoch as RFC 3339. Raises UnfitMessageError."""
    try:
        moment = _UNIX_EPOCH + timedelta(microseconds=unix_us)
    except OverflowError:
        raise UnfitMessageError("a time beyond the calendar") from None
    if unix_us % 1000:
        return moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
    return utc_timestamp(moment)


@attrs.frozen
class Template:
    """Text with values in it: `stock:{data.s}`, `stock:{symbol:upper}`."""

    text: str
    parts: tuple[tuple[str, Path | None, str], ...]
    """Literal text, and what follows it: a path, and a key of `CASES`."""

    @classmethod
    def parse(cls, text: str) -> Template:
        """Raises ValueError."""
        parts: list[tuple[str, Path | None, str]] = []
        for literal, field, case, conversion in string.Formatter().parse(text):
            if field is None:
                parts.append((literal, None, ""))
                continue
            if conversion or case not in CASES:
                raise ValueError(f"in {text!r}, only :upper and :lower may follow a path")
            parts.append((literal, Path.parse(field), case or ""))
        return cls(text, tuple(parts))

    @property
    def sample(self) -> str:
        """The text with `X` for each value, to check the rest by."""
        return "".join(literal + ("X" if path else "") for literal, path, _ in self.parts)

    def fill(self, scope: Scope) -> str:
        """Return the text with the values. Raises UnfitMessageError."""
        return "".join(self._filled(scope))

    def _filled(self, scope: Scope) -> Iterator[str]:
        for literal, path, case in self.parts:
            yield literal
            if path is not None:
                value = path.find(scope)
                if not isinstance(value, str):
                    raise UnfitMessageError(f"{path.text} is {_shown(value)}")
                yield CASES[case](value)
