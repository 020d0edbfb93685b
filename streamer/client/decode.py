"""Decoding of server messages: the text of a WebSocket message -> the messages in it.

It uses the standard library's `json` rather than orjson: `json` can keep the digits of a number,
and its decoder reports where each value ends, so that every message of a batch keeps its own text.
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

from streamer.client.messages import (
    Alert,
    Data,
    Error,
    Gap,
    MarketStatus,
    Notification,
    OrderbookDelta,
    OrderbookUpdate,
    PriceDelta,
    PriceUpdate,
    Unknown,
    Unreadable,
    member_or_text,
)
from streamer.protocol import messages
from streamer.protocol.codec import CONVERTER, explain
from streamer.protocol.errors import ErrorCode
from streamer.protocol.json_text import skip_space
from streamer.protocol.messages import EndReason, GapReason
from streamer.protocol.topics import Topic

_MAX_EXPONENT_DIGITS: Final = 3
"""Digits of an exponent that is accepted; the exponents of doubles go up to 308.

Decimal accepts exponents of 18 digits, but would need minutes and gigabytes to write such a number
without an exponent.
"""

Control = (
    messages.Connected
    | messages.Subscribed
    | messages.Unsubscribed
    | messages.Resynced
    | messages.Pong
    | messages.ConnectionOptions
    | messages.Authenticated
    | messages.TokenExpiring
    | messages.TokenRefreshed
    | messages.Reconnected
    | messages.ServerShutdown
    | messages.Disconnected
    | Error
    | Gap
)
Message = Data | Control | Unknown | Unreadable

_CONTROL: Final[Mapping[str, type[Control]]] = {
    model.type: model
    for model in (
        messages.Connected,
        messages.Subscribed,
        messages.Unsubscribed,
        messages.Resynced,
        messages.Pong,
        messages.ConnectionOptions,
        messages.Authenticated,
        messages.TokenExpiring,
        messages.TokenRefreshed,
        messages.Reconnected,
        messages.ServerShutdown,
        messages.Disconnected,
        Error,
        Gap,
    )
}
_DATA: Final[Mapping[str, type[Data]]] = {
    model.type: model
    for model in (
        PriceUpdate,
        OrderbookUpdate,
        MarketStatus,
        Alert,
        Notification,
        PriceDelta,
        OrderbookDelta,
    )
}
_OWN: Final = {"topic", "extra", "text", "changes"}
"""Attributes of the models that are not members of the JSON."""
_MEMBERS: Final = {model: frozenset(attrs.fields_dict(model)) - _OWN for model in _DATA.values()}

_STRUCTURE: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],]', re.DOTALL)
"""The tokens that divide a JSON text into its parts; a string is one token."""

# TypeError: a required member is missing, or has a type that cannot be a key of a dict.
_DECODING_ERRORS: Final = (
    cattrs.BaseValidationError,
    ValueError,
    TypeError,
    DecimalException,
    RecursionError,
)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int | Decimal:
    # int() refuses very long numbers, on which its time grows with the square.
    return int(digits) if len(digits) <= sys.int_info.default_max_str_digits else Decimal(digits)


def _fraction(digits: str) -> Decimal:
    exponent = digits.replace("E", "e").partition("e")[2]
    if len(exponent.lstrip("+-0")) > _MAX_EXPONENT_DIGITS:
        raise ValueError(f"a number with an exponent beyond 999: {short(digits)}")
    return Decimal(digits)


_DECODER: Final = json.JSONDecoder(
    parse_float=_fraction, parse_int=_integer, parse_constant=_refuse_constant
)


def decode_server(text: str) -> list[Message]:
    """Return the messages in the text of one WebSocket message: one, or those of a batch.

    A message that cannot be read becomes an `Unreadable`; the others of its batch are not affected.
    """
    try:
        decoded, parts = _read(text)
    except _DECODING_ERRORS as error:
        return _salvage(text, _problem(error))
    if decoded.get("type") != messages.Batch.type:
        return [_message(decoded, text)]
    received = [_message(member, member_text) for member, member_text in parts]
    if decoded.get("batch_size") != len(parts):
        problem = f"a batch of {decoded.get('batch_size')} has {len(parts)} messages"
        received.append(Unreadable(problem=problem, text=text))
    return received


def _problem(error: Exception) -> str:
    if isinstance(error, cattrs.BaseValidationError):
        return explain(error)[0]
    return str(error)


def _message(decoded: Any, text: str) -> Message:
    try:
        if type(decoded) is not dict or type(decoded.get("type")) is not str:
            raise ValueError("not an object with a type")
        name = decoded["type"]
        if name in _DATA:
            return _data_message(_DATA[name], decoded, text)
        if name in _CONTROL:
            return _control_message(_CONTROL[name], text)
    except _DECODING_ERRORS as error:
        return _unreadable(text, _problem(error))
    return Unknown(name, text)


def _data_message(model: type[Data], decoded: dict[str, Any], text: str) -> Data:
    if model is PriceDelta or model is OrderbookDelta:
        return _delta(model, decoded, text)
    members = {key: value for key, value in decoded.items() if value is not None}
    extra = {key: members.pop(key) for key in members.keys() - _MEMBERS[model]}
    extra.pop("type")
    return model(**members, extra=extra, text=text)


_NAMING: Final = ("subscription_type", "target")


def _delta(model: type[PriceDelta | OrderbookDelta], decoded: dict[str, Any], text: str) -> Data:
    members = {name: decoded.pop(name) for name in _MEMBERS[model] & decoded.keys()}
    known = {name: value for name, value in members.items() if value is not None}
    changes = {name: value for name, value in decoded.items() if name != "type"}
    extra: dict[str, Any] = {name: changes[name] for name in _NAMING if name in changes}
    return model(**known, changes=changes, extra=extra, text=text)


def _open_converter() -> cattrs.Converter:
    """Make the protocol's converter, but one that keeps unknown codes and reasons."""
    converter = CONVERTER.copy()
    for enumeration in (ErrorCode, GapReason, EndReason):
        converter.register_structure_hook(enumeration, lambda value, to: member_or_text(to, value))
    return converter


_OPEN_CONVERTER: Final = _open_converter()


def _control_message(model: type[Control], text: str) -> Control:
    decoded = orjson.loads(text)
    if model is messages.Connected and type(decoded.get("limits")) is dict:
        # A later server may have limits of other types; a client needs only those it knows.
        limits = decoded["limits"].items()
        decoded["limits"] = {name: value for name, value in limits if type(value) in {int, float}}
    message = _OPEN_CONVERTER.structure(decoded, model)
    _check_topics(message)
    return attrs.evolve(message, text=text) if isinstance(message, Gap | Error) else message


def _check_topics(message: Control) -> None:
    """Raise ValueError if this version does not know one of the topics."""
    match message:
        case messages.Subscribed() | messages.Unsubscribed() | messages.Resynced():
            for target in message.targets:
                Topic(message.subscription_type, target)
        case messages.Reconnected():
            for subscription_type, targets in message.restored_subscriptions.items():
                for target in targets:
                    Topic(subscription_type, target)
        case Gap():
            Topic(message.subscription_type, message.target)
        case _:
            pass


# The usual way: one call of the decoder, or one for each message of a batch


Span = tuple[Any, str]
"""A value and its text."""


def _read(text: str) -> tuple[dict[str, Any], list[Span]]:
    """Return a JSON object and, if it is a batch, its messages, each with its own text."""
    if '"batch"' not in text:
        decoded = _DECODER.decode(text)
        if type(decoded) is not dict:
            return {}, []
        if decoded.get("type") != messages.Batch.type:  # it may be written with escapes
            return decoded, []
    decoded = {}
    inner: list[Span] = []
    at = _expect(text, 0, "{")
    while text[at : at + 1] != "}":
        name, at = _DECODER.raw_decode(text, at)
        at = _expect(text, at, ":")
        if name == "messages" and text[at : at + 1] == "[":
            inner, end = _array(text, at)
            decoded[name] = [value for value, _ in inner]
        else:
            decoded[name], end = _DECODER.raw_decode(text, at)
        at = _separator(text, end, "}")
    if skip_space(text, at + 1) != len(text):
        raise ValueError("more than one JSON value")
    return decoded, inner


def _array(text: str, start: int) -> tuple[list[Span], int]:
    """Return the values of an array, each with its own text, and the index after the array."""
    values: list[Span] = []
    at = skip_space(text, start + 1)
    while text[at : at + 1] != "]":
        value, end = _DECODER.raw_decode(text, at)
        values.append((value, text[at:end]))
        at = _separator(text, end, "]")
    return values, at + 1


def _expect(text: str, at: int, character: str) -> int:
    """Return the index after this character and the white space around it."""
    at = skip_space(text, at)
    if text[at : at + 1] != character:
        raise ValueError(f"expected {character} at character {at}")
    return skip_space(text, at + 1)


def _separator(text: str, at: int, closing: str) -> int:
    """Return the index after a comma, or that of the closing character."""
    at = skip_space(text, at)
    return at if text[at : at + 1] == closing else _expect(text, at, ",")


# Texts that the decoder refuses: divided into parts, each of which is tried alone


def _salvage(text: str, problem: str) -> list[Message]:
    """Return the messages of a text that cannot be read as a whole."""
    members = _member_texts(text)
    if _value(members, "type") != messages.Batch.type:
        return [_unreadable(text, problem)]
    received: list[Message] = []
    for member_text in _parts(members.get("messages", "")):
        try:
            received.append(_message(_DECODER.decode(member_text), member_text))
        except _DECODING_ERRORS as error:
            received.append(_unreadable(member_text, _problem(error)))
    return received or [_unreadable(text, problem)]


def _unreadable(text: str, problem: str) -> Unreadable:
    """Return an `Unreadable` with those of a message's members that are valid."""
    members = _member_texts(text)

    def value(name: str, *types: type) -> Any:
        found = _value(members, name)
        return found if type(found) in types else None

    names_topic = {name: _value(members, name) for name in ("subscription_type", "target")}
    return Unreadable(
        problem=f"{problem} in {short(text)}",
        text=text,
        type=value("type", str),
        request_id=value("request_id", str, int),
        about=value("stock_code", str) or value("market", str) or "",
        sequence=value("sequence", int),
        previous=value("previous", int),
        snapshot=value("snapshot", bool) or False,
        extra=names_topic,
    )


def _value(members: Mapping[str, str], name: str) -> Any:
    try:
        return _DECODER.decode(members.get(name, "null"))
    except _DECODING_ERRORS:
        return None


def _member_texts(text: str) -> dict[str, str]:
    """Return the members of a JSON object: name -> text of the value."""
    members = {}
    if text.lstrip().startswith("{"):
        for part in _parts(text):
            name = _STRUCTURE.match(part)
            if name is not None and name[0].startswith('"'):
                members[name[0][1:-1]] = part[name.end() :].lstrip().removeprefix(":")
    return members


def _parts(text: str) -> Iterator[str]:
    """Yield the texts between the commas of a JSON object or array, without recursion.

    For a text that is not valid JSON, these are arbitrary parts.
    """
    depth = start = 0
    for token in _STRUCTURE.finditer(text):
        opens, closes = token[0] in "{[", token[0] in "}]"
        depth += opens - closes
        if opens and depth == 1:
            start = token.end()
        elif (depth == 1 and token[0] == ",") or (closes and depth == 0):
            if part := text[start : token.start()].strip():
                yield part
            start = token.end()
