"""The contract for programs: JSON Schema (2020-12) and AsyncAPI (3.0), made from the models.

Descriptions are the docstrings of the classes and of their attributes. The Schema says what a
receiver may rely on and what a sender has to write; what either adds beyond it is to be ignored.
"""

from __future__ import annotations

import ast
import enum
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

import attrs

from streamer.protocol import messages, topics
from streamer.protocol.endpoint import VERSION, WEBSOCKET_PATH
from streamer.protocol.errors import ErrorCode
from streamer.protocol.topics import KINDS

Schema = dict[str, Any]

ENUMS: Final[tuple[type[enum.StrEnum], ...]] = (
    topics.SubscriptionType,
    topics.Kind,
    messages.Mode,
    messages.MarketPhase,
    messages.Priority,
    messages.GapReason,
    messages.EndReason,
    ErrorCode,
)
PARTS: Final[tuple[type[Any], ...]] = (
    messages.Position,
    messages.RejectedTarget,
    messages.PriceLevel,
)
"""The objects inside messages."""

DATA_MESSAGES: Final = (*messages.DATA_MESSAGES.values(), *messages.DELTA_MESSAGES.values())
"""The messages of streams."""

ANSWERS: Final[Mapping[type[Any], type[Any]]] = {
    messages.Subscribe: messages.Subscribed,
    messages.Unsubscribe: messages.Unsubscribed,
    messages.Resync: messages.Resynced,
    messages.Ping: messages.Pong,
    messages.SetOptions: messages.ConnectionOptions,
    messages.Authenticate: messages.Authenticated,
    messages.RefreshToken: messages.TokenRefreshed,
    messages.Reconnect: messages.Reconnected,
}
"""The answer to each client message that succeeds; `error` answers those that do not."""

_SERVER_FIELDS: Final = {
    "timestamp": "RFC 3339, in UTC with Z.",
    "sequence": "Counts up by one for each publication of the topic within an epoch.",
    "previous": "The sequence that this message follows for this client, where that is not "
    "`sequence - 1`. The publications between were merged by policy or left out by `kinds`.",
    "snapshot": "true: the last known value, sent because a subscription began, or because "
    "the client asked for it (`resync`).",
}
_REQUEST_ID: Final = "Comes back in the answer: a string or an integer, of at most 64 characters."

_TARGET: Final = {"$ref": "#/$defs/Target"}
_TIMESTAMP: Final = {"type": "string", "format": "date-time", "pattern": "Z$"}

_BANDWIDTH: Final = {
    "anyOf": [
        {"type": "null"},
        {"const": 0},
        {"minimum": messages.MIN_BANDWIDTH, "maximum": messages.MAX_BANDWIDTH},
    ]
}

_BEYOND_ANNOTATIONS: Final[Mapping[tuple[type[Any], str], Schema]] = {
    (messages.Position, "epoch"): {"maxLength": messages.MAX_EPOCH_CHARACTERS},
    (messages.Position, "sequence"): {"minimum": 0, "exclusiveMaximum": messages.MAX_SEQUENCE},
    (messages.Subscribe, "targets"): {"items": _TARGET},
    (messages.Subscribe, "kinds"): {"minItems": 1},
    (messages.Subscribe, "max_rate"): {
        "minimum": messages.MIN_RATE,
        "maximum": messages.MAX_RATE,
    },
    (messages.Subscribe, "max_bandwidth"): _BANDWIDTH,
    (messages.Subscribe, "depth"): {"minimum": 1},
    (messages.SetOptions, "max_bandwidth"): _BANDWIDTH,
    (messages.Unsubscribe, "targets"): {"items": _TARGET},
    (messages.Resync, "targets"): {"items": _TARGET},
}
"""The constraints that the models' validators enforce; the codec's tests compare the two."""

_SUBSCRIBE_RULES: Final = [
    {
        "if": {"properties": {"mode": {"const": messages.Mode.ALL}}, "required": ["mode"]},
        "then": {"properties": {"max_rate": {"type": "null"}}},
    },
    *(
        {
            "if": {"properties": {"subscription_type": {"const": subscription_type}}},
            "then": {"properties": {"kinds": {"items": {"enum": list(kinds)}}}},
        }
        for subscription_type, kinds in KINDS.items()
    ),
]


def json_schema() -> Schema:
    """Return one document: each message under $defs by its class name, any message at the root."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"streamer protocol {VERSION}",
        "description": "Every message between a client and the server.",
        "oneOf": [_ref("ClientMessage"), _ref("ServerMessage")],
        "$defs": _definitions(),
    }


def async_api() -> Schema:
    """Return the AsyncAPI document; the application is the server, which receives requests."""
    client, server = _names(messages.CLIENT_MESSAGES), _names(messages.SERVER_MESSAGES)
    channel = {"$ref": "#/channels/v1"}
    answers = {request.type: answer.type for request, answer in ANSWERS.items()}
    requests = {
        type_: {
            "action": "receive",
            "channel": channel,
            "messages": [{"$ref": f"#/channels/v1/messages/{type_}"}],
            "reply": {
                "channel": channel,
                "messages": [
                    {"$ref": f"#/channels/v1/messages/{answer}"}
                    for answer in (answers[type_], messages.Error.type)
                ],
            },
        }
        for type_ in client
    }
    events = [type_ for type_ in server if type_ not in answers.values()]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "streamer",
            "version": str(VERSION),
            "description": "Market data over WebSocket: one JSON object per text message.",
        },
        "defaultContentType": "application/json",
        "servers": {"local": {"host": "localhost:8765", "protocol": "ws"}},
        "channels": {
            "v1": {
                "address": WEBSOCKET_PATH,
                "messages": {
                    type_: {"$ref": f"#/components/messages/{type_}"} for type_ in client | server
                },
                "bindings": {
                    "ws": {
                        "method": "GET",
                        "query": {
                            "type": "object",
                            "properties": {
                                "token": {"type": "string", "description": "A JWT."},
                                "session_id": {
                                    "type": "string",
                                    "description": "The session to be restored.",
                                },
                            },
                        },
                        "bindingVersion": "0.1.0",
                    }
                },
            }
        },
        "operations": requests
        | {
            "events": {
                "action": "send",
                "channel": channel,
                "messages": [{"$ref": f"#/channels/v1/messages/{type_}"} for type_ in events],
            }
        },
        "components": {
            "messages": {
                type_: {
                    "name": type_,
                    "summary": _summary(model),
                    "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
                }
                for type_, model in (client | server).items()
            },
            "schemas": _relocated(_definitions(), "#/$defs/", "#/components/schemas/"),
        },
    }


def field_descriptions(model: type[Any]) -> dict[str, str]:
    """Descriptions of a message's fields, for those whose name does not say it all."""
    common = {} if model in PARTS else {"request_id": _REQUEST_ID}
    if model in DATA_MESSAGES:
        common |= _SERVER_FIELDS
    return common | _attribute_docstrings(model)


def _definitions() -> dict[str, Schema]:
    unions = {
        "ClientMessage": messages.CLIENT_MESSAGES,
        "ServerMessage": messages.SERVER_MESSAGES,
        "DataMessage": DATA_MESSAGES,
    }
    return {
        **{
            name: {"oneOf": [_ref(m.__name__) for m in members]} for name, members in unions.items()
        },
        "Target": {
            "type": "string",
            "description": f"{topics.TARGET_RULE}, in NFC; the pattern takes somewhat more.",
            "maxLength": topics.MAX_TARGET_CHARACTERS,
            "pattern": topics.TARGET_PATTERN,
        },
        **{e.__name__: {"description": _summary(e), "enum": list(e)} for e in ENUMS},
        **{
            model.__name__: _object(model)
            for model in (*PARTS, *messages.CLIENT_MESSAGES, *messages.SERVER_MESSAGES)
        },
    }


def _object(model: type[Any]) -> Schema:
    hints = get_type_hints(model)
    descriptions = field_descriptions(model)
    from_server = model in messages.SERVER_MESSAGES
    properties: dict[str, Schema] = {}
    required = [f.name for f in attrs.fields(model) if f.default is attrs.NOTHING]
    if hasattr(model, "type"):
        properties["type"] = {"const": model.type}
        required.insert(0, "type")
    if from_server:
        properties["timestamp"] = _TIMESTAMP | {"description": _SERVER_FIELDS["timestamp"]}
        required.insert(1, "timestamp")
    for field in attrs.fields(model):
        if field.name in properties:
            continue
        # The server omits a field rather than write null; clients and producers may write null.
        schema = _type(hints[field.name], nullable=not from_server or field.name == "data")
        schema |= _BEYOND_ANNOTATIONS.get((model, field.name), {})
        if field.name == "request_id":
            schema["maxLength"] = messages.MAX_REQUEST_ID_CHARACTERS
        if field.default is not None and isinstance(field.default, str | bool):
            schema["default"] = field.default
        if description := descriptions.get(field.name):
            schema["description"] = description
        properties[field.name] = schema
    if "sequence" in properties and from_server and "sequence" not in required:
        required.append("sequence")
    rules = {"allOf": _SUBSCRIBE_RULES} if model is messages.Subscribe else {}
    return {
        "description": inspect.cleandoc(model.__doc__ or ""),
        "type": "object",
        "properties": properties,
        "required": required,
        **rules,
    }


_SCALARS: Final = {str: "string", int: "integer", float: "number", bool: "boolean"}


def _type(annotation: Any, *, nullable: bool) -> Schema:
    if annotation == messages.DataMessage:
        return _ref("DataMessage")
    options = get_args(annotation) if get_origin(annotation) is UnionType else (annotation,)
    schemas = [_plain_type(o, nullable=nullable) for o in options if o is not NoneType]
    if nullable and NoneType in options:
        schemas.append({"type": "null"})
    if len(schemas) == 1:
        return schemas[0]
    return schemas[0] | {"type": [schema["type"] for schema in schemas]}


def _plain_type(annotation: Any, *, nullable: bool) -> Schema:
    arguments = [_type(argument, nullable=nullable) for argument in get_args(annotation)]
    if get_origin(annotation) is Sequence:
        return {"type": "array", "items": arguments[0]}
    if get_origin(annotation) is Mapping:
        keys, values = arguments
        return {"type": "object", "propertyNames": keys, "additionalProperties": values}
    if annotation in _SCALARS:
        return {"type": _SCALARS[annotation]}
    return {} if annotation is Any else _ref(annotation.__name__)


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _names(models: Sequence[type[Any]]) -> dict[str, type[Any]]:
    return {model.type: model for model in models}


def _summary(model: type[Any]) -> str:
    return inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0]


def _relocated(schema: Any, old: str, new: str) -> Any:
    if isinstance(schema, dict):
        return {name: _relocated(value, old, new) for name, value in schema.items()}
    if isinstance(schema, list):
        return [_relocated(item, old, new) for item in schema]
    return schema.replace(old, new) if isinstance(schema, str) else schema


def _attribute_docstrings(model: type[Any]) -> dict[str, str]:
    """The strings below the fields of a class, which PEP 257 names but Python does not keep."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    docstrings = {}
    for above, below in zip(definition.body, definition.body[1:], strict=False):
        match above, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docstrings[name] = " ".join(text.split())
    return docstrings
