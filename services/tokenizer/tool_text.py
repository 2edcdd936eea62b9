"""Tools for models whose chat template knows none: told in the system message, called and answered in plain text.

The words are those of Hermes and Qwen, which most models have seen. It knows nothing of tokens.
"""

import json
from typing import Any

_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


def in_words(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same chat without tools, calls and answers of them as such."""
    told = [_without_calls(message) for message in messages]
    if tools:
        text = _BEFORE + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools) + _AFTER
        if told[0]["role"] in ("system", "developer"):
            told[0] = {**told[0], "content": f"{told[0]['content']}\n\n{text}"}
        else:
            told.insert(0, {"role": "system", "content": text})
    return _joined(told)


def _without_calls(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    written = [
        "<tool_call>\n" + json.dumps(call["function"], ensure_ascii=False, separators=(", ", ": ")) + "\n</tool_call>"
        for call in calls
    ]
    content = "\n".join([message["content"]] * bool(message["content"]) + written)
    return {"role": "assistant", "content": content}


def _joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers of several tools in a row as one message: many templates want the roles to take turns."""
    made: list[dict[str, Any]] = []
    for message in messages:
        is_answer = message["role"] == "user" and str(message["content"]).startswith("<tool_response>")
        if made and is_answer and made[-1]["role"] == "user" and str(made[-1]["content"]).startswith("<tool_response>"):
            made[-1] = {**made[-1], "content": f"{made[-1]['content']}\n{message['content']}"}
        else:
            made.append(message)
    return made
