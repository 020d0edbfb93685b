"""What the server sent: the text of a WebSocket message -> the messages that are in it.

Read by the standard library's `json`, not by orjson: only it can be told to keep the digits of a
number, and its decoder tells where each value ends, so that a message of a batch keeps its text.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from decimal import Decimal, DecimalException
from reprlib import repr as short
from typing import Any, Final, NoReturn

import attrs
import cattrs
import orjson

from streamer.client.errors import DecodeError
from streamer.client.messages import (
    Alert,
    Data,
    Error,
    Gap,
    MarketStatus,
    Notification,
    OrderbookUpdate,
    PriceUpdate,
)
from streamer.protocol import messages
from streamer.protocol.codec import CONVERTER, explain


@attrs.frozen
class Unknown:
    """A message of a type that this version does not know, which a later server may send."""

    type: str
    text: str = attrs.field(repr=False)


Control = (
    messages.Connected
    | messages.Subscribed
    | messages.Unsubscribed
    | messages.Pong
    | messages.TokenRefreshed
    | messages.Reconnected
    | Error
    | Gap
    | messages.ServerShutdown
)
Message = Data | Control | Unknown

_CONTROL: Final[Mapping[str, type[Control]]] = {
    model.type: model
    for model in (
        messages.Connected,
        messages.Subscribed,
        messages.Unsubscribed,
        messages.Pong,
        messages.TokenRefreshed,
        messages.Reconnected,
        Error,
        Gap,
        messages.ServerShutdown,
    )
}
_DATA: Final[Mapping[str, type[Data]]] = {
    model.type: model for model in (PriceUpdate, OrderbookUpdate, MarketStatus, Alert, Notification)
}
_OWN: Final = {"topic", "extra", "text"}
"""Attributes of the models that are not members of the JSON."""
_MEMBERS: Final = {model: frozenset(attrs.fields_dict(model)) - _OWN for model in _DATA.values()}

_SPACE: Final = re.compile(r"[ \t\n\r]*")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int | Decimal:
    # int() refuses very long numbers, on which its time grows with the square.
    return int(digits) if len(digits) <= sys.int_info.default_max_str_digits else Decimal(digits)


_DECODER: Final = json.JSONDecoder(
    parse_float=Decimal, parse_int=_integer, parse_constant=_refuse_constant
)


def decode_server(text: str) -> list[Message]:
    """The messages in the text of one WebSocket message: those of a batch, or the one.

    Raises DecodeError.
    """
    try:
        return list(_messages(text))
    except cattrs.BaseValidationError as error:
        problem = explain(error)[0]
    # TypeError: a member that has to be there is not, or one is no type that can be a key.
    except (ValueError, TypeError, DecimalException, RecursionError) as error:
        problem = str(error)
    raise DecodeError(f"{problem} in {short(text)}")


def _messages(text: str) -> Iterator[Message]:
    decoded, inner = _read(text)
    if decoded.get("type") != messages.Batch.type:
        yield _message(decoded, text)
        return
    if decoded.get("batch_size") != len(inner):
        raise ValueError(f"a batch of {decoded.get('batch_size')} has {len(inner)} messages")
    for member, member_text in inner:
        yield _message(member, member_text)


def _message(decoded: Any, text: str) -> Message:
    if type(decoded) is not dict or type(decoded.get("type")) is not str:
        raise ValueError("not an object with a type")
    name = decoded["type"]
    if name in _DATA:
        model = _DATA[name]
        members = {key: value for key, value in decoded.items() if value is not None}
        extra = {key: members.pop(key) for key in members.keys() - _MEMBERS[model]}
        extra.pop("type")
        return model(**members, extra=extra, text=text)
    if name in _CONTROL:
        message = CONVERTER.structure(orjson.loads(text), _CONTROL[name])
        return attrs.evolve(message, text=text) if isinstance(message, Gap | Error) else message
    return Unknown(name, text)


Span = tuple[Any, str]
"""A value and its text."""


def _read(text: str) -> tuple[dict[str, Any], list[Span]]:
    """A JSON object, and the values of its `messages` each with its own text."""
    if '"messages"' not in text:  # the usual case, in one call
        decoded = _DECODER.decode(text)
        return (decoded if type(decoded) is dict else {}), []
    decoded = {}
    inner: list[Span] = []
    at = _expect(text, 0, "{")
    while text[at : at + 1] != "}":
        name, at = _DECODER.raw_decode(text, at)
        at = _expect(text, at, ":")
        if name == "messages" and text[at : at + 1] == "[":
            inner, at = _array(text, at)
        else:
            decoded[name], at = _DECODER.raw_decode(text, at)
        at = _separator(text, at, "}")
    if _skip(text, at + 1) != len(text):
        raise ValueError("more than one JSON value")
    return decoded, inner


def _array(text: str, start: int) -> tuple[list[Span], int]:
    """The values of an array each with its own text, and where the array ends."""
    values: list[Span] = []
    at = _skip(text, start + 1)
    while text[at : at + 1] != "]":
        value, end = _DECODER.raw_decode(text, at)
        values.append((value, text[at:end]))
        at = _separator(text, _skip(text, end), "]")
    return values, at + 1


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # it matches nothing, too
    return match.end()


def _expect(text: str, at: int, character: str) -> int:
    """Past this character and the space around it."""
    at = _skip(text, at)
    if text[at : at + 1] != character:
        raise ValueError(f"expected {character} at character {at}")
    return _skip(text, at + 1)


def _separator(text: str, at: int, closing: str) -> int:
    """Past a comma, or at the closing character."""
    at = _skip(text, at)
    return at if text[at : at + 1] == closing else _expect(text, at, ",")
