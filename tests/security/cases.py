"""Bad values of sampling parameters, as protos/types.proto calls them: the same for every entrance of the system.

It knows what is wrong with each, and nothing of how it is sent.
"""

from dataclasses import dataclass
from math import inf, nan
from typing import Any

from shared.pb import types_pb2
from tests.security.patient import SPEC

BELOW, ABOVE, LONG = "integer_below_min_value", "integer_above_max_value", "array_above_max_length"
LOW, HIGH, WRONG, NO_ID = "decimal_below_min_value", "decimal_above_max_value", "invalid_value", "invalid_token_id"
# What an HTTP body calls a field, where that differs; for completions.
HTTP_NAMES = {"num_logprobs": "logprobs", "num_prompt_logprobs": "prompt_logprobs"}
VOCAB = SPEC.vocab_size


@dataclass(frozen=True)
class Bad:
    """One field with a value it must not have. `more`: other fields it takes; `at`: what follows the name in `param`."""

    field: str
    value: Any
    code: str
    at: str = ""
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        return {self.field: self.value, **dict(self.more)}

    def sampling(self) -> types_pb2.Sampling | None:
        """The message, or None if no message can say it."""
        try:
            return types_pb2.Sampling(**self.values)
        except (ValueError, TypeError):
            return None

    def body(self) -> dict[str, Any]:
        """Members of an HTTP body."""
        return {HTTP_NAMES.get(name, name): value for name, value in self.values.items()}

    def __str__(self) -> str:
        return f"{self.field}={str(self.value)[:24]}"


def _numbers(field: str, low: float, high: float) -> list[Bad]:
    return [Bad(field, low, LOW), Bad(field, high, HIGH), *(Bad(field, value, WRONG) for value in (nan, inf, -inf))]


BAD = [
    *_numbers("temperature", -0.1, 2.1),
    *_numbers("top_p", -0.1, 1.1),
    *_numbers("min_p", -0.1, 1.5),
    *_numbers("presence_penalty", -2.1, 2.1),
    *_numbers("frequency_penalty", -2.1, 2.1),
    *_numbers("repetition_penalty", 0.0, 10.5),
    Bad("top_k", -2, BELOW),
    Bad("top_k", VOCAB + 1, ABOVE),
    *(Bad("n", value, BELOW) for value in (0, -1)),
    *(Bad("n", value, ABOVE) for value in (129, 10**9, 2**32 - 1, 2**63, 2**64)),
    *(Bad("max_tokens", value, BELOW) for value in (0, -1)),
    *(Bad("max_tokens", value, ABOVE) for value in (2**31, 2**32 - 1, 2**63, 2**64)),
    Bad("max_tokens", VOCAB, "context_length_exceeded"),
    Bad("min_tokens", 5, ABOVE, more=(("max_tokens", 4),)),
    *(Bad("min_tokens", value, ABOVE, more=(("max_tokens", 9),)) for value in (2**31, 2**32 - 1)),
    Bad("seed", 2**63, ABOVE),
    Bad("seed", -(2**63) - 1, BELOW),
    Bad("stop", [""], WRONG, "[0]"),
    Bad("stop", ["a", "x" * 257], WRONG, "[1]"),
    Bad("stop", ["a"] * 5, LONG),
    Bad("stop_token_ids", [1, VOCAB], NO_ID, "[1]"),
    Bad("stop_token_ids", [2**32 - 1], NO_ID, "[0]"),
    Bad("stop_token_ids", [1] * 65, LONG),
    Bad("logit_bias", {VOCAB: 1.0}, NO_ID),
    Bad("logit_bias", {2**32 - 1: 1.0}, "*"),
    Bad("logit_bias", {1: 101.0}, HIGH),
    Bad("logit_bias", {1: -101.0}, LOW),
    Bad("logit_bias", {1: nan}, WRONG),
    Bad("logit_bias", dict.fromkeys(range(1025), 1.0), LONG),
    Bad("allowed_token_ids", [1, VOCAB], NO_ID, "[1]"),
    Bad("bad_words", ["a", ""], WRONG, "[1]"),
    Bad("bad_words", ["x" * 5000], WRONG, "[0]"),
    *(Bad("num_logprobs", value, ABOVE) for value in (21, 128, 2**32 - 1)),
    *(Bad("num_prompt_logprobs", value, ABOVE) for value in (21, 2**32 - 1)),
]
