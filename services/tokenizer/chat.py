"""Chats to token ids, by the model's own template, in which only the template can write a special token.

What users wrote must stay what it is: in every string of theirs a special token's spelling is replaced, before rendering,
by one character that occurs nowhere in the request; after rendering, special tokens that remain are the template's and
get their secret spelling (vocab.py), and only then does each stand-in turn back into what the user wrote.
Roles are not the users' text: they are one of five words. A template that cuts a message apart and glues the pieces
together could still make a special token of them; none we know does. It knows nothing of processes or of gRPC.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from services.tokenizer.formats import knows_tools, template_of
from services.tokenizer.template_variables import further_variables
from services.tokenizer.tool_text import in_words
from services.tokenizer.vocab import Vocabulary, pattern_of
from shared.errors import InvalidRequest
from shared.pb import tokenizer_pb2

ROLES = ("system", "developer", "user", "assistant", "tool")
_STAND_INS = range(0xF0000, 0xFFFFD)  # private use, plane 15

Render = Callable[[str, Mapping[str, Any]], str]


class ChatEncoder:
    """Encodes chats with `vocabulary`; `render(template name, variables)` makes the text."""

    def __init__(self, vocabulary: Vocabulary, render: Render):
        self._vocabulary = vocabulary
        self._render = render
        self._templates = vocabulary.source.templates
        self._specials = pattern_of(vocabulary.secret)

    def encode(self, chat: tokenizer_pb2.Chat) -> tuple["array[int]", bool]:
        """Token ids of the rendered chat, and whether it ends within reasoning that its template has opened.

        Raises InvalidRequest for what the template, or this model, cannot take.
        """
        text = self.text(chat)
        opened = text.rstrip().endswith(self._vocabulary.secret.get("<think>", "<think>"))
        return self._vocabulary.encode(text, add_special_tokens=False), opened

    def text(self, chat: tokenizer_pb2.Chat) -> str:
        """The rendered chat, the template's special tokens in their secret spelling."""
        if not self._templates:
            raise InvalidRequest("This model has no chat template; use completions instead.", param="messages")
        template = template_of(self._templates, with_tools=bool(chat.tools_json))
        written = _written_by_user(chat, self._templates[template])
        stand_ins = StandIns(self._specials, written)
        variables = stand_ins.put_in(written)
        variables["add_generation_prompt"] = _adds_prompt(chat)
        mark = ""
        if chat.continue_final_message:
            mark = stand_ins.unused()
            _mark_end(variables["messages"], mark)
        try:
            rendered = self._render(template, {**self._vocabulary.source.template_tokens, **variables})
        except InvalidRequest as error:
            raise InvalidRequest(stand_ins.take_out(error.message), param=error.param) from None
        if mark:
            rendered = _cut_at(rendered, mark)
        if self._specials is not None:
            rendered = self._specials.sub(lambda match: self._vocabulary.secret[match[0]], rendered)
        # A lone surrogate can come out of JSON, but is no text.
        return stand_ins.take_out(rendered).encode("utf-8", "replace").decode()


class StandIns:
    """Characters that stand for special tokens' spellings in one request."""

    def __init__(self, specials: re.Pattern[str] | None, written: Any):
        self._specials = specials
        texts = list(_strings(written))
        present = {letter for text in texts for letter in text if ord(letter) >= _STAND_INS.start}
        self._free = (chr(code) for code in _STAND_INS if chr(code) not in present)
        spelled = dict.fromkeys(match[0] for text in texts for match in specials.finditer(text)) if specials else {}
        self._by_spelling = {spelling: self.unused() for spelling in spelled}

    def unused(self) -> str:
        """A character that occurs nowhere in the request and stands for nothing yet."""
        for letter in self._free:
            return letter
        raise InvalidRequest("The messages use up all private-use characters.", param="messages")

    def put_in(self, value: Any) -> Any:
        """`value`, JSON-like, with stand-ins in its strings and keys."""
        if isinstance(value, str):
            if self._specials is None or not self._by_spelling:
                return value
            return self._specials.sub(lambda match: self._by_spelling[match[0]], value)
        if isinstance(value, list):
            return [self.put_in(item) for item in value]
        if isinstance(value, dict):
            return {self.put_in(key): self.put_in(item) for key, item in value.items()}
        return value

    def take_out(self, text: str) -> str:
        """`text` with what the stand-ins stand for, also where a template escaped them for JSON."""
        for spelling, letter in self._by_spelling.items():
            text = text.replace(letter, spelling).replace(json.dumps(letter)[1:-1], spelling)
        return text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)


def _written_by_user(chat: tokenizer_pb2.Chat, template: str) -> dict[str, Any]:
    """The template's variables that hold what the request said."""
    if not chat.messages:
        raise InvalidRequest("There must be at least one message.", param="messages", code="empty_array")
    messages = [_message(index, message) for index, message in enumerate(chat.messages)]
    if "developer" not in template:
        for message in messages:
            message["role"] = "system" if message["role"] == "developer" else message["role"]
    tools = [_json_object(tool, f"tools[{index}]") for index, tool in enumerate(chat.tools_json)]
    if not knows_tools(template):
        messages, tools = in_words(messages, tools), []
    return {**further_variables(chat, template), "messages": messages, "tools": tools or None}


def _message(index: int, message: tokenizer_pb2.ChatMessage) -> dict[str, Any]:
    where = f"messages[{index}]"
    if message.role not in ROLES:
        raise InvalidRequest(f"Invalid '{where}.role': must be one of {', '.join(ROLES)}.", param=f"{where}.role")
    made: dict[str, Any] = {"role": message.role, "content": message.content if message.HasField("content") else None}
    if message.name:
        made["name"] = message.name
    if message.tool_call_id:
        made["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": _json_object(call.arguments_json, f"{where}.tool_calls[{number}].function.arguments"),
                },
            }
            for number, call in enumerate(message.tool_calls)
        ]
    return made


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"Invalid '{where}': must be a JSON object.", param=where)
    return value


def _adds_prompt(chat: tokenizer_pb2.Chat) -> bool:
    if not chat.HasField("add_generation_prompt"):
        return not chat.continue_final_message
    if chat.add_generation_prompt and chat.continue_final_message:
        raise InvalidRequest(
            "add_generation_prompt and continue_final_message exclude each other.", param="continue_final_message"
        )
    return chat.add_generation_prompt


def _mark_end(messages: list[dict[str, Any]], mark: str) -> None:
    if not messages[-1]["content"]:
        raise InvalidRequest("The last message has no text to be continued.", param="continue_final_message")
    # The space tells whether the template trims what a message ends with.
    messages[-1]["content"] += mark + " "


def _cut_at(rendered: str, mark: str) -> str:
    before, found, after = rendered.rpartition(mark)
    if not found:
        raise InvalidRequest("The model's chat template leaves the last message out.", param="continue_final_message")
    return before if after.startswith(" ") else before.rstrip()
