"""Publications of producers: validated, and passed on as they wrote them.

A publication is never re-encoded: the producer's own bytes go to the client, so every digit and
every extra member is as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from reprlib import repr as short
from typing import Any, Final

import attrs
import cattrs
import orjson

from streamer.protocol import messages
from streamer.protocol.codec import CONVERTER, explain, utc_timestamp
from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.json_text import check_bounds, loads, split_members
from streamer.protocol.shapes import fits
from streamer.protocol.topics import Kind, SubscriptionType, is_target

MAX_DEPTH: Final = 32
"""Levels of lists and objects: parsers of clients have limits, the lowest usual one of 64, and a
batch adds two."""

MAX_NUMBER_CHARACTERS: Final = 1000
"""Characters of a number: the most that Jackson reads by default."""

MAX_EXPONENT: Final = 400
"""The exponent of a number, positive or negative. A larger one makes 0 or infinity as a double, and
hundreds of digits as a decimal."""

_SERVER_ONLY: Final = frozenset({"previous", "snapshot"})
_POSITION: Final = frozenset({"sequence", "epoch"})
_NAMING: Final = frozenset({"subscription_type", "target"})

_LOOKED_AT: Final = _SERVER_ONLY | _POSITION | _NAMING
_LOOKED_AT_BESIDE_POSITION: Final = _SERVER_ONLY | _NAMING
"""Members that may have to be removed if a producer writes them."""

_NOTHING: Final[frozenset[str]] = frozenset()

_TYPES: Final = frozenset(SubscriptionType)

_BOM: Final = b"\xef\xbb\xbf"
_NUMBER: Final = b"0123456789+-.eE"

# What these do not find needs no look at each token, which takes milliseconds for a large book.
# Text in strings, such as the name of a feed or an id in hex, is rarely like this.
_LONG_EXPONENT: Final = re.compile(rb"[eE](?<=[0-9].)[-+]?[0-9]{3,}(?=[],}\s])")
_LONG_NUMBER: Final = re.compile(rb"[:\[,\s][-0-9][-+.0-9eE]{%d}" % MAX_NUMBER_CHARACTERS)

# Only days 1 to 28, which every month has: such a date is valid without a look at the calendar.
_USUAL_UTC: Final = re.compile(
    r"(?!0000)\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])"
    r"T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?Z",
    re.ASCII,
)
_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)"
    r"(\.\d+)?([Zz]|[+-]\d\d:\d\d)?",
    re.ASCII,
)

_KEY_FIELDS: Final[Mapping[Kind, str]] = {
    Kind.PRICE: "stock_code",
    Kind.ORDERBOOK: "stock_code",
    Kind.STATUS: "market",
}
"""The field in which a data message names its channel's subject, such as the stock."""

_FLAT: Final = frozenset({Kind.PRICE, Kind.STATUS, Kind.NOTIFICATION})
"""Kinds whose messages have neither lists nor objects in them."""

_FITS: Final = {kind: fits(model) for kind, model in messages.DATA_MESSAGES.items()}


_CHANGES: Final = messages.OrderbookDelta
_CHANGES_FIT: Final = fits(_CHANGES)

KIND_OF_TYPE: Final[Mapping[str, Kind]] = {
    model.type: kind for kind, model in messages.DATA_MESSAGES.items()
} | {_CHANGES.type: Kind.ORDERBOOK}
"""The kind of channel for each type of message that producers may publish."""


class BookChange(bytes):
    """The text of an `orderbook_delta` of a producer: not yet a message for all clients."""

    __slots__ = ()


@attrs.define  # frozen would cost twice as much, for each publication
class DecodedPublication:
    """A producer's message that fits its channel."""

    text: bytes
    """The JSON object that clients receive; without `sequence` if `position` is None."""
    position: messages.Position | None
    """The position that the producer gave it; None: the server numbers it."""


def decode_publication(
    kind: Kind, key: str | None, raw: bytes, *, gets_position: bool = False
) -> DecodedPublication:
    """Validate a producer's publication on a channel of this kind.

    `key` is the channel's subject (the stock code, the market) that its messages must name; None if
    they may name others (a sector's stocks). A missing `type` is taken from the channel, a missing
    `timestamp` from the clock. A timestamp with another offset, or with none (it is UTC by
    contract), is rewritten in UTC. Members that only the server may write are removed; with
    `gets_position`, `epoch` is one of them, since the publisher adds a position. Raises
    InvalidPublicationError.
    """
    try:
        decoded = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raw = raw.removeprefix(_BOM)
        decoded = _load_leniently(raw, error)
    if type(decoded) is not dict:
        raise InvalidPublicationError(f"not a JSON object but {type(decoded).__name__}")
    named_type = decoded.get("type")
    model = _model(kind, named_type)
    present = _CHANGES_FIT(decoded) if model is _CHANGES else _FITS[kind](decoded)
    if not present:
        _check_fields(model, decoded, raw)
    # If it has only members of the model, besides type and an epoch that is a string, and each once
    # (as many commas as separate them), nothing can be nested, and a number other than 0 has not
    # underflowed.
    members = len(decoded)
    if (
        members > present + (named_type is not None) + (type(decoded.get("epoch")) is str)
        or raw.count(b",") != members - 1
        or kind not in _FLAT
        or len(raw) > MAX_NUMBER_CHARACTERS
    ):
        _check_suspicious(kind, decoded, raw)
    elif 0.0 in decoded.values() and _has_exponent(raw):
        _check_closely(raw.decode())
    if key is not None and decoded[_KEY_FIELDS[kind]] != key:
        raise InvalidPublicationError(
            f"{_KEY_FIELDS[kind]} is {short(decoded[_KEY_FIELDS[kind]])} on the channel of {key!r}"
        )
    timestamp = decoded.get("timestamp")
    timestamp_in_utc = utc_timestamp() if timestamp is None else _in_utc(timestamp)
    position = _position(decoded)
    looked_at = _LOOKED_AT if position is None else _LOOKED_AT_BESIDE_POSITION
    dropped = _NOTHING
    if not looked_at.isdisjoint(decoded):
        dropped = _dropped(kind, key, decoded, position, gets_position=gets_position)
    # The usual case: complete and without such members, it is forwarded unchanged.
    if timestamp_in_utc is timestamp and named_type is not None and not dropped:
        text = raw.strip()
        return DecodedPublication(BookChange(text) if model is _CHANGES else text, position)
    dropped |= {"type", "timestamp"}
    # By name: if a member occurs twice, the last one is kept, which is the one that was validated.
    kept = {name: text for name, text in split_members(raw.decode()) if name not in dropped}
    own = (f'"type":"{model.type}"', f'"timestamp":"{timestamp_in_utc}"')
    text = f"{{{','.join((*own, *kept.values()))}}}".encode()
    return DecodedPublication(BookChange(text) if model is _CHANGES else text, position)


def _model(kind: Kind, named_type: object) -> type[Any]:
    """Return the model of a message on a channel of this kind."""
    model = messages.DATA_MESSAGES[kind]
    if named_type == model.type or named_type is None:
        return model
    if named_type == _CHANGES.type and kind is Kind.ORDERBOOK:
        return _CHANGES
    raise InvalidPublicationError(f"type {short(named_type)} where {model.type!r} belongs")


def _load_leniently(raw: bytes, refusal: Exception) -> Any:
    """Parse JSON that orjson refuses: with a byte order mark before it or lone surrogates in it."""
    try:
        text = raw.decode()
        decoded = loads(text)
    except ValueError:
        raise InvalidPublicationError(f"not JSON: {refusal}") from None
    _check_closely(text)
    return decoded


def _check_fields(model: type[Any], decoded: dict[str, Any], raw: bytes) -> None:
    """Raise InvalidPublicationError, with the reasons, if an object does not fit the model."""
    try:
        CONVERTER.structure(decoded, model)
    except cattrs.BaseValidationError:
        # Once more with exact integers: orjson makes floats of those beyond 64 bits.
        try:
            CONVERTER.structure(loads(raw.decode()), model)
        except cattrs.BaseValidationError as error:
            raise InvalidPublicationError("; ".join(explain(error)[:3])) from None
        except ValueError as error:
            raise InvalidPublicationError(f"not JSON: {error}") from None


def _check_suspicious(kind: Kind, decoded: dict[str, Any], raw: bytes) -> None:
    """Check the bounds of depth and numbers, in full only if a cheap test does not rule it out."""
    depth = raw.count(b"{") + raw.count(b"[")
    if kind is Kind.ORDERBOOK:
        depth -= len(decoded["bids"]) + len(decoded["asks"])  # side by side, not nested
    if depth > MAX_DEPTH or _has_exponent(raw) or _has_long_number(raw):
        _check_closely(raw.decode())


def _has_exponent(raw: bytes) -> bool:
    """Whether a number may have a large exponent, but for one that needs no bound.

    With a large positive exponent, only a number that begins with a hundred zeros is not infinite
    to orjson, which refuses it: that is a usual number to any client.
    """
    if b"e-" in raw or b"0e" in raw or (b"E" in raw and (b"E-" in raw or b"0E" in raw)):
        return _LONG_EXPONENT.search(raw) is not None
    return False


def _has_long_number(raw: bytes) -> bool:
    """Whether there may be a number beyond the bound: a run so long covers a sampled byte."""
    for place in range(MAX_NUMBER_CHARACTERS, len(raw), MAX_NUMBER_CHARACTERS):
        if raw[place] in _NUMBER:
            before = raw[place - MAX_NUMBER_CHARACTERS : place]
            after = raw[place : place + MAX_NUMBER_CHARACTERS]
            run = len(before) - len(before.rstrip(_NUMBER))
            run += len(after) - len(after.lstrip(_NUMBER))
            if run > MAX_NUMBER_CHARACTERS:
                return _LONG_NUMBER.search(raw) is not None
    return False


def _check_closely(text: str) -> None:
    try:
        check_bounds(
            text,
            max_depth=MAX_DEPTH,
            max_number_characters=MAX_NUMBER_CHARACTERS,
            max_exponent=MAX_EXPONENT,
        )
    except ValueError as error:
        raise InvalidPublicationError(str(error)) from None


def _dropped(
    kind: Kind,
    key: str | None,
    decoded: dict[str, Any],
    position: messages.Position | None,
    *,
    gets_position: bool,
) -> frozenset[str]:
    """Return the producer's members that are not passed on.

    `epoch` without `sequence` is the producer's own member and passed on. So are
    `subscription_type` and `target` on the topic of a stock or a market, unless both together would
    name another topic.
    """
    dropped = _SERVER_ONLY
    if position is None:
        dropped |= _POSITION if gets_position else {"sequence"}
    if key is None or _names_another_topic(kind, key, decoded):
        dropped |= _NAMING
    return dropped & decoded.keys()


def _names_another_topic(kind: Kind, key: str, decoded: dict[str, Any]) -> bool:
    subscription_type, target = decoded.get("subscription_type"), decoded.get("target")
    if type(subscription_type) is not str or subscription_type not in _TYPES:
        return False
    own_type = SubscriptionType.MARKET if kind is Kind.STATUS else SubscriptionType.STOCK
    return is_target(target) and (subscription_type, target) != (own_type, key)


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
    """Return the timestamp as RFC 3339 in UTC with T and Z; unchanged if it is already.

    A leap second (23:59:60) is refused, since few date types of clients could read it.
    """
    if _USUAL_UTC.fullmatch(timestamp):
        return timestamp
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
    # An offset is whole minutes, so the fraction is unchanged, with the producer's digits.
    return f"{text}{fraction}Z"
