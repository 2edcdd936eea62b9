"""What a request may say about how its tokens are chosen: validated once, here, for every door and for the queue.

It knows nothing of JSON, of logits or of text beyond the stop strings' lengths.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from shared.errors import InvalidRequest
from shared.grammars import KINDS, Grammar
from shared.pb import types_pb2

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 64
MAX_BAD_WORD_CHARS = 256
MIN_SEED, MAX_SEED = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose each token; the same fields and units as `Sampling` in protos/types.proto.

    `seed` and `max_tokens` are None only before the router has drawn and computed them.
    `num_logprobs` None asks for none, 0 for the chosen token's alone. `bad_word_ids` are the spellings of `bad_words`,
    which the router asks the tokenizer for: a sequence's last id cannot come where the others stand before it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    grammar: Grammar | None = None
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    bad_word_ids: tuple[tuple[int, ...], ...] = ()

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    @property
    def is_constrained(self) -> bool:
        """Whether not every token may come."""
        return self.grammar is not None or bool(self.allowed_token_ids or self.bad_words or self.bad_word_ids)

    def resolved(self, *, seed: int, max_tokens: int) -> "SamplingParams":
        """The same with what the router decides filled in where the request left it open."""
        return replace(
            self,
            seed=seed if self.seed is None else self.seed,
            max_tokens=max_tokens if self.max_tokens is None else self.max_tokens,
        )

    def validate(self, *, vocab_size: int, names: Mapping[str, str] | None = None) -> None:
        """Raises InvalidRequest for the first field out of range.

        vocab_size is the width of the model's logits; `names` maps a field to what the door in front calls it.
        """
        check = _Check(names or {})
        check.number("temperature", self.temperature, 0.0, 2.0)
        check.number("top_p", self.top_p, 0.0, 1.0)
        check.integer("top_k", self.top_k, -1, max(vocab_size, 1))
        check.number("min_p", self.min_p, 0.0, 1.0)
        check.number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        check.number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        check.number("repetition_penalty", self.repetition_penalty, 0.0, 10.0, above=True)
        check.integer("n", self.n, 1, MAX_N)
        if self.seed is not None:
            check.integer("seed", self.seed, MIN_SEED, MAX_SEED)
        if self.max_tokens is not None:
            check.integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        check.integer("min_tokens", self.min_tokens, 0, 2**31 - 1 if self.max_tokens is None else self.max_tokens)
        for field in ("num_logprobs", "num_prompt_logprobs"):
            value = getattr(self, field)
            if value is not None:
                check.integer(field, value, 0, MAX_LOGPROBS)
        self._validate_lists(check, vocab_size)

    def _validate_lists(self, check: "_Check", vocab_size: int) -> None:
        check.length("stop", len(self.stop), MAX_STOP_STRINGS)
        for index, text in enumerate(self.stop):
            if not 1 <= len(text) <= MAX_STOP_CHARS:
                check.fail("stop", f"must be 1 to {MAX_STOP_CHARS} characters, not {len(text)}", "invalid_value", f"[{index}]")
        check.length("stop_token_ids", len(self.stop_token_ids), MAX_STOP_TOKEN_IDS)
        for index, token_id in enumerate(self.stop_token_ids):
            if not 0 <= token_id < vocab_size:
                check.fail("stop_token_ids", f"{token_id} is no token id of this model", "invalid_token_id", f"[{index}]")
        check.length("logit_bias", len(self.logit_bias), MAX_LOGIT_BIAS)
        for token_id, bias in self.logit_bias:
            if not 0 <= token_id < vocab_size:
                check.fail("logit_bias", f"{token_id} is no token id of this model", "invalid_token_id")
            check.number("logit_bias", bias, -100.0, 100.0)
        self._validate_constraints(check, vocab_size)

    def _validate_constraints(self, check: "_Check", vocab_size: int) -> None:
        check.length("allowed_token_ids", len(self.allowed_token_ids), vocab_size)
        for index, token_id in enumerate(self.allowed_token_ids):
            if not 0 <= token_id < vocab_size:
                check.fail("allowed_token_ids", f"{token_id} is no token id of this model", "invalid_token_id", f"[{index}]")
        check.length("bad_words", len(self.bad_words), MAX_BAD_WORDS)
        for index, word in enumerate(self.bad_words):
            if not (1 <= len(word) <= MAX_BAD_WORD_CHARS and word.strip()):
                what = f"must be 1 to {MAX_BAD_WORD_CHARS} characters, not all of them white space"
                check.fail("bad_words", what, "invalid_value", f"[{index}]")
        check.length("bad_words", len(self.bad_word_ids), 2 * MAX_BAD_WORDS)
        for ids in self.bad_word_ids:
            check.length("bad_words", len(ids), 4 * (MAX_BAD_WORD_CHARS + 1))
            if not ids or min(ids) < 0 or max(ids) >= vocab_size:
                check.fail("bad_words", "is no token ids of this model", "invalid_token_id")
        if self.grammar is not None:
            self.grammar.validate(check.names.get("grammar", "grammar"))
            if self.ignore_eos:
                check.fail("ignore_eos", "an output that must match a grammar ends where that does", "invalid_value")


@dataclass(frozen=True, slots=True)
class _Check:
    names: Mapping[str, str]

    def fail(self, field: str, what: str, code: str, suffix: str = "") -> None:
        name = self.names.get(field, field)
        raise InvalidRequest(f"Invalid '{name}{suffix}': {what}.", param=name + suffix, code=code)

    def number(self, field: str, value: float, low: float, high: float, above: bool = False) -> None:
        if not math.isfinite(value):
            self.fail(field, "must be a finite number", "invalid_value")
        if value < low or (above and value == low):
            self.fail(field, f"{value:g} is too low; the least is {'above ' if above else ''}{low:g}", "decimal_below_min_value")
        if value > high:
            self.fail(field, f"{value:g} is too high; the most is {high:g}", "decimal_above_max_value")

    def integer(self, field: str, value: int, low: int, high: int) -> None:
        if value < low:
            self.fail(field, f"{value} is too low; the least is {low}", "integer_below_min_value")
        if value > high:
            self.fail(field, f"{value} is too high; the most is {high}", "integer_above_max_value")

    def length(self, field: str, length: int, most: int) -> None:
        if length > most:
            self.fail(field, f"has {length} entries; the most is {most}", "array_above_max_length")


_OPTIONAL = (
    "temperature",
    "top_p",
    "repetition_penalty",
    "seed",
    "max_tokens",
    "n",
    "num_logprobs",
    "num_prompt_logprobs",
    "skip_special_tokens",
)
_PLAIN = (
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "ignore_eos",
    "include_stop_str_in_output",
)


def from_proto(message: types_pb2.Sampling) -> SamplingParams:
    """The parameters a message holds; unset optional fields take their defaults.

    Does not validate, but raises InvalidRequest for a grammar of a kind it does not know.
    """
    fields = {name: getattr(message, name) for name in _PLAIN}
    fields |= {name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)}
    return SamplingParams(
        **fields,
        logit_bias=tuple(sorted(message.logit_bias.items())),
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        grammar=grammar_of(message.grammar) if message.HasField("grammar") else None,
        allowed_token_ids=tuple(message.allowed_token_ids),
        bad_words=tuple(message.bad_words),
        bad_word_ids=tuple(tuple(each.ids) for each in message.bad_word_ids),
    )


def grammar_of(message: types_pb2.Grammar) -> Grammar:
    """The grammar a message holds. Raises InvalidRequest for a kind that nobody knows."""
    names = {_number(kind): kind for kind in KINDS}
    if message.kind not in names:
        raise InvalidRequest(f"Invalid 'grammar': its kind must be one of {', '.join(KINDS)}.", param="grammar")
    return Grammar(names[message.kind], message.source)


def _number(kind: str) -> Any:
    return types_pb2.GrammarKind.Value(f"GRAMMAR_KIND_{kind.upper()}")


def to_proto(params: SamplingParams) -> types_pb2.Sampling:
    """The message that `from_proto` turns back into `params`; values must be valid."""
    message = types_pb2.Sampling(
        **{name: getattr(params, name) for name in _PLAIN},
        **{name: value for name in _OPTIONAL if (value := getattr(params, name)) is not None},
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        allowed_token_ids=params.allowed_token_ids,
        bad_words=params.bad_words,
        bad_word_ids=[types_pb2.TokenIds(ids=ids) for ids in params.bad_word_ids],
    )
    if params.grammar is not None:
        message.grammar.CopyFrom(types_pb2.Grammar(kind=_number(params.grammar.kind), source=params.grammar.source))
    for token_id, bias in params.logit_bias:
        message.logit_bias[token_id] = bias
    return message
