"""The description of the HTTP API as OpenAPI 3.1, made of the types that validate bodies and of the errors there are.

What types do not say stands in `BOUNDS`, with the constants that the validators use. It knows nothing of any one endpoint.
"""

from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from services.router.accept import MAX_BAND, MAX_SALT_CHARS
from services.router.chats import MAX_MESSAGES
from services.router.errors_http import style_of
from services.router.operations import Answer, Operation
from services.router.schema import REFUSED, Body
from shared.errors import MAPPING, MethodNotAllowed, RoadtrainError, TooLarge, UnsupportedMediaType
from shared.sampling import (
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_SEED,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MIN_SEED,
)

_TEMPLATE = "#/components/schemas/{name}"
_STOP = {"minLength": 1, "maxLength": MAX_STOP_CHARS}

# By field of a body: what shared/sampling.py and accept.py check and the types do not say.
BOUNDS: Mapping[str, Mapping[str, Any]] = {
    "model": {"minLength": 1},
    "messages": {"minItems": 1, "maxItems": MAX_MESSAGES},
    "temperature": {"minimum": 0, "maximum": 2},
    "top_p": {"minimum": 0, "maximum": 1},
    "min_p": {"minimum": 0, "maximum": 1},
    "top_k": {"minimum": -1},
    "presence_penalty": {"minimum": -2, "maximum": 2},
    "frequency_penalty": {"minimum": -2, "maximum": 2},
    "repetition_penalty": {"exclusiveMinimum": 0, "maximum": 10},
    "n": {"minimum": 1, "maximum": MAX_N},
    "best_of": {"minimum": 1, "maximum": MAX_N},
    "seed": {"minimum": MIN_SEED, "maximum": MAX_SEED},
    "min_tokens": {"minimum": 0},
    "top_logprobs": {"minimum": 0, "maximum": MAX_LOGPROBS},
    "prompt_logprobs": {"minimum": 0, "maximum": MAX_LOGPROBS},
    "priority": {"minimum": 0, "maximum": MAX_BAND},
    "cache_salt": {"maxLength": MAX_SALT_CHARS},
    "stop_token_ids": {"maxItems": MAX_STOP_TOKEN_IDS},
    "logit_bias": {
        "maxProperties": MAX_LOGIT_BIAS,
        "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,8})$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    },
}


def description(operations: Mapping[str, Operation], version: str) -> dict[str, Any]:
    """The document. Raises ValueError if two different types have one name."""
    types = _types(operations)
    _, components = msgspec.json.schema_components(types, ref_template=_TEMPLATE)
    for one in types:
        if isinstance(one, type) and issubclass(one, Body):
            _complete(components[one.__name__], one)
    paths: dict[str, dict[str, Any]] = {}
    for key, operation in operations.items():
        method, _, path = key.partition(" ")
        paths.setdefault(path, {})[method.lower()] = _operation(key, operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Roadtrain", "version": version, "description": "Serves large language models."},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
    }


def _types(operations: Mapping[str, Operation]) -> list[Answer]:
    found: dict[Answer, None] = {}
    for operation in operations.values():
        found |= dict.fromkeys(
            one for one in (*operation.bodies, operation.answer, operation.events, operation.error) if one is not None
        )
    return list(found)


def _complete(schema: dict[str, Any], body: type[Body]) -> None:
    """What is checked beyond types, and the fields that are known only to be refused."""
    properties: dict[str, Any] = schema["properties"]
    for name, bounds in BOUNDS.items():
        for one in _not_null(properties.get(name, {})):
            one.update(bounds)
    for one in _not_null(properties.get("stop", {})):
        one.update(_STOP if one["type"] == "string" else {"maxItems": MAX_STOP_STRINGS})
        if one["type"] == "array":
            one["items"] = {"type": "string", **_STOP}
    for name, neutral in REFUSED.get(body, {}).items():
        properties[name] = {"enum": [None, *neutral], "description": "Not supported: other values are refused."}


def _not_null(schema: dict[str, Any]) -> list[dict[str, Any]]:
    alternatives: list[dict[str, Any]] = schema.get("anyOf", [schema] if schema else [])
    return [one for one in alternatives if one.get("type") not in (None, "null") or "type" not in one]


def _operation(key: str, operation: Operation) -> dict[str, Any]:
    made: dict[str, Any] = {"summary": operation.summary, "operationId": key, "responses": _responses(key, operation)}
    if operation.public:
        made["security"] = []
    if operation.bodies:
        refs = [_ref(body) for body in operation.bodies]
        schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if operation.form:
        form = {"type": "object", "properties": dict(operation.form), "required": list(operation.form)}
        made["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    parameters = [_parameter(name, "path", text) for name, text in operation.path.items()]
    parameters += [_parameter(name, "query", text) for name, text in operation.query.items()]
    if parameters:
        made["parameters"] = parameters
    return made


def _parameter(name: str, place: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "description": text, "schema": {"type": "string"}}


def _responses(key: str, operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.answer is not None:
        content[operation.media_type] = {"schema": _ref(operation.answer)}
    elif operation.events is None:
        content[operation.media_type] = {"schema": {"type": "string"}}
    if operation.events is not None:
        # OpenAPI 3.1 has no words for streams, and readers take a schema for each event's: what one holds is said beside it.
        content[operation.stream_media_type] = {"x-event": _ref(operation.events)}
    responses: dict[str, Any] = {"200": {"description": operation.summary, "content": content}}
    error = {"application/json": {"schema": _ref(operation.error)}}
    statuses = style_of(key.partition(" ")[2]).statuses
    for kind, mapped in MAPPING.items():
        if _possible(kind, operation):
            status = str(statuses.get(mapped.http_status, mapped.http_status))
            responses.setdefault(status, {"description": _first_line(kind), "content": error})
    responses["431"] = {"description": "Headers over the limit.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return responses


def _possible(kind: type[RoadtrainError], operation: Operation) -> bool:
    """Whether such an error can come of it: those of bodies need one; of two with a status the general one is shown."""
    if kind in (TooLarge, UnsupportedMediaType):
        return bool(operation.bodies or operation.form)
    return kind is not MethodNotAllowed and kind.__bases__[0] is RoadtrainError


def _first_line(kind: type[RoadtrainError]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _ref(one: Answer) -> dict[str, Any]:
    if (items := get_args(one)) != ():
        return {"type": "array", "items": _ref(items[0])}
    return {"$ref": _TEMPLATE.format(name=one.__name__)}
