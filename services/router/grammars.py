"""What a body asks its output to match, in OpenAI's words or vLLM's, as one grammar.

Whether the grammar can be followed is for the tokenizer to say. It knows nothing of tokens and of masks.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from services.router.schema import Body, ResponseFormat, StructuredOutputs
from services.router.structural_tags import lark_of_tags
from shared.errors import InvalidRequest
from shared.grammars import Grammar

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
MAX_CHOICES = 1024

_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


def grammar_of(body: Body) -> tuple[Grammar | None, str]:
    """The grammar of a body, and the name of the field that states it. Raises InvalidRequest."""
    answers, outputs = body.response_format, body.structured_outputs
    asked = [(grammar, name) for grammar, name in (_of_format(answers), _of_outputs(outputs)) if grammar is not None]
    if len(asked) > 1:
        raise InvalidRequest(
            "'response_format' and 'structured_outputs' both state a grammar; give one of them.",
            param="structured_outputs",
            code="invalid_value",
        )
    return asked[0] if asked else (None, "grammar")


def _of_format(given: ResponseFormat | None) -> tuple[Grammar | None, str]:
    name = "response_format"
    if given is None or given.type == "text":
        return None, name
    if given.type == "json_object":
        return schema_grammar(ANY_OBJECT), name
    if given.type == "structural_tag":
        return Grammar(
            "lark", lark_of_tags(_set(structures=given.structures, triggers=given.triggers, format=given.format), name)
        ), name
    if given.type == "json_schema":
        if given.json_schema is None:
            raise InvalidRequest(
                "Missing required parameter: 'response_format.json_schema'.",
                param="response_format.json_schema",
                code="missing_required_parameter",
            )
        schema = ANY_OBJECT if given.json_schema.schema is None else given.json_schema.schema
        options = {} if given.json_schema.strict else {"lenient": True}
        return schema_grammar(schema, **options), f"{name}.json_schema.schema"
    raise InvalidRequest(
        "Invalid 'response_format.type': must be text, json_object, json_schema or structural_tag.",
        param="response_format.type",
        code="invalid_value",
    )


def _of_outputs(given: StructuredOutputs | None) -> tuple[Grammar | None, str]:
    if given is None:
        return None, "structured_outputs"
    asked = _set(**{name: getattr(given, name) for name in _KINDS})
    if given.json_object is False:
        del asked["json_object"]
    if len(asked) > 1:
        raise InvalidRequest(
            f"'structured_outputs' takes one of {', '.join(_KINDS)}, not several.",
            param="structured_outputs",
            code="invalid_value",
        )
    if not asked:
        return None, "structured_outputs"
    ((kind, value),) = asked.items()
    name = f"structured_outputs.{kind}"
    layout = "" if given.disable_any_whitespace else given.whitespace_pattern
    match kind:
        case "json" | "json_object" if layout is not None:
            schema = ANY_OBJECT if kind == "json_object" else _object(value, name)
            return schema_grammar(schema, whitespace_pattern=layout), name
        case "json_object":
            return schema_grammar(ANY_OBJECT), name
        case "json":
            return (Grammar("json_schema", value) if isinstance(value, str) else schema_grammar(value)), name
        case "regex":
            return Grammar("regex", value), name
        case "choice":
            return choice_grammar(value, name), name
        case "structural_tag":
            return Grammar("lark", lark_of_tags(_object(value, name), name)), name
        case _:
            return Grammar("lark", value), name


def schema_grammar(schema: Mapping[str, Any], **options: Any) -> Grammar:
    """JSON texts that satisfy `schema`. options: what llguidance reads from "x-guidance", where the schema does not say more."""
    if options:
        given = schema.get("x-guidance")
        schema = {**schema, "x-guidance": options | (given if isinstance(given, dict) else {})}
    return Grammar("json_schema", json.dumps(schema, ensure_ascii=False, separators=(",", ":")))


def choice_grammar(choices: Sequence[str], name: str) -> Grammar:
    """Exactly one of these texts. Raises InvalidRequest."""
    if not choices:
        raise InvalidRequest(f"Invalid '{name}': must hold at least one text.", param=name, code="empty_array")
    if len(choices) > MAX_CHOICES:
        raise InvalidRequest(f"Invalid '{name}': at most {MAX_CHOICES} texts.", param=name, code="array_above_max_length")
    if "" in choices:
        raise InvalidRequest(f"Invalid '{name}': a text must not be empty.", param=name, code="empty_string")
    return Grammar("lark", "start: " + " | ".join(json.dumps(choice) for choice in choices))


def _object(value: str | Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A structural tag may come as the text of its JSON."""
    if not isinstance(value, str):
        return value
    try:
        made = json.loads(value)
    except (ValueError, RecursionError):
        made = None
    if type(made) is not dict:
        raise InvalidRequest(f"Invalid '{name}': must be a JSON object.", param=name, code="invalid_value")
    return made


def _set(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
