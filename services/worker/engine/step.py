"""The whole contract between engine and runtime: a Step of host integers in, a StepResult of host integers out.

A step has rows, one per scheduled sequence. A row computes `token_ids`, the sequence's tokens at positions
num_computed, num_computed + 1, …; their keys and values go to the slots its block_table names. A row that reaches
the sequence's last known token samples the next one. Drafts, if any, are the last `num_drafts` of token_ids.

A sequence with a `Pooling` samples nothing: the row that reaches its prompt's end gives its vector.

The runner keeps nothing between steps but KV blocks and, per seq_id, what sampling needs (penalty counts and the like),
which it rebuilds from Start, or what was pooled so far, which begins anew with a row whose num_computed is 0. It knows
nothing of requests, tenants or time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shared.sampling import SamplingParams

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Pooling:
    """What a sequence gives instead of tokens: `dimensions` numbers, the first ones of a vector made of its hidden states.

    kind: of which tokens: "mean" (all), "last", "cls" (the first), or "score", what the model's own head says of the first.
    raw: left as long as it is. num_first: tokens of the first of two texts; 0: there is one. needs_all: every token must
    be computed for it, so none of it may come from the prefix cache, which holds keys and values and no hidden states.
    """

    kind: str
    dimensions: int
    raw: bool = False
    num_first: int = 0
    needs_all: bool = True


@dataclass(frozen=True, slots=True)
class Start:
    """A sequence the runner has not seen, or was told to forget: all that its sampling depends on.

    guide: what Runner.prepare made of the params, if they constrain what may come.
    """

    seq_id: int
    choice: int
    params: SamplingParams
    prompt: Sequence[int]
    output: Sequence[int]
    guide: object = None
    pooling: Pooling | None = None


@dataclass(slots=True)
class Row:
    """One sequence's share of a step. From step to step the same block_table object changes by growing at its end alone."""

    seq_id: int
    num_computed: int
    token_ids: Sequence[int]
    block_table: Sequence[int]
    sample: bool
    num_drafts: int = 0
    prompt_logprobs: bool = False


@dataclass(slots=True)
class Step:
    """What to compute. `starts` come before their first row; `ends` name sequences to forget before this step runs."""

    rows: list[Row]
    starts: list[Start] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Of one position: the token itself first, then the most likely ones in falling order (ties: lower id first)."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]


@dataclass(slots=True)
class RowResult:
    """What one row gave. token_ids: accepted drafts and the token after them; empty when the row does not sample.

    logprobs: one per token id, only if the sequence's params ask. prompt_logprobs: only for a row that asks; entry i is of
    the prompt token at position num_computed + i + 1, so the row that ends the prompt gives one fewer than it computes.
    vector: float32 little-endian, of the row that ends a prompt to pool. error: why this sequence, and no other, must end
    (for example logits that are not numbers).
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: Sequence[TokenLogprobs] = ()
    prompt_logprobs: Sequence[TokenLogprobs] = ()
    vector: bytes | None = None
    error: str | None = None


@dataclass(slots=True)
class StepResult:
    """One RowResult per row of the step, in order."""

    rows: list[RowResult]


@dataclass(frozen=True, slots=True)
class RunnerLimits:
    """The numbers the engine is built from, and what the worker tells others about its model.

    kinds: what it can do, of "generate", "embed", "score". vector_size and pooling: how long its vectors are, and which of
    its hidden states they are made of where nobody says; encodes: it sees a prompt whole, and has no prefixes to share.
    """

    num_blocks: int
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    fingerprint: str
    block_size: int = BLOCK_SIZE
    kinds: tuple[str, ...] = ("generate",)
    vector_size: int = 0
    pooling: str = "last"
    encodes: bool = False


class Runner(Protocol):
    """Computes steps; called from the engine thread alone, but for `prepare`."""

    limits: RunnerLimits

    def prepare(self, params: SamplingParams) -> object:
        """What a Start with params that constrain its tokens must bring. Any thread may ask, and it may take seconds.

        Raises InvalidRequest if this runner cannot keep to them.
        """
        ...

    def run(self, step: Step) -> StepResult:
        """Computes one step. An exception here is fatal to the worker."""
        ...

    def close(self) -> None:
        """Frees the device."""
        ...
