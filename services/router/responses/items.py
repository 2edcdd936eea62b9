"""The items of a conversation as the messages of a chat: what users wrote, what the model said and called, what tools gave.

It knows nothing of where items come from, nor of templates.
"""

from typing import Any

from shared.errors import InvalidRequest

MAX_ITEMS = 2048
_ROLES = ("user", "system", "developer", "assistant")
_TEXTS = ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text")


def messages_of(items: list[dict[str, Any]], instructions: str | None) -> list[dict[str, Any]]:
    """The messages of a chat; instructions come first. Raises InvalidRequest naming the item."""
    if len(items) > MAX_ITEMS:
        raise InvalidRequest(f"Invalid 'input': at most {MAX_ITEMS} items.", param="input", code="array_above_max_length")
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    for index, item in enumerate(items):
        _add(messages, item, f"input[{index}]")
    return messages


def _add(messages: list[dict[str, Any]], item: dict[str, Any], path: str) -> None:
    match item.get("type", "message"):
        case "message":
            role = item.get("role")
            if role not in _ROLES:
                raise _invalid(f"{path}.role", f"must be one of {', '.join(_ROLES)}")
            messages.append({"role": role, "content": _text(item.get("content"), f"{path}.content")})
        case "function_call":
            call = {
                "id": _string(item, "call_id", path),
                "type": "function",
                "function": {"name": _string(item, "name", path), "arguments": _string(item, "arguments", path)},
            }
            # What the model said and called in one turn is one message.
            if messages and messages[-1]["role"] == "assistant":
                messages[-1].setdefault("tool_calls", []).append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        case "function_call_output":
            output = item.get("output")
            text = output if isinstance(output, str) else _text(output, f"{path}.output")
            messages.append({"role": "tool", "tool_call_id": _string(item, "call_id", path), "content": text})
        case "reasoning":
            # What was thought is not part of what was said; templates of reasoning models leave it out as well.
            pass
        case _:
            raise _invalid(
                f"{path}.type",
                "must be message, function_call, function_call_output or reasoning",
                "unsupported_content",
            )


def _text(content: Any, path: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _invalid(path, "must be a text or a list of parts")
    texts = []
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") not in _TEXTS:
            raise _invalid(f"{path}[{index}]", "this model reads text only", "unsupported_content")
        text = part.get("refusal" if part["type"] == "refusal" else "text")
        if not isinstance(text, str):
            raise _invalid(f"{path}[{index}].text", "must be a text")
        texts.append(text)
    return "\n".join(texts)


def _string(item: dict[str, Any], name: str, path: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise _invalid(f"{path}.{name}", "must be a text")
    return value


def _invalid(param: str, what: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': {what}.", param=param, code=code)
