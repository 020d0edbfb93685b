r"""JSON as text: where its values begin and end, and the messages that orjson cannot read exactly.

orjson reads all usual messages. It makes a float of an integer beyond 64 bits, and refuses a lone
surrogate (`"\ud800"`) and a number beyond a double's range, which are JSON all the same.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final, NoReturn

_MAX_MEMBERS: Final = 64
"""Members of an object, or items of a list in it, that are examined; it bounds the work."""

_STRING: Final = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_VALUE: Final = re.compile(_STRING + r"|[{}\[\]]|-?\d[\d.]*(?:[eE]([-+]?\d+))?")
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int | float:
    # int() refuses very long numbers, on which its time grows with the square.
    return int(digits) if len(digits) <= sys.int_info.default_max_str_digits else float(digits)


_USUAL: Final = json.JSONDecoder(parse_constant=_refuse_constant)
_LONG_INTEGERS: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_integer)
_SPANS: Final = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=_refuse_constant)
"""Finds the end of a value; no number is converted."""


def is_utf8(text: str) -> bool:
    """Whether a string can be encoded: it has no lone surrogate."""
    return text.isascii() or _SURROGATE.search(text) is None


def loads(text: str) -> Any:
    """Read any JSON. Raises ValueError, also if it is nested too deeply."""
    try:
        try:
            return _USUAL.decode(text)
        except json.JSONDecodeError:
            raise
        except ValueError:  # an integer of thousands of digits
            return _LONG_INTEGERS.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _scan(text: str, at: int) -> tuple[Any, int]:
    """Return a value, with its numbers as strings, and the index after it.

    Raises ValueError if it is nested too deeply: orjson reads 1,024 levels, this fewer than 1,000.
    """
    try:
        return _SPANS.raw_decode(text, at)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def find_members(text: str) -> dict[str, str]:
    """Return the members of a valid JSON object: name -> text of the value.

    Empty if the object has too many members. Here and below, ValueError is raised if a value is
    nested too deeply.
    """
    found: dict[str, str] = {}
    for name, _, member in read_members(text):
        found[name] = member
        if len(found) > _MAX_MEMBERS:
            return {}
    return found


def read_members(
    text: str, end_of: Callable[[str, str, int], int | None] | None = None
) -> Iterator[tuple[str, Any, str]]:
    """Yield the members of a valid JSON object: name, value, text of the value.

    The numbers in a value are strings with their digits as written. A value is not read, but None,
    if `end_of` finds its end: it is given the name, the whole text and the index of the value.
    """
    at = skip_space(text, skip_space(text, 0) + 1)
    while text[at] != "}":
        name, at = _scan(text, at)
        start = skip_space(text, skip_space(text, at) + 1)
        end = None if end_of is None else end_of(name, text, start)
        if end is None:
            value, end = _scan(text, start)
        else:
            value = None
        yield name, value, text[start:end]
        at = _next(text, end)


def read_value(text: str) -> Any:
    """Return the value of a JSON text, with its numbers as strings as above."""
    return _scan(text, skip_space(text, 0))[0]


def find_items(text: str, limit: int) -> list[str]:
    """Return the texts of the first `limit` items of a valid JSON list."""
    return list(islice(items_of(text), limit))


def items_of(text: str) -> Iterator[str]:
    """Yield the texts of the items of a valid JSON list."""
    at = skip_space(text, skip_space(text, 0) + 1)
    while text[at] != "]":
        _, end = _scan(text, at)
        yield text[at:end]
        at = _next(text, end)


def skip_space(text: str, at: int) -> int:
    """Return the index after the white space that begins there, if any."""
    match = _SPACE.match(text, at)
    assert match is not None  # it also matches the empty string
    return match.end()


def _next(text: str, at: int) -> int:
    """Return the index after a comma, or that of the bracket that closes the object or list."""
    at = skip_space(text, at)
    return skip_space(text, at + 1) if text[at] == "," else at


def split_members(text: str) -> Iterator[tuple[str, str]]:
    """Yield the members of a valid JSON object, each with its text: `("price", '"price": 1.50')`.

    Values are skipped by the scanner of `json`: 0.5 ms for an order book of 1,000 levels, where a
    look at each token takes 2.2.
    """
    at = skip_space(text, skip_space(text, 0) + 1)
    while text[at] != "}":
        start = at
        name, at = _scan(text, at)
        _, end = _scan(text, skip_space(text, skip_space(text, at) + 1))
        yield name, text[start:end]
        at = _next(text, end)


def check_bounds(
    text: str, *, max_depth: int, max_number_characters: int, max_exponent: int
) -> None:
    """Raise ValueError if a JSON text is nested too deeply, or has a number beyond the bounds.

    A number beyond the range of a double is refused, too.
    """
    depth = 0
    for token in _VALUE.finditer(text):
        first = token[0][0]
        if first in "{[":
            depth += 1
            if depth > max_depth:
                raise ValueError(f"nested more than {max_depth} deep")
        elif first in "}]":
            depth -= 1
        elif first != '"':
            exponent = (token[1] or "0").lstrip("+-").lstrip("0")
            if len(token[0]) > max_number_characters:
                raise ValueError(f"a number of more than {max_number_characters} characters")
            if len(exponent) > len(str(max_exponent)) or int(exponent or 0) > max_exponent:
                raise ValueError(f"a number with an exponent beyond {max_exponent}")
            if math.isinf(float(token[0])):
                raise ValueError("a number beyond the range of a double")
