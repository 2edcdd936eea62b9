"""From what a client sent to requests: the one validator of every door.

Bodies and gRPC messages become the same GenerateRequest here; ranges of sampling values are checked by the Generator,
which knows the model. Errors name a field as the client called it. It knows nothing of connections and answers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from services.router.auth import Identity
from services.router.chats import chat_message, check_chat, check_num_messages
from services.router.extras import check_best_of, extras_of
from services.router.generate import DEFAULT_BAND, GenerateRequest
from services.router.grammars import grammar_of
from services.router.prompts import check_text, prompts_of, unpack
from services.router.schema import Body, ChatBody, CompletionBody, StreamOptions
from services.router.tools import proto_tool_use, tool_use
from shared.errors import InvalidRequest
from shared.grammars import Grammar
from shared.pb import router_pb2, tokenizer_pb2, types_pb2
from shared.sampling import SamplingParams, from_proto

MAX_CHOICES = 1024
MAX_SALT_CHARS = 128
MAX_KEY_CHARS = 255
MAX_BAND = 9
DEFAULT_COMPLETION_TOKENS = 16

_SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "min_tokens",
    "ignore_eos",
    "n",
    "include_stop_str_in_output",
    "skip_special_tokens",
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what came beside the body. after: the id of the last event it got. band: whatever the body says."""

    identity: Identity
    idempotency_key: str | None
    deadline_ms: int
    trace: types_pb2.TraceContext
    after: str = ""
    band: int | None = None


def chat_request(body: ChatBody, caller: Caller) -> GenerateRequest:
    """The request that a chat body makes. Raises InvalidRequest."""
    _check_stream(body)
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise InvalidRequest(
            "'max_tokens' and 'max_completion_tokens' differ; give one of them.", param="max_tokens", code="invalid_value"
        )
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs", code="invalid_value")
    check_num_messages(len(body.messages))
    tools = tool_use(body.tools, body.tool_choice, parallel=body.parallel_tool_calls)
    chat = tokenizer_pb2.Chat(
        messages=[chat_message(message, index) for index, message in enumerate(body.messages)],
        tools_json=tools.as_json() if tools else (),
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=bool(body.continue_final_message),
        template_kwargs_json=json.dumps(body.chat_template_kwargs) if body.chat_template_kwargs else "",
        reasoning_effort=body.reasoning_effort or "",
        documents_json=map(json.dumps, body.documents or ()),
    )
    check_chat(chat)
    grammar, grammar_name = grammar_of(body)
    if tools is not None and tools.required:
        # A call is all that comes, and its grammar depends on the model.
        grammar, grammar_name = None, "tools"
    sampling = _sampling(
        body,
        grammar=grammar,
        max_tokens=limits.pop() if limits else None,
        num_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        num_prompt_logprobs=body.prompt_logprobs,
    )
    names = {
        "prompt": "messages",
        "max_tokens": "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens",
        "num_logprobs": "top_logprobs",
        "num_prompt_logprobs": "prompt_logprobs",
        "band": "priority",
        "grammar": grammar_name,
    }
    request = _request(body, chat, sampling, caller, names)
    return replace(request, tools=tools, hide_reasoning=body.include_reasoning is False)


def completion_requests(body: CompletionBody, caller: Caller) -> list[GenerateRequest]:
    """One request per prompt of a completions body. Raises InvalidRequest."""
    _check_stream(body)
    num_drawn = check_best_of(body)
    prompt_only = bool(body.echo) and body.max_tokens == 0
    # With echo the prompt's tokens are part of the answer, and so are their log-probabilities.
    prompt_logprobs = body.logprobs if body.echo and body.prompt_logprobs is None else body.prompt_logprobs
    grammar, grammar_name = grammar_of(body)
    sampling = _sampling(
        body,
        grammar=grammar,
        # Even of a prompt alone a worker computes what comes next.
        max_tokens=1 if prompt_only else DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens,
        # Which choices are the best is a matter of their log-probabilities.
        num_logprobs=0 if body.logprobs is None and num_drawn > (body.n or 1) else body.logprobs,
        num_prompt_logprobs=prompt_logprobs,
    )
    sampling = replace(sampling, n=num_drawn)
    prompts = prompts_of(body.prompt)
    if len(prompts) * sampling.n > MAX_CHOICES:
        raise InvalidRequest(f"Prompts times 'n' may be at most {MAX_CHOICES}.", param="n", code="integer_above_max_value")
    own = body.prompt_logprobs is not None
    names = {
        "num_logprobs": "logprobs",
        "num_prompt_logprobs": "prompt_logprobs" if own else "logprobs",
        "band": "priority",
        "n": "best_of" if num_drawn > (body.n or 1) else "n",
        "grammar": grammar_name,
    }
    requests = []
    for index, prompt in enumerate(prompts):
        key = caller.idempotency_key
        part = key if key is None or len(prompts) == 1 else f"{key}/{index}"
        requests.append(_request(body, prompt, sampling, caller, names, key=part))
    return requests


def proto_request(message: router_pb2.ChatRequest | router_pb2.CompleteRequest, caller: Caller) -> GenerateRequest:
    """The request that a gRPC message makes. Raises InvalidRequest."""
    options = message.options
    prompt: str | list[int] | tokenizer_pb2.Chat
    field, tools, hides = "text", None, False
    if isinstance(message, router_pb2.ChatRequest):
        field, prompt = "messages", tokenizer_pb2.Chat()
        prompt.CopyFrom(message.chat)
        check_chat(prompt)
        tools, hides = proto_tool_use(message), message.HasField("include_reasoning") and not message.include_reasoning
        prompt.tools_json[:] = tools.as_json() if tools else ()
    elif message.WhichOneof("prompt") == "token_ids":
        field, prompt = "token_ids", unpack(message.token_ids)
    else:
        prompt = message.text
        check_text(prompt, field)
    request = GenerateRequest(
        model=message.model,
        identity=caller.identity,
        prompt=prompt,
        sampling=from_proto(options.sampling),
        echo=isinstance(message, router_pb2.CompleteRequest) and message.echo,
        band=options.band if options.HasField("band") else DEFAULT_BAND,
        deadline_ms=caller.deadline_ms,
        cache_salt=options.cache_salt,
        idempotency_key=caller.idempotency_key,
        trace=caller.trace,
        names={"prompt": field},
        dialect="chat" if field == "messages" else "completion",
        tools=tools,
        hide_reasoning=hides,
    )
    check_request(request)
    return request


def check_request(request: GenerateRequest) -> None:
    """What holds for every request whatever its door. Raises InvalidRequest."""
    if not request.model:
        raise InvalidRequest("Missing required parameter: 'model'.", param="model", code="missing_required_parameter")
    if not 0 <= request.band <= MAX_BAND:
        name = request.names.get("band", "band")
        raise InvalidRequest(f"Invalid '{name}': must be 0 (first) to {MAX_BAND}.", param=name, code="invalid_value")
    if len(request.cache_salt) > MAX_SALT_CHARS or not request.cache_salt.isprintable():
        raise InvalidRequest(
            f"Invalid 'cache_salt': at most {MAX_SALT_CHARS} printable characters.", param="cache_salt", code="invalid_value"
        )
    key = request.idempotency_key
    if key is not None and not (1 <= len(key) <= MAX_KEY_CHARS + len("/2047") and key.isprintable()):
        raise InvalidRequest(
            f"Invalid idempotency key: 1 to {MAX_KEY_CHARS} printable characters.", param="idempotency_key", code="invalid_value"
        )


def _check_stream(body: Body) -> None:
    options = body.stream_options
    if options not in (None, StreamOptions()) and not body.stream:
        raise InvalidRequest("'stream_options' needs 'stream': true.", param="stream_options", code="invalid_value")
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidRequest(
            "'prompt_logprobs' comes with whole answers only; leave out 'stream'.", param="prompt_logprobs", code="invalid_value"
        )


def _sampling(
    body: Body,
    *,
    grammar: Grammar | None,
    max_tokens: int | None,
    num_logprobs: int | None,
    num_prompt_logprobs: int | None,
) -> SamplingParams:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return SamplingParams(
        **{name: value for name in _SAME_NAME if (value := getattr(body, name)) is not None},
        logit_bias=_logit_bias(body.logit_bias or {}),
        max_tokens=max_tokens,
        stop=stop,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        num_logprobs=num_logprobs,
        num_prompt_logprobs=num_prompt_logprobs,
        grammar=grammar,
        allowed_token_ids=tuple(body.allowed_token_ids or ()),
        bad_words=tuple(body.bad_words or ()),
    )


def _logit_bias(given: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    for key in given:
        # One spelling per id: "7" and "07" would be two entries for one token.
        if not (key.isascii() and key.isdigit() and len(key) <= 9 and str(int(key)) == key):
            raise InvalidRequest("Invalid 'logit_bias': its keys must be token ids.", param="logit_bias", code="invalid_value")
    return tuple(sorted((int(key), value) for key, value in given.items()))


def _request(
    body: Body,
    prompt: str | list[int] | tokenizer_pb2.Chat,
    sampling: SamplingParams,
    caller: Caller,
    names: Mapping[str, str],
    key: str | None = None,
) -> GenerateRequest:
    # Of a body with several prompts no stream has a position.
    goes_on = body.stream and caller.idempotency_key is not None and key in (None, caller.idempotency_key)
    request = GenerateRequest(
        model=body.model,
        identity=caller.identity,
        prompt=prompt,
        sampling=sampling,
        echo=isinstance(body, CompletionBody) and bool(body.echo),
        truncate_prompt_tokens=body.truncate_prompt_tokens,
        add_special_tokens=not (isinstance(body, CompletionBody) and body.add_special_tokens is False),
        extras=extras_of(body),
        dialect="completion" if isinstance(body, CompletionBody) else "chat",
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        band=next(band for band in (caller.band, body.priority, DEFAULT_BAND) if band is not None),
        deadline_ms=caller.deadline_ms,
        cache_salt=body.cache_salt or "",
        idempotency_key=key or caller.idempotency_key,
        after=caller.after if goes_on else "",
        trace=caller.trace,
        names=names,
    )
    check_request(request)
    return request
