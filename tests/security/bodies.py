"""Every way to put the wrong kind of value into an endpoint's body, made from the types that read it, so that new fields join.

It knows msgspec's description of types, and nothing of what is answered.
"""

import copy
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

from services.router import schema
from services.router.app import ENDPOINTS, Handle

DEEP: list[Any] = []
for _ in range(40):
    DEEP = [DEEP]
ODD: tuple[Any, ...] = (None, True, 0, -1, 1.5, "", "x", [], {}, 2**64, DEEP)
DEEPEST = 5

# A body that each endpoint answers with few tokens. A new row of ENDPOINTS needs one here.
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "default", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
    "/v1/completions": {"model": "default", "prompt": "hi", "max_tokens": 1},
    "/v1/responses": {"model": "default", "input": "hi", "max_output_tokens": 1},
    "/v1/responses/input_tokens": {"model": "default", "input": "hi"},
    "/v1/messages": {"model": "default", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]},
    "/v1/messages/count_tokens": {"model": "default", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/embeddings": {"model": "default", "input": "hi"},
    "/v1/score": {"model": "default", "text_1": "a", "text_2": "b"},
    "/v1/rerank": {"model": "default", "query": "a", "documents": ["b"]},
    "/v2/rerank": {"model": "default", "query": "a", "documents": ["b"]},
    "/tokenize": {"model": "default", "prompt": "hi"},
    "/detokenize": {"model": "default", "tokens": [1, 2]},
    "/api/chat": {"model": "default", "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 1}},
    "/api/generate": {"model": "default", "prompt": "hi", "options": {"num_predict": 1}},
    "/api/embed": {"model": "default", "input": "hi"},
    "/api/show": {"model": "default"},
    "/": {"inputs": "hi", "parameters": {"max_new_tokens": 1}},
    "/generate": {"inputs": "hi", "parameters": {"max_new_tokens": 1}},
    "/generate_stream": {"inputs": "hi", "parameters": {"max_new_tokens": 1}},
    "/v1/batches": {"input_file_id": "file-none", "endpoint": "/v1/completions", "completion_window": "24h"},
}
# Members whose types say little: each value in them is replaced, one at a time.
ITEMS: list[dict[str, Any]] = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "x"},
    {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "x"}]},
]
PARAMETERS = {"type": "object", "properties": {"a": {"type": "string", "pattern": "a+"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "f", "description": "x", "parameters": PARAMETERS, "strict": True}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": PARAMETERS, "strict": True}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RICH: dict[str, list[dict[str, Any]]] = {
    "/v1/responses": [
        {"input": ITEMS},
        {"tools": [TOOL["function"] | {"type": "function"}], "text": {"format": {"type": "text"}}},
    ],
    "/v1/chat/completions": [
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"response_format": SCHEMA},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}, {"role": "assistant", "tool_calls": [CALL]}]},
    ],
}
# Those that read no JSON, and why.
NO_BODY = {
    "/v1/files": "a multipart form: test_transport.py",
    "/v1/batches/{batch_id}/cancel": "nothing is read",
    "/v1/responses/{response_id}/cancel": "nothing is read",
}
# What names something that is not there: 404.
NAMES = {"model", "name", "input_file_id", "previous_response_id"}
# What a module has of types that no caller sends.
OWN = {"TextDelta", "ChoiceEnd"}


def posts() -> list[str]:
    """Paths that take a JSON body."""
    return [path for path, methods in ENDPOINTS.items() if "POST" in methods and path not in NO_BODY]


def asking() -> list[str]:
    """Those of OpenAI's that ask a model for text."""
    return [path for path in posts() if path in ("/v1/chat/completions", "/v1/completions", "/v1/responses")]


def body_types(handle: Handle) -> list[type[msgspec.Struct]]:
    """The types of bodies that an endpoint reads: those in its module, or where the functions that it calls come from."""
    own = vars(sys.modules[handle.__module__])
    if found := _structs(own):
        return found
    homes = {
        each.__module__ for each in own.values() if callable(each) and getattr(each, "__module__", "").startswith("services.")
    }
    return [each for home in sorted(homes) for each in _structs(vars(sys.modules[home])) if each.__name__.endswith("Body")]


def _structs(names: dict[str, Any]) -> list[type[msgspec.Struct]]:
    structs = [each for each in names.values() if isinstance(each, type) and issubclass(each, msgspec.Struct)]
    return [each for each in structs if each is not msgspec.Struct and each.__name__ not in OWN]


def odd_bodies(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, body): the endpoint's good body with one value of another kind, at any depth."""
    good = GOOD[path]
    types = body_types(ENDPOINTS[path]["POST"])
    names = {field.encode_name for each in types for field in inspect.type_info(each).fields}  # type: ignore[union-attr]
    for each in types:
        names |= set(schema.REFUSED.get(each, ()))  # type: ignore[call-overload]
    for name in sorted(names | set(good)):
        for value in ODD:
            yield name, good | {name: value}
    for each in types:
        for field in inspect.type_info(each).fields:  # type: ignore[union-attr]
            for where, value in _odd(field.type, DEEPEST):
                yield f"{field.encode_name}{where}", good | {field.encode_name: value}
    for rich in RICH.get(path, []):
        for where, members in _replaced(rich):
            yield where, good | members


def _replaced(value: Any) -> Iterator[tuple[str, Any]]:
    """(where, copy of `value` with one value in it replaced)."""
    places = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for place, inner in places:
        for where, new in [*(("", odd) for odd in ODD), *_replaced(inner)]:
            copied = copy.copy(value)
            copied[place] = new
            yield f".{place}{where}", copied


def _odd(kind: inspect.Type, depth: int) -> Iterator[tuple[str, Any]]:
    """Values of about this type that hold something odd further inside."""
    if depth == 0:
        return
    if isinstance(kind, inspect.UnionType):
        for each in kind.types:
            yield from _odd(each, depth)
    elif isinstance(kind, inspect.ListType):
        for value in ODD:
            yield "[]", [value]
        yield from ((f"[]{where}", [value]) for where, value in _odd(kind.item_type, depth - 1))
    elif isinstance(kind, inspect.DictType):
        for value in ODD:
            yield "{}", {"x": value}
        yield from ((f"{{}}{where}", {"x": value}) for where, value in _odd(kind.value_type, depth - 1))
    elif isinstance(kind, inspect.StructType):
        whole = _sample(kind, DEEPEST)
        for field in kind.fields:
            for value in ODD:
                yield f".{field.encode_name}", whole | {field.encode_name: value}
            for where, value in _odd(field.type, depth - 1):
                yield f".{field.encode_name}{where}", whole | {field.encode_name: value}


def _sample(kind: inspect.Type, depth: int) -> Any:
    """Some value of this type; of an object the members that must be there, and the likely ones."""
    match kind:
        case inspect.UnionType():
            return _sample(next(each for each in kind.types if not isinstance(each, inspect.NoneType)), depth)
        case inspect.StructType():
            found = {field.encode_name: _sample(field.type, depth - 1) for field in kind.fields if field.required and depth}
            return LIKELY.get(kind.cls.__name__, {}) | found
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.ListType():
            return []
        case inspect.DictType():
            return {}
        case inspect.BoolType():
            return True
        case inspect.IntType() | inspect.FloatType():
            return 1
        case _:
            return "x"


LIKELY: dict[str, dict[str, Any]] = {"Message": {"role": "user", "content": "x"}, "Part": {"type": "text", "text": "x"}}
