"""Other servers' words for what OpenAI's bodies say: bodies are translated, and errors name fields as they were written.

A dialect writes an OpenAI body as JSON and hands it to the one validator; so whatever that learns, every dialect can do.
It knows nothing of any one dialect.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from services.router.accept import Caller, chat_request, completion_requests
from services.router.front import Front
from services.router.request import GenerateRequest
from services.router.schema import ChatBody, CompletionBody, read
from shared.errors import RoadtrainError


@contextlib.contextmanager
def speaking(names: Mapping[str, str]) -> Iterator[None]:
    """Errors from within name fields in the dialect's words; `names` gives them by OpenAI's."""
    try:
        yield
    except RoadtrainError as error:
        if error.param is not None:
            stem, bracket, rest = error.param.partition("[")
            if (name := names.get(stem)) is not None:
                error.message = error.message.replace(f"'{error.param}'", f"'{name}{bracket}{rest}'")
                error.param = name + bracket + rest
        raise


def chat_of(value: Mapping[str, Any], caller: Caller) -> GenerateRequest:
    """The request that an OpenAI chat body makes; members that are None are left out. Raises InvalidRequest."""
    body, _ = read(_given(value), ChatBody)
    return chat_request(body, caller)


def completion_of(value: Mapping[str, Any], caller: Caller) -> GenerateRequest:
    """The same for a completion of one prompt."""
    body, _ = read(_given(value), CompletionBody)
    (request,) = completion_requests(body, caller)
    return request


def served_name(front: Front, model: str) -> str:
    """The name among those served that is meant: clients of Ollama add a tag."""
    names = front.plane.model.names
    return model.removesuffix(":latest") if model not in names else model


def _given(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given for name, given in value.items() if given is not None}
