"""The messages of a chat: what every door accepts of roles, contents and calls, and how a body's message becomes the tokenizer's.

It knows nothing of templates, of sampling, nor of how a request goes on.
"""

import json

from services.router.schema import Message, Part
from shared.errors import InvalidRequest
from shared.pb import tokenizer_pb2

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGES = 2048


def check_chat(chat: tokenizer_pb2.Chat) -> None:
    """Roles, contents and flags of a chat. Raises InvalidRequest."""
    check_num_messages(len(chat.messages))
    for index, message in enumerate(chat.messages):
        _check_message(message, f"messages[{index}]")
    if chat.continue_final_message and chat.HasField("add_generation_prompt") and chat.add_generation_prompt:
        raise InvalidRequest(
            "'continue_final_message' goes on with the last message, 'add_generation_prompt' begins a new one; choose one.",
            param="continue_final_message",
            code="invalid_value",
        )


def check_num_messages(num_messages: int) -> None:
    """Raises InvalidRequest for none, and for too many."""
    if num_messages == 0:
        raise InvalidRequest("Invalid 'messages': must hold at least one message.", param="messages", code="empty_array")
    if num_messages > MAX_MESSAGES:
        raise InvalidRequest(
            f"Invalid 'messages': at most {MAX_MESSAGES} messages.", param="messages", code="array_above_max_length"
        )


def _check_message(message: tokenizer_pb2.ChatMessage, path: str) -> None:
    if message.role not in ROLES:
        raise InvalidRequest(
            f"Invalid '{path}.role': must be one of {', '.join(ROLES)}.", param=f"{path}.role", code="invalid_value"
        )
    if not message.HasField("content") and not (message.role == "assistant" and message.tool_calls):
        raise InvalidRequest(
            f"Missing '{path}.content': only an assistant's message that calls tools may be without.",
            param=f"{path}.content",
            code="missing_required_parameter",
        )
    if message.role == "tool" and not message.tool_call_id:
        raise InvalidRequest(
            f"Missing '{path}.tool_call_id': which call does this answer?",
            param=f"{path}.tool_call_id",
            code="missing_required_parameter",
        )
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequest(
            f"Invalid '{path}.tool_calls': only an assistant calls tools.", param=f"{path}.tool_calls", code="invalid_value"
        )
    for at, call in enumerate(message.tool_calls):
        _check_arguments(call.arguments_json, f"{path}.tool_calls[{at}].function.arguments")


def _check_arguments(text: str, param: str) -> None:
    # Templates parse them: what is no JSON object would fail there, less clearly.
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if type(value) is not dict:
        raise InvalidRequest(f"Invalid '{param}': must be the text of a JSON object.", param=param, code="invalid_value")


def chat_message(message: Message, index: int) -> tokenizer_pb2.ChatMessage:
    """A body's message as the tokenizer takes it. Raises InvalidRequest for what is not text."""
    path = f"messages[{index}]"
    for name in ("audio", "function_call"):
        if getattr(message, name) is not None:
            raise InvalidRequest(f"'{path}.{name}' is not supported.", param=f"{path}.{name}", code="unsupported_content")
    content = message.content
    if isinstance(content, list):
        content = "\n".join(_part_text(part, f"{path}.content[{at}]", message.role) for at, part in enumerate(content))
    if content is None and message.role == "assistant":
        content = message.refusal
    return tokenizer_pb2.ChatMessage(
        role=message.role,
        content=content,
        name=message.name or "",
        tool_calls=[
            tokenizer_pb2.ToolCall(id=call.id, name=call.function.name, arguments_json=call.function.arguments)
            for call in message.tool_calls or ()
        ],
        tool_call_id=message.tool_call_id or "",
    )


def _part_text(part: Part, path: str, role: str) -> str:
    text = part.refusal if part.type == "refusal" and role == "assistant" else part.text
    if part.type not in ("text", "refusal") or (part.type == "refusal" and role != "assistant"):
        raise InvalidRequest(f"Invalid '{path}': this model reads text only.", param=path, code="unsupported_content")
    if text is None:
        raise InvalidRequest(f"Missing '{path}.text'.", param=f"{path}.text", code="missing_required_parameter")
    return text
