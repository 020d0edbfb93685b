"""Bytes <-> models, through one cattrs converter.

Structuring is strict: a number is a JSON number and a string a JSON string. The usual leniency
(`float("72500")`, `str(5)`) is how a wrong field passes every test and reaches a trader.

A publication is validated but never re-encoded: the producer's own bytes go to the client, so every
digit and every extra field is as it was written.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from json.decoder import scanstring  # type: ignore[attr-defined]  # public in CPython since 3.0
from typing import Any, Final, get_args, get_origin

import attrs
import cattrs
import orjson
from cattrs.gen import make_dict_unstructure_fn, override
from cattrs.preconf.orjson import make_converter

from streamer.protocol import messages
from streamer.protocol.errors import ErrorCode, InvalidPublicationError, ProtocolError
from streamer.protocol.topics import Kind

RESERVED: Final = frozenset({"sequence", "previous", "snapshot", "epoch"})
"""Members of a data message that only the server may write."""

_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?(?P<offset>[Zz]|[+-]\d\d:\d\d)?"
)

StructureHook = Callable[[Any, Any], Any]

_CLIENT_TYPES: Final = {model.type: model for model in messages.CLIENT_MESSAGES}


def _strict(*accepted: type) -> StructureHook:
    """A structure hook that takes these JSON types and converts nothing (True is not 1)."""
    expected = " or ".join(t.__name__ for t in accepted)

    def structure(value: object, _type: object) -> Any:
        if type(value) in accepted:
            return value
        raise ValueError(f"expected {expected}, got {type(value).__name__}")

    return structure


def _is_generic(generic: object, target: object) -> bool:
    return get_origin(target) is generic


def _sequence_hook(target: Any, converter: cattrs.BaseConverter) -> StructureHook:
    (item_type,) = get_args(target)
    structure_item = converter.get_structure_hook(item_type)

    def structure(value: object, _type: object) -> Any:
        # A str is a sequence too, and would be taken apart into its characters.
        if type(value) is not list:
            raise ValueError(f"expected a list, got {type(value).__name__}")
        return [structure_item(item, item_type) for item in value]

    return structure


def _mapping_hook(target: Any, converter: cattrs.BaseConverter) -> StructureHook:
    key_type, value_type = get_args(target)
    structure_key = converter.get_structure_hook(key_type)
    structure_value = converter.get_structure_hook(value_type)

    def structure(value: object, _type: object) -> Any:
        if type(value) is not dict:
            raise ValueError(f"expected an object, got {type(value).__name__}")
        return {
            structure_key(key, key_type): structure_value(item, value_type)
            for key, item in value.items()
        }

    return structure


def _unstructure_hook(model: type[Any], converter: cattrs.Converter) -> Any:
    """Leave out a field that is None where None is its default."""
    return make_dict_unstructure_fn(
        model,
        converter,
        **{  # type: ignore[arg-type]  # the stub takes the overrides for its own flags
            field.name: override(omit_if_default=True)
            for field in attrs.fields(model)
            if field.default is None
        },
    )


def _make_converter(*, detailed_validation: bool) -> cattrs.Converter:
    converter = make_converter(detailed_validation=detailed_validation)
    for accepted in ((str,), (bool,), (int,)):
        converter.register_structure_hook(accepted[0], _strict(*accepted))
    converter.register_structure_hook(float, _strict(int, float))
    for identifier in (str | int, str | int | None):
        converter.register_structure_hook_func(
            partial(operator.eq, identifier),
            _strict(*get_args(identifier)),
        )
    for generic, factory in ((Sequence, _sequence_hook), (Mapping, _mapping_hook)):
        converter.register_structure_hook_factory(partial(_is_generic, generic), factory)
    converter.register_unstructure_hook_factory(attrs.has, _unstructure_hook)
    return converter


CONVERTER: Final = _make_converter(detailed_validation=True)
"""The one converter. It explains what is wrong, field by field."""

_PUBLICATION_HOOKS: Final = {
    kind: _make_converter(detailed_validation=False).get_structure_hook(model)
    for kind, model in messages.DATA_MESSAGES.items()
}
"""The same rules without the explanation, which costs half as much again on the hot path: what
fails here goes through CONVERTER for its reason."""


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
            f"no client message has type {str(decoded['type'])[:64]!r}",
            details={"known": sorted(_CLIENT_TYPES)},
            request_id=request_id,
        )
    try:
        return CONVERTER.structure(decoded, model)
    except (cattrs.BaseValidationError, ValueError, TypeError) as error:
        reasons = explain(error)
        raise ProtocolError(
            ErrorCode.INVALID_MESSAGE,
            f"invalid {model.type}: {reasons[0]}",
            details={"errors": reasons[:10]},
            request_id=request_id,
        ) from None


def _readable_request_id(decoded: dict[str, object]) -> messages.RequestId | None:
    try:
        return CONVERTER.structure(decoded, messages.Ping).request_id
    except cattrs.BaseValidationError:
        return None


# Server messages


def encode(message: messages.ServerMessage | messages.ClientMessage, timestamp: str) -> bytes:
    """The JSON of a message of our own."""
    body = CONVERTER.unstructure(message)
    return orjson.dumps({"type": message.type, "timestamp": timestamp} | body)


def encode_request(message: messages.ClientMessage) -> str:
    """The JSON of a client message."""
    return orjson.dumps({"type": message.type} | CONVERTER.unstructure(message)).decode()


# Publications


_KEY_FIELDS: Final[Mapping[Kind, str]] = {
    Kind.PRICE: "stock_code",
    Kind.ORDERBOOK: "stock_code",
    Kind.STATUS: "market",
}
"""The field in which a data message names what its channel is about."""


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
        raise InvalidPublicationError(f"type {named_type!r} where {model.type!r} belongs")
    try:
        _PUBLICATION_HOOKS[kind](decoded, model)
    except Exception as error:  # noqa: BLE001 - without detailed validation cattrs lets any through
        raise InvalidPublicationError(_why_invalid(decoded, model, error)) from None
    if key is not None and decoded[_KEY_FIELDS[kind]] != key:
        raise InvalidPublicationError(
            f"{_KEY_FIELDS[kind]} is {decoded[_KEY_FIELDS[kind]]!r} on the channel of {key!r}"
        )
    timestamp = decoded.get("timestamp")
    timestamp_in_utc = utc_timestamp() if timestamp is None else _in_utc(timestamp)
    # The plain case, complete and without reserved members, is forwarded as it came.
    if timestamp_in_utc is timestamp and named_type is not None and RESERVED.isdisjoint(decoded):
        return DecodedPublication(raw.strip(), None)
    return _normalise(raw, decoded, model.type, timestamp_in_utc)


def _why_invalid(decoded: dict[str, Any], model: type[Any], error: Exception) -> str:
    try:
        CONVERTER.structure(decoded, model)
    except cattrs.BaseValidationError as detailed:
        return "; ".join(explain(detailed)[:3])
    return str(error)  # pragma: no cover - both converters have the same rules


def _in_utc(timestamp: str) -> str:
    """The timestamp itself where it is RFC 3339 in UTC with Z, else the same moment written so."""
    match = _RFC3339.fullmatch(timestamp)
    if match is None:
        raise InvalidPublicationError(f"timestamp {timestamp[:40]!r} is not RFC 3339")
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError as error:
        raise InvalidPublicationError(f"timestamp {timestamp!r}: {error}") from None
    if match["offset"] == "Z" and timestamp[10] == "T":
        return timestamp
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    text = moment.astimezone(UTC).isoformat().removesuffix("+00:00")
    return text + "Z"


def _normalise(
    raw: bytes, decoded: dict[str, Any], type_: str, timestamp: str
) -> DecodedPublication:
    """Write the members that are the server's; all others stay as the producer wrote them."""
    position = None
    drop = {"type", "timestamp", "previous", "snapshot"}
    epoch, sequence = decoded.get("epoch"), decoded.get("sequence")
    if type(epoch) is str and sequence is not None:
        position = messages.Position(epoch, sequence)
    else:
        drop |= {"epoch", "sequence"}
    members = [f'"type":"{type_}"', f'"timestamp":"{timestamp}"']
    members += [text for name, text in _members(raw.decode()) if name not in drop]
    return DecodedPublication(f"{{{','.join(members)}}}".encode(), position)


_WHITESPACE: Final = re.compile(r"[ \t\n\r]*")
_SCANNER: Final = json.JSONDecoder(parse_float=str, parse_int=str)


def _members(text: str) -> Iterator[tuple[str, str]]:
    """The members of a valid JSON object, each with its own text: `("price", '"price": 1.50')`."""

    def after_whitespace(index: int) -> int:
        match = _WHITESPACE.match(text, index)
        assert match is not None  # the pattern matches nothing, too
        return match.end()

    index = after_whitespace(text.index("{") + 1)
    while text[index] != "}":
        start = index
        name, index = scanstring(text, start + 1, True)
        index = after_whitespace(after_whitespace(index) + 1)
        _, index = _SCANNER.raw_decode(text, index)
        yield name, text[start:index]
        index = after_whitespace(index)
        if text[index] == ",":
            index = after_whitespace(index + 1)
