"""The tools that a chat may call: what a body says of them, checked, as every door hands it on.

It knows nothing of how a model spells a call.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from shared.errors import InvalidRequest
from shared.pb import router_pb2

MAX_TOOLS = 128
MAX_DEPTH = 64

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})


class Function(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A function that the model may call; strict: its arguments must fit the schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    """One tool."""

    type: str
    function: Function | None = None


class FunctionName(msgspec.Struct, kw_only=True):
    """Which function."""

    name: str


class AllowedTools(msgspec.Struct, kw_only=True):
    """Some of the tools, and whether one of them must be called."""

    mode: str
    tools: list[Tool]


class ToolChoice(msgspec.Struct, kw_only=True):
    """A choice that is more than a word."""

    type: str
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What may be called, and must be. offered: what the model is told of; allowed: those of them that it may call now."""

    offered: tuple[Function, ...]
    allowed: tuple[Function, ...]
    required: bool = False
    one_call: bool = False

    def as_json(self) -> list[str]:
        """The offered ones as OpenAI's objects, as templates take them."""
        return [json.dumps({"type": "function", "function": msgspec.to_builtins(tool)}) for tool in self.offered]


def tool_use(tools: Sequence[Tool] | None, choice: str | ToolChoice | None, *, parallel: bool | None) -> ToolUse | None:
    """What a body's `tools`, `tool_choice` and `parallel_tool_calls` ask for; None: nothing. Raises InvalidRequest."""
    functions = _functions(tools or (), "tools")
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        raise _invalid("tool_choice", "must be 'none', 'auto', 'required' or an object that names a tool")
    if not functions:
        if choice not in (None, "none", "auto"):
            raise _invalid("tool_choice", "needs 'tools' to choose from")
        return None
    if choice == "none":
        return None
    one_call = parallel is False
    if isinstance(choice, ToolChoice):
        return _chosen(functions, choice, one_call=one_call)
    return ToolUse(functions, functions, required=choice == "required", one_call=one_call)


def proto_tool_use(message: router_pb2.ChatRequest) -> ToolUse | None:
    """The same of a gRPC message. Raises InvalidRequest."""
    tools = []
    for index, text in enumerate(message.chat.tools_json[: MAX_TOOLS + 1]):
        try:
            tools.append(msgspec.json.decode(text, type=Tool))
        except (msgspec.DecodeError, RecursionError):
            raise _invalid(f"tools_json[{index}]", "must be a JSON object of type 'function'") from None
    names, mode = message.tool_choice.names, message.tool_choice.mode
    choice: str | ToolChoice = mode or "auto"
    if names and choice != "none":
        named = [Tool(type="function", function=Function(name=name)) for name in names]
        choice = ToolChoice(type="allowed_tools", allowed_tools=AllowedTools(mode=mode or "auto", tools=named))
    parallel = message.parallel_tool_calls if message.HasField("parallel_tool_calls") else None
    return tool_use(tools, choice, parallel=parallel)


def _chosen(functions: tuple[Function, ...], choice: ToolChoice, *, one_call: bool) -> ToolUse:
    by_name = {function.name: function for function in functions}
    if choice.type == "function":
        if choice.function is None:
            raise _missing("tool_choice.function")
        if choice.function.name not in by_name:
            raise _invalid("tool_choice.function.name", "no tool of this name is in 'tools'")
        return ToolUse(functions, (by_name[choice.function.name],), required=True, one_call=True)
    if choice.type == "allowed_tools":
        allowed = choice.allowed_tools
        if allowed is None:
            raise _missing("tool_choice.allowed_tools")
        if allowed.mode not in ("auto", "required"):
            raise _invalid("tool_choice.allowed_tools.mode", "must be 'auto' or 'required'")
        where = "tool_choice.allowed_tools.tools"
        names = [function.name for function in _functions(allowed.tools, where)]
        if not names:
            raise InvalidRequest(f"Invalid '{where}': must hold at least one tool.", param=where, code="empty_array")
        for index, name in enumerate(names):
            if name not in by_name:
                raise _invalid(f"{where}[{index}].function.name", "no tool of this name is in 'tools'")
        chosen = tuple(by_name[name] for name in names)
        # A model that may not call the others is best not told of them.
        return ToolUse(chosen, chosen, required=allowed.mode == "required", one_call=one_call)
    if choice.type == "custom":
        raise _unsupported("tool_choice.type", "custom tools are not supported; give a function")
    raise _invalid("tool_choice.type", "must be 'function' or 'allowed_tools'")


def _functions(tools: Sequence[Tool], where: str) -> tuple[Function, ...]:
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"Invalid '{where}': at most {MAX_TOOLS} tools.", param=where, code="array_above_max_length")
    functions: dict[str, Function] = {}
    for index, tool in enumerate(tools):
        path = f"{where}[{index}]"
        if tool.type == "custom":
            raise _unsupported(f"{path}.type", "custom tools are not supported; give a function")
        if tool.type != "function":
            raise _invalid(f"{path}.type", "must be 'function'")
        function = tool.function
        if function is None:
            raise _missing(f"{path}.function")
        if not _NAME.fullmatch(function.name):
            raise _invalid(f"{path}.function.name", "must be 1 to 64 letters, digits, underscores and hyphens")
        if function.name in functions:
            raise _invalid(f"{path}.function.name", "two tools have this name")
        if function.parameters is not None:
            check_parameters(function.parameters, f"{path}.function.parameters")
        functions[function.name] = function
    return tuple(functions.values())


def check_parameters(schema: Mapping[str, Any], path: str) -> None:
    """Raises InvalidRequest for what is no schema of an object, as far as that can be seen without following it."""
    if schema and schema.get("type", "object") != "object":
        raise _schema(path, "its type must be 'object'")
    level: list[tuple[Any, str]] = [(schema, path)]
    for _ in range(MAX_DEPTH):
        level = [child for node, where in level for child in _children(node, where)]
        if not level:
            return
    raise _schema(path, f"it is nested deeper than {MAX_DEPTH} levels")


def _children(node: Any, path: str) -> list[tuple[Any, str]]:
    """The schemas inside the schema `node`. Raises InvalidRequest if it is none."""
    if type(node) is bool:
        return []
    if type(node) is not dict:
        raise _schema(path, "a schema must be an object or a boolean")
    kinds = node.get("type")
    if kinds is not None and not all(type(kind) is str and kind in _TYPES for kind in _listed(kinds)):
        raise _schema(f"{path}.type", f"must be one of {', '.join(sorted(_TYPES))}")
    for name, wanted in (("pattern", str), ("required", list), ("enum", list), ("format", str), ("$ref", str)):
        if name in node and type(node[name]) is not wanted:
            raise _schema(f"{path}.{name}", f"must be {'a list' if wanted is list else 'a string'}")
    if not all(type(name) is str for name in node.get("required", ())):
        raise _schema(f"{path}.required", "must hold strings")
    children = []
    for name in ("properties", "$defs", "definitions", "patternProperties"):
        inner = node.get(name, {})
        if type(inner) is not dict:
            raise _schema(f"{path}.{name}", "must be an object")
        children += [(child, f"{path}.{name}.{key[:64]}") for key, child in inner.items()]
    for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
        inner = node.get(name, [])
        if type(inner) is not list:
            raise _schema(f"{path}.{name}", "must be a list")
        children += [(child, f"{path}.{name}[{index}]") for index, child in enumerate(inner)]
    children += [(node[name], f"{path}.{name}") for name in ("items", "additionalProperties", "not") if name in node]
    return children


def _listed(value: Any) -> Sequence[Any]:
    return value if type(value) is list else (value,)


def _schema(path: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{path}': {what}.", param=path, code="invalid_json_schema")


def _invalid(path: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{path}': {what}.", param=path, code="invalid_value")


def _missing(path: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter")


def _unsupported(path: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{path}': {what}.", param=path, code="unsupported_parameter")
