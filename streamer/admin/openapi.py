"""The OpenAPI document of the operator's API, made from its models."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

import attrs

from streamer.admin.models import REQUESTS
from streamer.protocol.schema import field_descriptions

Schema = dict[str, Any]

_SCALARS: Final = {str: "string", int: "integer", float: "number", bool: "boolean"}

_STATUSES: Final[Mapping[int, str]] = {
    400: "The body is not JSON.",
    401: "There is no key.",
    403: "The key is wrong; the answer takes a second.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    422: "A field is wrong: `fields` says which, and why.",
    429: "Too many wrong keys at a time.",
    503: "Redis cannot be reached; beside `error` is what was done on this process.",
}
"""The statuses of errors, of every endpoint."""


def open_api() -> Schema:
    """Return the document (OpenAPI 3.1)."""
    models = [model for pair in REQUESTS.values() for model in pair]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "streamer: the operator's API",
            "version": "1",
            "description": "Requests that act on all server processes of one Redis.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "http://127.0.0.1:8766"}],
        "security": [{"key": []}],
        "paths": {f"/v1/api/{name}": _path(name, *pair) for name, pair in REQUESTS.items()},
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key of the file that `api_key_file` names.",
                }
            },
            "schemas": {
                "Error": {
                    "description": "Why a request was not carried out, or not everywhere.",
                    "type": "object",
                    "properties": {
                        "error": {"type": "string"},
                        "fields": {
                            "type": "object",
                            "additionalProperties": {"type": "string"},
                            "description": "What is wrong with each wrong field.",
                        },
                    },
                    "required": ["error"],
                },
                **_all_schemas(models),
            },
        },
    }


def _path(name: str, request: type[Any], answer: type[Any]) -> Schema:
    responses = {
        str(status): {"description": text, "content": _content("Error")}
        for status, text in _STATUSES.items()
    }
    description = inspect.cleandoc(request.__doc__ or "")
    return {
        "post": {
            "operationId": name,
            "summary": description.partition("\n\n")[0],
            "requestBody": {"required": True, "content": _content(request.__name__)},
            "responses": {
                "200": {
                    "description": inspect.cleandoc(answer.__doc__ or ""),
                    "content": _content(answer.__name__),
                },
                **responses,
            },
        }
    }


def _content(name: str) -> Schema:
    return {"application/json": {"schema": _ref(name)}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _all_schemas(models: Sequence[type[Any]]) -> dict[str, Schema]:
    """Return the schemas of models, and of what they refer to."""
    schemas: dict[str, Schema] = {}
    waiting = list(models)
    while waiting:
        model = waiting.pop(0)
        if model.__name__ in schemas:
            continue
        if issubclass(model, enum.Enum):
            schemas[model.__name__] = {"type": "string", "enum": [str(one.value) for one in model]}
            continue
        schemas[model.__name__] = _object(model)
        for hint in get_type_hints(model).values():
            waiting += [part for part in _parts(hint) if _is_named(part)]
    return schemas


def _parts(hint: Any) -> list[Any]:
    return [part for one in get_args(hint) for part in _parts(one)] or [hint]


def _is_named(hint: Any) -> bool:
    return inspect.isclass(hint) and (attrs.has(hint) or issubclass(hint, enum.Enum))


def _object(model: type[Any]) -> Schema:
    hints = get_type_hints(model)
    descriptions = field_descriptions(model)
    is_request = model in {request for request, _ in REQUESTS.values()}
    properties: dict[str, Schema] = {}
    for field in attrs.fields(model):
        schema = _type(hints[field.name]) | field.metadata.get("schema", {})
        if field.default is not attrs.NOTHING and field.default is not None:
            schema["default"] = field.default
        if description := descriptions.get(field.name):
            schema["description"] = description
        properties[field.name] = schema
    required = [f.name for f in attrs.fields(model) if f.default is attrs.NOTHING]
    schema = {
        "description": inspect.cleandoc(model.__doc__ or ""),
        "type": "object",
        "properties": properties,
    }
    if required:
        schema["required"] = required
    if is_request:
        schema["additionalProperties"] = False
    if one_of := getattr(model, "one_of", ()):
        # Not only present: null counts as absent.
        schema["oneOf"] = [
            {"properties": {name: {"type": "string"}}, "required": [name]} for name in one_of
        ]
    return schema


def _type(hint: Any) -> Schema:
    if get_origin(hint) is UnionType:
        options = [_type(option) for option in get_args(hint) if option is not NoneType]
        if any("$ref" in option for option in options):
            return {"anyOf": [*options, {"type": "null"}]}
        return options[0] | {"type": [*(option["type"] for option in options), "null"]}
    arguments = [_type(argument) for argument in get_args(hint)]
    if get_origin(hint) is Sequence:
        return {"type": "array", "items": arguments[0]}
    if get_origin(hint) is Mapping:
        return {"type": "object", "additionalProperties": arguments[1]}
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    return {} if hint is Any else _ref(hint.__name__)
