"""Bytes <-> models, through one cattrs converter.

Structuring is strict: a number is a JSON number and a string a JSON string. The usual leniency
(`float("72500")`, `str(5)`) is how a wrong field passes every test and reaches a trader.
"""

from __future__ import annotations

import enum
import json
import operator
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from reprlib import repr as short
from types import NoneType
from typing import Any, Final, get_args, get_origin

import attrs
import cattrs
import orjson
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override
from cattrs.preconf.orjson import make_converter

from streamer.protocol import messages
from streamer.protocol.errors import ErrorCode, ProtocolError
from streamer.protocol.json_text import find_items, find_members, is_utf8, loads

StructureHook = Callable[[Any, Any], Any]

MAX_ECHOED_BRACKETS: Final = 64
"""Brackets in a target that is returned as it was sent: more could be nested too deeply for the
client's parser."""

MAX_ECHOED_CHARACTERS: Final = 80
"""Characters that are returned, as a string, of a target with more brackets."""

_MAX_EXACT_TARGETS: Final = 1000
"""Targets of one request that are returned exactly as they were sent; it bounds the work."""

_STRINGS: Final = frozenset({str})
"""The types of the items of a list of strings."""

_INTEGER: Final = re.compile(r"-?\d{1,200}", re.ASCII)

_CLIENT_TYPES: Final = {model.type: model for model in messages.CLIENT_MESSAGES}


def _name(json_type: type) -> str:
    return "null" if json_type is NoneType else json_type.__name__


def _strict(*accepted: type) -> StructureHook:
    """A structure hook that takes these JSON types and converts nothing (True is not 1)."""
    expected = " or ".join(map(_name, accepted))

    def structure(value: object, _type: object) -> Any:
        if type(value) in accepted:
            return value
        raise ValueError(f"expected {expected}, got {_name(type(value))}")

    return structure


def _member(value: Any, enumeration: type[enum.StrEnum]) -> enum.StrEnum:
    try:
        return enumeration(value)
    except ValueError:
        options = ", ".join(enumeration)
        raise ValueError(f"expected one of {options}, got {short(value)}") from None


def _is_generic(generic: object, target: object) -> bool:
    return get_origin(target) is generic


def _sequence_hook(target: Any, converter: cattrs.BaseConverter) -> StructureHook:
    (item_type,) = get_args(target)
    takes_any = item_type is Any
    structure_item = converter.get_structure_hook(item_type)

    def structure(value: object, _type: object) -> Any:
        # A str is a sequence too, and would be taken apart into its characters.
        if type(value) is not list:
            raise ValueError(f"expected a list, got {_name(type(value))}")
        if takes_any:
            return value
        return [structure_item(item, item_type) for item in value]

    return structure


def _mapping_hook(target: Any, converter: cattrs.BaseConverter) -> StructureHook:
    key_type, value_type = get_args(target)
    structure_key = converter.get_structure_hook(key_type)
    structure_value = converter.get_structure_hook(value_type)

    def structure(value: object, _type: object) -> Any:
        if type(value) is not dict:
            raise ValueError(f"expected an object, got {_name(type(value))}")
        return {
            structure_key(key, key_type): structure_value(item, value_type)
            for key, item in value.items()
        }

    return structure


def _object_hook(model: type[Any], converter: cattrs.Converter) -> StructureHook:
    """Reject a value that is not an object by its type; cattrs would report a failed index."""
    structure_object = make_dict_structure_fn(model, converter)

    def structure(value: object, _type: object) -> Any:
        if type(value) is not dict:
            raise ValueError(f"expected an object, got {_name(type(value))}")
        return structure_object(value, model)

    return structure


def _unstructure_hook(model: type[Any], converter: cattrs.Converter) -> Any:
    """Write a message's type, and omit a field that is None if None is its default."""
    unstructure_fields = make_dict_unstructure_fn(
        model,
        converter,
        **{  # type: ignore[arg-type]  # the stub takes the overrides for its own flags
            field.name: override(omit_if_default=True)
            for field in attrs.fields(model)
            if field.default is None
        },
    )
    if not hasattr(model, "type"):
        return unstructure_fields
    own = {"type": model.type}
    return lambda message: own | unstructure_fields(message)


def _is_64_bit(value: int) -> bool:
    return -(2**63) <= value < 2**64


def exactly(value: object) -> object:
    """Make a string or an integer writable by orjson.

    It refuses a lone surrogate and an integer of more than 64 bits.
    """
    if type(value) is int and not _is_64_bit(value):
        return orjson.Fragment(b"%d" % value)
    if type(value) is str and not is_utf8(value):
        return orjson.Fragment(json.dumps(value).encode())
    return value


def _make_converter() -> cattrs.Converter:
    converter = make_converter()
    for scalar in (str, bool, int):
        converter.register_structure_hook(scalar, _strict(scalar))
    converter.register_structure_hook(float, _strict(int, float))
    # The hook of `str` serves its subclasses, too, and would take any string for an enum.
    converter.register_structure_hook(enum.StrEnum, _member)
    for identifier in (str | int, str | int | None):
        is_identifier = partial(operator.eq, identifier)
        converter.register_structure_hook_func(is_identifier, _strict(*get_args(identifier)))
        converter.register_unstructure_hook_func(is_identifier, exactly)
    for generic, factory in ((Sequence, _sequence_hook), (Mapping, _mapping_hook)):
        converter.register_structure_hook_factory(partial(_is_generic, generic), factory)
    converter.register_structure_hook_factory(attrs.has, _object_hook)
    converter.register_unstructure_hook_factory(attrs.has, _unstructure_hook)
    return converter


CONVERTER: Final = _make_converter()
"""The converter of all messages. It reports errors for each field."""


def utc_timestamp(moment: datetime | None = None) -> str:
    """RFC 3339 in UTC with `Z` and milliseconds; now, unless a moment is given."""
    if moment is not None:
        text = moment.astimezone(UTC).isoformat(timespec="milliseconds")
        return text.removesuffix("+00:00") + "Z"
    seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{_text_of_second(seconds)}.{milliseconds:03}Z"


@lru_cache(maxsize=1)
def _text_of_second(seconds: int) -> str:
    """Return the text of a second of Unix time, without a zone: its messages share it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().removesuffix("+00:00")


def explain(error: BaseException) -> list[str]:
    """Describe a validation error, a line per field: `$.price: expected int or float, got str`."""

    def describe(exception: BaseException, _type: type[Any] | None) -> str:
        if isinstance(exception, KeyError):
            return "required field missing"
        return str(exception) if isinstance(exception, ValueError) else repr(exception)

    lines = cattrs.transform_error(error, format_exception=describe)
    return [": ".join(reversed(line.rsplit(" @ ", 1))) for line in lines]


# Client messages


def decode_client(text: str | bytes) -> messages.ClientMessage:
    """Decode a client's message.

    Raises ProtocolError with the code, the reason and, where it could be read, the request_id.
    """
    decoded = _load_request(text)
    if type(decoded) is not dict:
        raise ProtocolError(
            ErrorCode.INVALID_MESSAGE,
            f"a message is a JSON object, not {type(decoded).__name__}",
        )
    if "type" not in decoded:
        raise ProtocolError(
            ErrorCode.MISSING_TYPE,
            "the message has no type",
            request_id=_readable_request_id(decoded),
        )
    model = _CLIENT_TYPES.get(decoded["type"]) if type(decoded["type"]) is str else None
    if model is None:
        raise ProtocolError(
            ErrorCode.UNKNOWN_MESSAGE_TYPE,
            f"no client message has type {short(decoded['type'])}",
            details={"known": sorted(_CLIENT_TYPES)},
            request_id=_readable_request_id(decoded),
        )
    try:
        return CONVERTER.structure(decoded, model)
    except cattrs.BaseValidationError as error:
        reasons = explain(error)
        raise ProtocolError(
            ErrorCode.INVALID_MESSAGE,
            f"invalid {model.type}: {reasons[0]}",
            details={"errors": reasons[:10]},
            request_id=_readable_request_id(decoded),
        ) from None


def request_id_of(text: str | bytes) -> messages.RequestId | None:
    """Return the request_id of a message that is rejected, if it can be read."""
    try:
        decoded = _load_request(text)
    except ProtocolError:
        return None
    return _readable_request_id(decoded) if type(decoded) is dict else None


def _load_request(text: str | bytes) -> Any:
    """Parse a client's JSON; values that the answer repeats are kept exactly as they were sent.

    These are a request_id of more than 64 bits, and targets that are not strings: numbers, lists
    and objects become `orjson.Fragment`s, which are encoded unchanged.
    """
    try:
        decoded = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        try:
            decoded = loads(text if isinstance(text, str) else text.decode())
        except ValueError:
            raise ProtocolError(ErrorCode.INVALID_JSON, f"not JSON: {error}") from None
    if type(decoded) is not dict:
        return decoded
    targets = decoded.get("targets")
    targets = targets if type(targets) is list else []
    has_odd_targets = not (_STRINGS.issuperset(map(type, targets)) or all(map(_is_exact, targets)))
    has_long_id = type(decoded.get("request_id")) is float
    if has_odd_targets or has_long_id:
        try:
            texts = find_members(text if isinstance(text, str) else text.decode())
            if has_odd_targets and "targets" in texts:
                decoded["targets"] = _with_fragments(targets, texts["targets"])
        except ValueError as error:
            raise ProtocolError(ErrorCode.INVALID_JSON, f"not JSON: {error}") from None
        if has_long_id and _INTEGER.fullmatch(texts.get("request_id", "")):
            decoded["request_id"] = int(texts["request_id"])
    return decoded


def _is_exact(target: object) -> bool:
    """Whether the parsed target would be encoded as it was sent."""
    return (
        type(target) is str
        or target is None
        or type(target) is bool
        or (type(target) is int and _is_64_bit(target))
    )


def _with_fragments(targets: list[object], text: str) -> list[object]:
    texts = find_items(text, _MAX_EXACT_TARGETS)
    exact = [
        target if _is_exact(target) else _fragment(item)
        for target, item in zip(targets, texts, strict=False)
    ]
    return exact + targets[len(exact) :]


def _fragment(text: str) -> object:
    if text.count("[") + text.count("{") > MAX_ECHOED_BRACKETS:
        return text[:MAX_ECHOED_CHARACTERS]
    return orjson.Fragment(text.encode())


def _readable_request_id(decoded: dict[str, object]) -> messages.RequestId | None:
    try:
        return CONVERTER.structure(decoded, messages.Ping).request_id
    except cattrs.BaseValidationError:
        return None


# Server messages


def encode(message: messages.ServerMessage | messages.ClientMessage, timestamp: str) -> bytes:
    """Return the JSON of a message."""
    first = {"type": message.type, "timestamp": timestamp}
    return orjson.dumps(first | CONVERTER.unstructure(message))


def encode_request(message: messages.ClientMessage) -> str:
    """Return the JSON of a client's message."""
    return orjson.dumps(CONVERTER.unstructure(message)).decode()
