"""Bytes <-> models, through one cattrs converter.

Structuring is strict: a number is a JSON number and a string a JSON string. The usual leniency
(`float("72500")`, `str(5)`) is how a wrong field passes every test and reaches a trader.

A publication is validated but never re-encoded: the producer's own bytes go to the client, so every
digit and every extra field is as it was written.
"""

from __future__ import annotations

import enum
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from reprlib import repr as short
from types import NoneType
from typing import Any, Final, get_args, get_origin

import attrs
import cattrs
import orjson
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override
from cattrs.preconf.orjson import make_converter

from streamer.protocol import messages
from streamer.protocol.errors import ErrorCode, InvalidPublicationError, ProtocolError
from streamer.protocol.shapes import fits
from streamer.protocol.topics import Kind

_SERVER_ONLY: Final = frozenset({"previous", "snapshot"})
RESERVED: Final = _SERVER_ONLY | {"sequence", "epoch"}
"""Members of a data message that are the server's; a producer may give a whole position, though."""

_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)"
    r"(\.\d+)?([Zz]|[+-]\d\d:\d\d)?",
    re.ASCII,
)

StructureHook = Callable[[Any, Any], Any]

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
    structure_item = converter.get_structure_hook(item_type)

    def structure(value: object, _type: object) -> Any:
        # A str is a sequence too, and would be taken apart into its characters.
        if type(value) is not list:
            raise ValueError(f"expected a list, got {_name(type(value))}")
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
    """Name what is no object; cattrs would index it and report how that failed."""
    structure_object = make_dict_structure_fn(model, converter)

    def structure(value: object, _type: object) -> Any:
        if type(value) is not dict:
            raise ValueError(f"expected an object, got {_name(type(value))}")
        return structure_object(value, model)

    return structure


def _unstructure_hook(model: type[Any], converter: cattrs.Converter) -> Any:
    """Say a message's type, and leave out a field that is None where None is its default."""
    unstructure_fields = make_dict_unstructure_fn(
        model,
        converter,
        **{  # type: ignore[arg-type]  # the stub takes the overrides for its own flags
            field.name: override(omit_if_default=True)
            for field in attrs.fields(model)
            if field.default is None
        },
    )
    own = {"type": model.type} if hasattr(model, "type") else {}
    return lambda message: own | unstructure_fields(message)


def _make_converter() -> cattrs.Converter:
    converter = make_converter()
    for scalar in (str, bool, int):
        converter.register_structure_hook(scalar, _strict(scalar))
    converter.register_structure_hook(float, _strict(int, float))
    # The hook of `str` serves its subclasses, too, and would take any string for an enum.
    converter.register_structure_hook(enum.StrEnum, _member)
    for identifier in (str | int, str | int | None):
        converter.register_structure_hook_func(
            partial(operator.eq, identifier), _strict(*get_args(identifier))
        )
    for generic, factory in ((Sequence, _sequence_hook), (Mapping, _mapping_hook)):
        converter.register_structure_hook_factory(partial(_is_generic, generic), factory)
    converter.register_structure_hook_factory(attrs.has, _object_hook)
    converter.register_unstructure_hook_factory(attrs.has, _unstructure_hook)
    return converter


CONVERTER: Final = _make_converter()
"""The one converter. It explains what is wrong, field by field."""


def utc_timestamp(moment: datetime | None = None) -> str:
    """RFC 3339 in UTC with `Z` and milliseconds; now, unless a moment is given."""
    moment = datetime.now(UTC) if moment is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def explain(error: BaseException) -> list[str]:
    """What is wrong, a line for each field: `$.price: expected int or float, got str`."""

    def describe(exception: BaseException, _type: type[Any] | None) -> str:
        if isinstance(exception, KeyError):
            return "required field missing"
        return str(exception) if isinstance(exception, ValueError) else repr(exception)

    lines = cattrs.transform_error(error, format_exception=describe)
    return [": ".join(reversed(line.rsplit(" @ ", 1))) for line in lines]


# Client messages


def decode_client(text: str | bytes) -> messages.ClientMessage:
    """Read what a client sent.

    Raises ProtocolError with the code, the reason and, where it could be read, the request_id.
    """
    try:
        decoded = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(ErrorCode.INVALID_JSON, f"not JSON: {error}") from None
    if type(decoded) is not dict:
        raise ProtocolError(
            ErrorCode.INVALID_MESSAGE,
            f"a message is a JSON object, not {type(decoded).__name__}",
        )
    request_id = _readable_request_id(decoded)
    if "type" not in decoded:
        raise ProtocolError(
            ErrorCode.MISSING_TYPE, "the message has no type", request_id=request_id
        )
    model = _CLIENT_TYPES.get(decoded["type"]) if type(decoded["type"]) is str else None
    if model is None:
        raise ProtocolError(
            ErrorCode.UNKNOWN_MESSAGE_TYPE,
            f"no client message has type {short(decoded['type'])}",
            details={"known": sorted(_CLIENT_TYPES)},
            request_id=request_id,
        )
    try:
        return CONVERTER.structure(decoded, model)
    except cattrs.BaseValidationError as error:
        reasons = explain(error)
        raise ProtocolError(
            ErrorCode.INVALID_MESSAGE,
            f"invalid {model.type}: {reasons[0]}",
            details={"errors": reasons[:10]},
            request_id=request_id,
        ) from None


def request_id_of(text: str | bytes) -> messages.RequestId | None:
    """The request_id of a message that is not carried out, if it can be read."""
    try:
        decoded = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return _readable_request_id(decoded) if type(decoded) is dict else None


def _readable_request_id(decoded: dict[str, object]) -> messages.RequestId | None:
    try:
        return CONVERTER.structure(decoded, messages.Ping).request_id
    except cattrs.BaseValidationError:
        return None


# Server messages


def encode(message: messages.ServerMessage | messages.ClientMessage, timestamp: str) -> bytes:
    """The JSON of a message of our own."""
    first = {"type": message.type, "timestamp": timestamp}
    return orjson.dumps(first | CONVERTER.unstructure(message))


def encode_request(message: messages.ClientMessage) -> str:
    """The JSON of a client message."""
    return orjson.dumps(CONVERTER.unstructure(message)).decode()


# Publications


_KEY_FIELDS: Final[Mapping[Kind, str]] = {
    Kind.PRICE: "stock_code",
    Kind.ORDERBOOK: "stock_code",
    Kind.STATUS: "market",
}
"""The field in which a data message names what its channel is about."""

_FITS: Final = {kind: fits(model) for kind, model in messages.DATA_MESSAGES.items()}


@attrs.frozen
class DecodedPublication:
    """A producer's message that fits its channel."""

    text: bytes
    """The JSON object as the client gets it; without `sequence` where `position` is None."""
    position: messages.Position | None
    """Where the producer placed it in the topic's stream; None: the server numbers it."""


def decode_publication(kind: Kind, key: str | None, raw: bytes) -> DecodedPublication:
    """Validate what a producer published on a channel of this kind.

    `key` is what the channel is about (the stock code, the market) where its messages must say the
    same; None where they may be about anything (a sector's stocks). A missing `type` or
    `timestamp` is filled in: the channel tells the one, the clock the other. A timestamp with
    another offset, or with none (it is UTC by contract), is rewritten in UTC.
    Raises InvalidPublicationError.
    """
    try:
        decoded = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidPublicationError(f"not JSON: {error}") from None
    if type(decoded) is not dict:
        raise InvalidPublicationError(f"not a JSON object but {type(decoded).__name__}")
    model = messages.DATA_MESSAGES[kind]
    named_type = decoded.get("type")
    if named_type != model.type and "type" in decoded:
        raise InvalidPublicationError(f"type {short(named_type)} where {model.type!r} belongs")
    if not _FITS[kind](decoded):
        try:
            CONVERTER.structure(decoded, model)
        except cattrs.BaseValidationError as error:
            raise InvalidPublicationError("; ".join(explain(error)[:3])) from None
    if key is not None and decoded[_KEY_FIELDS[kind]] != key:
        raise InvalidPublicationError(
            f"{_KEY_FIELDS[kind]} is {short(decoded[_KEY_FIELDS[kind]])} on the channel of {key!r}"
        )
    timestamp = decoded.get("timestamp")
    timestamp_in_utc = utc_timestamp() if timestamp is None else _in_utc(timestamp)
    position = _position(decoded)
    not_the_producers = RESERVED if position is None else _SERVER_ONLY
    # The usual case, complete and without such members, is forwarded as it came.
    if (
        timestamp_in_utc is timestamp
        and named_type is not None
        and not_the_producers.isdisjoint(decoded)
    ):
        return DecodedPublication(raw.strip(), position)
    dropped = not_the_producers | {"type", "timestamp"}
    # By name, so that of a member that is there twice the last stays: it is what was validated.
    members = {name: text for name, text in _members(raw.decode()) if name not in dropped}
    own = (f'"type":"{model.type}"', f'"timestamp":"{timestamp_in_utc}"')
    return DecodedPublication(f"{{{','.join((*own, *members.values()))}}}".encode(), position)


def _position(decoded: dict[str, Any]) -> messages.Position | None:
    epoch, sequence = decoded.get("epoch"), decoded.get("sequence")
    if type(epoch) is not str or type(sequence) is not int:
        return None
    if not sequence:
        raise InvalidPublicationError("sequence 0 is where a stream begins: the first one has 1")
    try:
        return messages.Position(epoch, sequence)
    except ValueError as error:
        raise InvalidPublicationError(str(error)) from None


def _in_utc(timestamp: str) -> str:
    """The timestamp itself where it is RFC 3339 in UTC with T and Z; else the moment, written so.

    A leap second (23:59:60) is refused, since hardly a client's date type could read it.
    """
    match = _RFC3339.fullmatch(timestamp)
    if match is None:
        raise InvalidPublicationError(f"timestamp {short(timestamp)} is not RFC 3339")
    try:
        if timestamp[10] == "T" and timestamp[-1] == "Z":
            datetime.fromisoformat(timestamp)
            return timestamp
        date, time, fraction, offset = match.groups(default="")
        is_utc = offset in {"", "Z", "z"}
        moment = datetime.fromisoformat(f"{date}T{time}{'+00:00' if is_utc else offset}")
        text = moment.astimezone(UTC).isoformat().removesuffix("+00:00")
    except (ValueError, OverflowError) as error:
        raise InvalidPublicationError(f"timestamp {short(timestamp)}: {error}") from None
    # An offset is whole minutes, so the fraction stays, with as many digits as the producer has.
    return f"{text}{fraction}Z"


_STRING: Final = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_TOKEN: Final = re.compile(_STRING + r"|[{}\[\],]")
_NAME: Final = re.compile(_STRING)


def _members(text: str) -> Iterator[tuple[str, str]]:
    """The members of a valid JSON object, each with its own text: `("price", '"price": 1.50')`.

    The scanner of `json` would find their ends, too, but recurses, and so fails on depths that
    orjson has let in.
    """
    depth = start = 0
    for token in _TOKEN.finditer(text):
        opens, closes = token[0] in "{[", token[0] in "}]"
        depth += opens - closes
        if opens and depth == 1:
            start = token.end()
        elif (depth == 1 and token[0] == ",") or depth == 0:
            member = text[start : token.start()].strip()
            if name := _NAME.match(member):  # else the object is empty
                yield orjson.loads(name[0]), member
            start = token.end()
