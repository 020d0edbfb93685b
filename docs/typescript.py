"""TypeScript types of the messages that streamer.js gives out, made from the JSON Schema.

The types of the client itself are written by hand, in docs/templates/streamer.d.ts.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from streamer.protocol import messages, schema

_LINE_CHARACTERS = 96
_SCALARS = {
    "string": "string",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "object": "Record<string, unknown>",
    "null": "null",
}
_COUNTED = {"sequence", "previous"}
"""Numbers that the client counts with: they are numbers in every mode."""

CLIENT_GAP_REASONS = {
    "transport_changed": "A stream of server-sent events began, whatever the client held before.",
}
"""Reasons for a gap that streamer.js adds to those of the server."""


def declarations() -> str:
    """Return the enums, and an interface for each data message, for a gap and for their parts.

    The data messages have a type parameter N, the type of their numbers: number, or string if the
    client is asked to keep the digits.
    """
    definitions = schema.json_schema()["$defs"]
    data = [_name(option["$ref"]) for option in definitions["DataMessage"]["oneOf"]]
    generic = {*data, messages.PriceLevel.__name__}
    received = [messages.Position.__name__, messages.PriceLevel.__name__, *data]
    blocks = [_union(enum.__name__, definitions[enum.__name__]) for enum in schema.ENUMS]
    blocks.append(_client_gap_reasons())
    for name in (*received, messages.Gap.__name__):
        has_topic = name in data or name == messages.Gap.__name__
        blocks.append(_interface(name, definitions[name], generic, has_topic=has_topic))
    members = "".join(f"\n  | {name}<N>" for name in data)
    blocks.append(f"export type DataMessage<N = number> ={members};")
    return "\n\n".join(blocks)


def _client_gap_reasons() -> str:
    lines = ["/** Why the client itself announces a gap. */", "export type ClientGapReason ="]
    for reason, meaning in CLIENT_GAP_REASONS.items():
        lines += [*_comment(meaning, "  "), f'  | "{reason}"']
    return "\n".join(lines) + ";"


def _name(reference: str) -> str:
    return reference.rpartition("/")[2]


def _union(name: str, definition: schema.Schema) -> str:
    members = "".join(f'\n  | "{member}"' for member in definition["enum"])
    return "\n".join([*_comment(definition["description"]), f"export type {name} ={members};"])


def _interface(name: str, definition: schema.Schema, generic: set[str], *, has_topic: bool) -> str:
    parameter = "<N = number>" if name in generic else ""
    lines = [*_comment(definition["description"]), f"export interface {name}{parameter} {{"]
    for field, type_ in definition["properties"].items():
        lines += _comment(type_.get("description", ""), "  ")
        mark = "" if field in definition["required"] else "?"
        counted = field in _COUNTED or name not in generic
        shown = _type(type_, generic, number="number" if counted else "N")
        if shown == messages.GapReason.__name__:
            shown += " | ClientGapReason"
        lines.append(f"  {field}{mark}: {shown};")
    if has_topic:
        lines += [*_comment("TYPE:TARGET; the client adds it.", "  "), "  topic: Topic;"]
    return "\n".join([*lines, "}"])


def _type(definition: schema.Schema, generic: set[str], *, number: str) -> str:
    if "const" in definition:
        return f'"{definition["const"]}"'
    if "$ref" in definition:
        name = _name(definition["$ref"])
        return f"{name}<N>" if name in generic else name
    if "items" in definition:
        return f"{_type(definition['items'], generic, number=number)}[]"
    types = definition.get("type", [])
    names = [_SCALARS[type_] for type_ in ([types] if isinstance(types, str) else types)]
    return " | ".join(number if name == "number" else name for name in names) or "unknown"


def _comment(text: str, indent: str = "") -> Iterable[str]:
    paragraph = " ".join(text.split())
    if len(paragraph) + len(indent) <= _LINE_CHARACTERS - len("/**  */"):
        return [f"{indent}/** {paragraph} */"] if paragraph else []
    width = _LINE_CHARACTERS - len(indent) - len(" * ")
    lines = [f"{indent} * {line}" for line in textwrap.wrap(paragraph, width)]
    return [f"{indent}/**", *lines, f"{indent} */"]
