"""When a choice ends, decided from token ids and counts alone.

The sampler keeps end tokens from being drawn before min_tokens; here they merely do not end anything before it.
It knows nothing of stop strings: the router finds those in text and says at which count the choice ends.
"""

from dataclasses import dataclass, replace

from shared.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Stopping:
    """The rule of one choice. Counts are output tokens, the one being judged included."""

    end_ids: frozenset[int]
    min_tokens: int
    most: int
    reason_at_most: str = "length"

    @staticmethod
    def of(params: SamplingParams, eos_token_ids: tuple[int, ...], room: int) -> "Stopping":
        """The rule for `params` where the context has room for `room` output tokens."""
        ends = set(params.stop_token_ids)
        if not params.ignore_eos:
            ends.update(eos_token_ids)
        most = room if params.max_tokens is None else min(room, params.max_tokens)
        return Stopping(frozenset(ends), params.min_tokens, most)

    def at(self, num_tokens: int) -> "Stopping":
        """The same, but the router has found a stop string that token number `num_tokens` completes."""
        return replace(self, most=num_tokens, reason_at_most="stop") if num_tokens <= self.most else self

    def ends(self, token_id: int, num_tokens: int) -> bool:
        """Whether this token, as output token number `num_tokens`, ends the choice by what it is."""
        return token_id in self.end_ids and num_tokens > self.min_tokens

    def reason(self, token_id: int, num_tokens: int) -> str | None:
        """Why the choice ends with this token: "stop", "length" or None when it goes on."""
        if token_id in self.end_ids and num_tokens > self.min_tokens:
            return "stop"
        return self.reason_at_most if num_tokens >= self.most else None
