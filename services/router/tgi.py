"""Text Generation Inference's bodies, what they are in OpenAI's words, and its answers: token by token, with their details.

Its defaults are its own: 100 tokens, the likeliest token each time unless something asks to sample. It knows nothing of HTTP.
"""

import codecs
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from services.router.answers import Choice
from services.router.generate import ChoiceEnd, Event, Generation, TextDelta
from services.router.logprobs import Row, rows
from services.router.needs import Vocabulary
from services.router.shapes import Shape
from shared.errors import InvalidRequest

DEFAULT_NEW_TOKENS = 100
MAX_TOP_TOKENS = 20
# OpenAI's names to TGI's, for errors.
NAMES: Mapping[str, str] = {
    "prompt": "inputs",
    "max_tokens": "parameters.max_new_tokens",
    "truncate_prompt_tokens": "parameters.truncate",
    "logprobs": "parameters.top_n_tokens",
    "structured_outputs": "parameters.grammar",
} | {
    name: f"parameters.{name}"
    for name in ("temperature", "top_k", "top_p", "seed", "stop", "repetition_penalty", "frequency_penalty", "best_of")
}


class TgiGrammar(msgspec.Struct, kw_only=True):
    """What the answer must match."""

    type: Literal["json", "regex", "json_schema"]
    value: str | dict[str, Any]


class TgiParameters(msgspec.Struct, kw_only=True):
    """How to generate."""

    adapter_id: str | None = None
    best_of: int | None = None
    decoder_input_details: bool | None = None
    details: bool | None = None
    do_sample: bool | None = None
    frequency_penalty: float | None = None
    grammar: TgiGrammar | None = None
    max_new_tokens: int | None = None
    repetition_penalty: float | None = None
    return_full_text: bool | None = None
    seed: int | None = None
    stop: list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_n_tokens: int | None = None
    top_p: float | None = None
    truncate: int | None = None
    typical_p: float | None = None
    watermark: bool | None = None


class TgiGenerate(msgspec.Struct, kw_only=True):
    """A prompt to continue; `stream` counts at / only."""

    inputs: str
    parameters: TgiParameters | None = None
    stream: bool | None = None


class TgiError(Shape):
    """Every error."""

    error: str
    error_type: Literal["validation", "overloaded", "generation"]


class TgiInputToken(Shape):
    """A token of the prompt; the first has no log-probability."""

    id: int
    text: str
    logprob: float | None


class TgiToken(Shape):
    """A token of the output."""

    id: int
    text: str
    logprob: float
    special: bool


class TgiSequence(Shape):
    """How one answer ended, and its tokens."""

    finish_reason: Literal["length", "eos_token", "stop_sequence"]
    generated_tokens: int
    seed: int | None
    prefill: list[TgiInputToken]
    tokens: list[TgiToken]
    top_tokens: list[list[TgiToken]]


class TgiBestOf(TgiSequence):
    """Another that was drawn."""

    generated_text: str


class TgiDetails(TgiSequence):
    """The best, and beside it the others that were drawn."""

    best_of_sequences: list[TgiBestOf] | None


class TgiAnswer(Shape):
    """The whole answer."""

    generated_text: str
    details: TgiDetails | msgspec.UnsetType = msgspec.UNSET


class TgiStreamDetails(Shape):
    """How it ended."""

    finish_reason: Literal["length", "eos_token", "stop_sequence"]
    generated_tokens: int
    seed: int | None
    input_length: int


class TgiEvent(Shape):
    """One token; the last has the whole text."""

    index: int
    token: TgiToken
    top_tokens: list[TgiToken]
    generated_text: str | None
    details: TgiStreamDetails | None


class TgiInfo(Shape):
    """What is served, and its limits."""

    model_id: str
    model_sha: str
    model_pipeline_tag: Literal["text-generation"]
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    router: Literal["roadtrain"]
    version: str


def completion_body(asked: TgiGenerate, model: str, *, stream: bool) -> dict[str, Any]:
    """As an OpenAI completion body. Raises InvalidRequest."""
    given = asked.parameters or TgiParameters()
    for name, neutral in (("typical_p", 1.0), ("watermark", False), ("adapter_id", "")):
        if getattr(given, name) not in (None, neutral):
            param = f"parameters.{name}"
            raise InvalidRequest(f"'{param}' is not supported by this server.", param=param, code="unsupported_parameter")
    samples = given.do_sample or any(value is not None for value in (given.temperature, given.top_k, given.top_p))
    wants_prompt = bool(given.details and given.decoder_input_details)
    if wants_prompt and stream:
        param = "parameters.decoder_input_details"
        raise InvalidRequest(f"'{param}' comes with whole answers only.", param=param, code="invalid_value")
    same = ("seed", "stop", "repetition_penalty", "frequency_penalty", "top_k", "top_p", "best_of")
    body = {name: getattr(given, name) for name in same}
    return body | {
        "model": model,
        "prompt": asked.inputs,
        "max_tokens": DEFAULT_NEW_TOKENS if given.max_new_tokens is None else given.max_new_tokens,
        "temperature": (1.0 if given.temperature is None else given.temperature) if samples else 0.0,
        "stop": given.stop or None,
        "truncate_prompt_tokens": given.truncate,
        "logprobs": given.top_n_tokens or 0,
        "prompt_logprobs": 0 if wants_prompt else None,
        "structured_outputs": _grammar(given.grammar),
    }


def _grammar(asked: TgiGrammar | None) -> dict[str, Any] | None:
    if asked is None:
        return None
    return {"regex": asked.value} if asked.type == "regex" else {"json": asked.value}


def answer(asked: TgiGenerate, generation: Generation, choices: list[Choice], vocabulary: Vocabulary) -> dict[str, Any]:
    """The whole answer; the first choice is the best. Each choice's `logprobs` are its rows."""
    given = asked.parameters or TgiParameters()
    before = asked.inputs if given.return_full_text else ""
    made: dict[str, Any] = {"generated_text": before + "".join(choices[0].text)}
    if given.details:
        prefill = _prefill(generation, vocabulary) if given.decoder_input_details else []
        others = [
            {"generated_text": before + "".join(choice.text)} | _sequence(choice, prefill, given, vocabulary)
            for choice in choices[1:]
        ]
        made["details"] = _sequence(choices[0], prefill, given, vocabulary) | {"best_of_sequences": others or None}
    return made


def _sequence(choice: Choice, prefill: list[dict[str, Any]], given: TgiParameters, vocabulary: Vocabulary) -> dict[str, Any]:
    found = [row for piece in choice.logprobs for row in piece]
    texts = codecs.getincrementaldecoder("utf-8")("replace")
    return {
        "finish_reason": _reason(choice.finish_reason, choice.stop_reason),
        "generated_tokens": len(choice.token_ids),
        "seed": given.seed,
        "prefill": prefill,
        "tokens": [_token(vocabulary, ids[0], values[0], texts.decode(vocabulary.bytes_of(ids[0]))) for ids, values in found],
        "top_tokens": [_top(vocabulary, row) for row in found] if given.top_n_tokens else [],
    }


def _prefill(generation: Generation, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    found = generation.prompt_logprobs
    values: list[float | None] = [None, *(row[1][0] for row in rows(found))] if found is not None else [None]
    return [
        {"id": token_id, "text": vocabulary.bytes_of(token_id).decode("utf-8", "replace"), "logprob": value}
        for token_id, value in zip(generation.prompt_token_ids, values, strict=False)
    ]


def _token(vocabulary: Vocabulary, token_id: int, logprob: float, text: str) -> dict[str, Any]:
    return {"id": token_id, "text": text, "logprob": logprob, "special": token_id in vocabulary.special}


def _top(vocabulary: Vocabulary, row: Row) -> list[dict[str, Any]]:
    ids, values = row
    return [
        _token(vocabulary, token_id, value, vocabulary.bytes_of(token_id).decode("utf-8", "replace"))
        for token_id, value in zip(ids[1:], values[1:], strict=True)
    ]


def _reason(reason: str | None, stop_reason: str | int | None) -> str:
    if reason == "length":
        return "length"
    return "eos_token" if stop_reason is None else "stop_sequence"


class TokenWriter:
    """Renders one generation as TGI's events: one for each token, the last with the whole text."""

    num_reasoning_tokens = 0

    def __init__(self, asked: TgiGenerate, generation: Generation, vocabulary: Vocabulary) -> None:
        self._given = asked.parameters or TgiParameters()
        self._generation = generation
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._whole = [asked.inputs] if self._given.return_full_text else []
        self._text = ""  # of tokens that have not all come
        self._num_tokens = 0
        self._last: dict[str, Any] | None = None

    def render(self, events: list[Event], position: str) -> bytes:
        """See sse.Writer."""
        made: list[dict[str, Any]] = []
        for event in events:
            if isinstance(event, TextDelta):
                made += self._tokens(event)
            elif isinstance(event, ChoiceEnd):
                if not made:
                    # Its last token has been sent: it comes again, without text.
                    made.append(self._event(self._repeated(), []))
                self._end(made[-1], event)
        return b"".join(b"data:" + msgspec.json.encode(one) + b"\n\n" for one in made)

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last event has said it."""
        return b""

    def _tokens(self, event: TextDelta) -> list[dict[str, Any]]:
        self._text += event.text
        self._whole.append(event.text)
        if not event.token_ids or event.logprobs is None:
            return []
        text, self._text = self._text, ""
        pieces = ["" if one in self._vocabulary.special else self._spelled(one) for one in event.token_ids]
        if "".join(pieces) != text:
            # Characters that began in one token and ended in another, or were left out: the last one has them all.
            pieces = [""] * (len(pieces) - 1) + [text]
        made = []
        for row, piece in zip(rows(event.logprobs), pieces, strict=True):
            self._num_tokens += 1
            self._last = _token(self._vocabulary, row[0][0], row[1][0], piece)
            made.append(self._event(self._last, _top(self._vocabulary, row) if self._given.top_n_tokens else []))
        return made

    def _spelled(self, token_id: int) -> str:
        return self._decoder.decode(self._vocabulary.bytes_of(token_id))

    def _repeated(self) -> dict[str, Any]:
        last = self._last or {"id": 0, "logprob": 0.0, "special": True}
        return last | {"text": "", "special": True}

    def _event(self, token: dict[str, Any], top: list[dict[str, Any]]) -> dict[str, Any]:
        return {"index": self._num_tokens, "token": token, "top_tokens": top, "generated_text": None, "details": None}

    def _end(self, last: dict[str, Any], event: ChoiceEnd) -> None:
        last["generated_text"] = "".join(self._whole)
        if self._text:
            last["token"] = last["token"] | {"text": last["token"]["text"] + self._text}
        last["details"] = {
            "finish_reason": _reason(event.reason, event.stop_reason),
            "generated_tokens": event.num_tokens,
            "seed": self._given.seed,
            "input_length": self._generation.num_prompt_tokens,
        }
