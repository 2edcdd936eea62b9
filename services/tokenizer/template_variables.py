"""Variables that a request may set in a chat template: those of a fixed list that the model's template reads, and no others.

It knows nothing of what a template does with them.
"""

import json
import re
from typing import Any

from shared.errors import InvalidRequest
from shared.pb import tokenizer_pb2

# What the templates of known models call their switches.
ALLOWED = (
    "enable_thinking",
    "thinking",
    "thinking_budget",
    "reasoning_effort",
    "clear_thinking",
    "preserve_thinking",
    "keep_reasoning",
    "date_string",
    "model_identity",
    "custom_instructions",
    "tools_in_user_message",
)
MAX_CHARS = 1024
_OFF = ("none", "minimal")


def further_variables(chat: tokenizer_pb2.Chat, template: str) -> dict[str, Any]:
    """What the request sets besides messages and tools. Raises InvalidRequest."""
    readable = [name for name in ALLOWED if _reads(template, name)]
    variables: dict[str, Any] = {}
    effort = chat.reasoning_effort
    if effort:
        if "reasoning_effort" in readable:
            variables["reasoning_effort"] = effort
        variables |= {name: effort not in _OFF for name in ("enable_thinking", "thinking") if name in readable}
    if chat.template_kwargs_json:
        variables |= _checked(_json_object(chat.template_kwargs_json, "chat_template_kwargs"), readable)
    if chat.documents_json:
        if not _reads(template, "documents"):
            raise InvalidRequest(
                "This model's chat template reads no 'documents'; put them into a message.",
                param="documents",
                code="unsupported_parameter",
            )
        variables["documents"] = [_json_object(text, f"documents[{index}]") for index, text in enumerate(chat.documents_json)]
    return variables


def _reads(template: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", template) is not None


def _checked(given: dict[str, Any], readable: list[str]) -> dict[str, Any]:
    for name, value in given.items():
        where = f"chat_template_kwargs.{name[:64]}"
        if name not in readable:
            has = f"it reads {', '.join(readable)}" if readable else "it reads none"
            message = f"'{name[:64]}' is no variable of this model's chat template that a request may set; {has}."
            raise InvalidRequest(message, param=where, code="unsupported_parameter")
        if value is not None and not isinstance(value, bool | int | float | str):
            raise InvalidRequest(f"Invalid '{where}': must be a boolean, a number or a string.", param=where, code="invalid_type")
        if isinstance(value, str) and len(value) > MAX_CHARS:
            raise InvalidRequest(
                f"Invalid '{where}': at most {MAX_CHARS} characters.", param=where, code="string_above_max_length"
            )
    return given


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"Invalid '{where}': must be a JSON object.", param=where)
    return value
