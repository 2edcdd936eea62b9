"""The response object as it begins, and items as they are shown. It knows nothing of how a response goes on."""

from typing import Any

import msgspec

from services.router.generate import Generation
from services.router.responses.body import ResponsesBody
from services.router.responses.kept import PREFIX, Kept


def head_of(body: ResponsesBody, generation: Generation, status: str) -> dict[str, Any]:
    """The response before anything was said; what was not asked for is shown with its default."""
    text = (
        {} if body.text is None else {name: value for name, value in msgspec.to_builtins(body.text).items() if value is not None}
    )
    reasoning = body.reasoning or None
    return {
        "id": PREFIX + generation.rid,
        "object": "response",
        "created_at": generation.created,
        "completed_at": None,
        "status": status,
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": generation.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": reasoning and reasoning.effort, "summary": reasoning and reasoning.summary},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {"type": "text"}} | text,
        "tool_choice": body.tool_choice or "auto",
        "tools": [{"strict": None, "description": None} | tool for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def begun_again(kept: Kept) -> dict[str, Any]:
    """What is kept as it was in the beginning."""
    nothing: dict[str, Any] = {"completed_at": None, "error": None, "incomplete_details": None, "output": [], "usage": None}
    return kept.response | nothing | {"status": "in_progress"}


def item_shown(item: dict[str, Any], response_id: str, index: int) -> dict[str, Any]:
    """An item of the input with an id and its content in parts, as it is listed."""
    kind = item.get("type", "message")
    shown = {"id": f"{'msg' if kind == 'message' else 'item'}_{response_id.removeprefix(PREFIX)}_in{index}", "type": kind} | item
    content = shown.get("content")
    if kind == "message" and isinstance(content, str):
        part = {"type": "output_text", "annotations": []} if item.get("role") == "assistant" else {"type": "input_text"}
        shown["content"] = [part | {"text": content}]
    return shown
