"""Write docs/reference and the types of streamer.js from the models: `python -m docs.generate`.

The prose is in docs/templates; the tables are made from the models and settings that the server
uses. Tests fail if what was written is out of date.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import Any

import attrs

from docs import typescript, vectors
from streamer.admin.openapi import open_api
from streamer.cli.errors import ExitCode
from streamer.config import Settings
from streamer.edge.http_query import MAX_HISTORY_MESSAGES, MAX_STREAM_TOPICS
from streamer.edge.http_reads import MAX_BODY_BYTES
from streamer.protocol import messages, publications, schema
from streamer.protocol.endpoint import (
    HISTORY_PATH,
    SNAPSHOT_PATH,
    STREAM_PATH,
    VERSION,
    WEBSOCKET_PATH,
)
from streamer.protocol.errors import CLOSE_REASONS, ERROR_MEANINGS, ErrorCode
from streamer.protocol.topics import KINDS, TARGET_RULE, Topic
from streamer.wire.cursor import MAX_CURSOR_BYTES

DOCS = Path(__file__).parent
REFERENCE = DOCS / "reference"
TYPES = DOCS.parent / "streamer" / "web" / "streamer.d.ts"

CLIENT_SETTINGS = (
    "max_message_bytes",
    "max_targets_per_request",
    "max_subscriptions",
    "max_book_levels",
    "rate_limit",
    "rate_limit_burst",
    "rate_limit_max_violations",
    "max_connections_per_address",
    "max_connections",
    "handshake_timeout_seconds",
    "flush_interval_ms",
    "stretch_limit_ms",
    "max_outbound_bytes",
    "max_unread_replies_bytes",
    "heartbeat_interval_seconds",
    "heartbeat_timeout_seconds",
    "auth_timeout_seconds",
    "auth_grace_seconds",
    "session_lifetime_seconds",
    "history_length",
    "history_seconds",
)
"""The settings that a client notices."""


ENUMS = {e.__name__: e for e in schema.ENUMS if e is not ErrorCode}
"""Enums whose members are listed where they are used; error codes have a table of their own."""

TOLD_ONCE = {"type", "timestamp", "request_id"}
"""Fields that the template describes once for all messages."""


def references() -> dict[str, str]:
    """Return the text of each generated file, by its name in docs/reference."""
    template = Template((DOCS / "templates" / "protocol.md").read_text(encoding="utf-8"))
    return {
        "protocol.md": template.substitute(_tables()),
        "protocol.schema.json": _json(schema.json_schema()),
        "asyncapi.json": _json(schema.async_api()),
        "openapi.json": _json(open_api()),
        "settings.md": _settings_page(),
        "checksum.json": _json(vectors.as_json()),
    }


def types() -> str:
    """Return the text of streamer.d.ts."""
    template = Template((DOCS / "templates" / "streamer.d.ts").read_text(encoding="utf-8"))
    return template.substitute(messages=typescript.declarations())


def _json(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _tables() -> dict[str, str]:
    definitions = schema.json_schema()["$defs"]
    data = schema.DATA_MESSAGES
    answers = [m for m in messages.SERVER_MESSAGES if m not in data and m is not messages.Batch]

    def sections(models: Iterable[type[Any]]) -> str:
        return "\n\n".join(_section(model, definitions[model.__name__]) for model in models)

    return {
        "version": str(VERSION),
        "path": WEBSOCKET_PATH,
        "stream_path": STREAM_PATH,
        "snapshot_path": SNAPSHOT_PATH,
        "history_path": HISTORY_PATH,
        "max_stream_topics": str(MAX_STREAM_TOPICS),
        "max_cursor_bytes": str(MAX_CURSOR_BYTES),
        "max_history_messages": str(MAX_HISTORY_MESSAGES),
        "max_body_bytes": str(MAX_BODY_BYTES),
        "max_depth": str(publications.MAX_DEPTH),
        "max_number_characters": str(publications.MAX_NUMBER_CHARACTERS),
        "max_exponent": str(publications.MAX_EXPONENT),
        "target_rule": TARGET_RULE,
        "topics": _topics(),
        "client_messages": sections(messages.CLIENT_MESSAGES),
        "answers": sections(answers),
        "data_messages": sections((*data, messages.Batch)),
        "parts": sections(schema.PARTS),
        "errors": _table(
            ("code", "meaning"),
            ((f"`{code}`", meaning) for code, meaning in ERROR_MEANINGS.items()),
        ),
        "close_codes": _table(
            ("code", "reason in the frame", "meaning", "the client should"),
            ((str(c.code), c.reason, c.meaning, c.client_should) for c in CLOSE_REASONS),
        ),
        "checksums": _table(
            ("book", "text", "checksum"),
            ((v.name, f"`{v.text}`" if v.text else "", str(v.checksum)) for v in vectors.VECTORS),
        ),
        "settings": _settings(),
    } | {f"default_{name}": _default(name) for name in CLIENT_SETTINGS}


def _settings_page() -> str:
    """Return the page of all settings, in the groups of the command line's help."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    rows: list[tuple[str, ...]] = []
    for field in attrs.fields(Settings):
        if field.metadata["heading"]:
            rows = groups[field.metadata["heading"]] = []
        flag = f"`--{field.name.replace('_', '-')}`"
        names = f"`STREAMER_{field.name.upper()}`<br>`{field.name}`"
        default = _default_text(getattr(Settings(), field.name))
        rows.append((flag, names, default, field.metadata["help"]))
    header = ("flag", "variable and key", "default", "")
    codes = ((str(int(code)), code.explanation) for code in ExitCode)
    return Template((DOCS / "templates" / "settings.md").read_text(encoding="utf-8")).substitute(
        settings="\n\n".join(
            f"## {heading}\n\n{_table(header, rows)}" for heading, rows in groups.items()
        ),
        exit_codes=_table(("code", "meaning"), codes),
    )


def _default_text(default: object) -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(header), *map(tuple, rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _topics() -> str:
    rows = []
    for subscription_type, kinds in KINDS.items():
        channels = (Topic(subscription_type, "TARGET").channel(kind) for kind in kinds)
        carried = (f"`{messages.DATA_MESSAGES[kind].type}`" for kind in kinds)
        rows.append(
            (
                f"`{subscription_type}`",
                ", ".join(f"`{kind}`" for kind in kinds),
                ", ".join(f"`{channel}`" for channel in channels),
                ", ".join(carried),
            )
        )
    return _table(("subscription_type", "kinds", "Redis channels", "carries"), rows)


def _section(model: type[Any], definition: schema.Schema) -> str:
    title = f"`{model.type}`" if hasattr(model, "type") else model.__name__
    answer = schema.ANSWERS.get(model)
    description = definition["description"]
    if answer is not None and f"`{answer.type}`" not in description:
        description += f" Answered with `{answer.type}`."
    rows = [
        (
            f"`{name}`",
            _type_text(field),
            "yes" if name in definition["required"] else "",
            field.get("description", ""),
        )
        for name, field in definition["properties"].items()
        if name not in TOLD_ONCE
    ]
    table = "\n\n" + _table(("field", "type", "required", ""), rows) if rows else ""
    return f"### {title}\n\n{description}{table}"


def _type_text(field: schema.Schema) -> str:
    """Return a type in words: `array of PriceLevel`, `number above 0`, `latest, all`."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        text = ", ".join(f"`{member}`" for member in ENUMS.get(name, ())) or name
    else:
        types = field.get("type", "any")
        text = types if isinstance(types, str) else " or ".join(t for t in types if t != "null")
    if "items" in field:
        text += f" of {_type_text(field['items'])}"
    if field.get("additionalProperties"):
        text += f" of {_type_text(field['additionalProperties'])}"
    for keyword, words in (
        ("exclusiveMinimum", "above"),
        ("minimum", "from"),
        ("exclusiveMaximum", "below"),
        ("maxLength", "at most"),
    ):
        if keyword in field:
            text += f" {words} {field[keyword]}"
    if "maxLength" in field:
        text += " characters"
    if "default" in field:
        text += f" (default `{json.dumps(field['default']).strip(chr(34))}`)"
    return text


def _settings() -> str:
    fields = attrs.fields_dict(Settings)
    return _table(
        ("setting", "default", ""),
        ((f"`{name}`", _default(name), fields[name].metadata["help"]) for name in CLIENT_SETTINGS),
    )


def _default(name: str) -> str:
    return f"{getattr(Settings(), name):.10g}"


def main() -> None:
    """Write the files."""
    REFERENCE.mkdir(exist_ok=True)
    for name, text in references().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
    TYPES.write_text(types(), encoding="utf-8")


if __name__ == "__main__":
    main()
