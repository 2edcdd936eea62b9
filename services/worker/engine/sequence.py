"""What the engine is asked (Work), what it answers (Delta, Finish), and the two records it keeps in between.

A sequence's two stored numbers are its known tokens and how many of them are computed; all else is derived:

    0 ......... num_computed ......... num_tokens ...
    |  in KV    |  owed                |  not yet sampled
    |  blocks[0 : ceil(num_computed / 16)], the full ones published under keys[0 : num_published]

It knows nothing of budgets, of the pool, or of who asked.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

from services.worker.engine.step import Pooling, TokenLogprobs
from services.worker.engine.stopping import Stopping
from shared.prefix import root_key
from shared.sampling import SamplingParams

Key = tuple[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """One request to run. Compared by identity, so that a Delta can be told from one of an earlier Work of its key.

    key: (rid, epoch). params: resolved (seed and max_tokens set). salt: who may share its blocks. band, tag: lower
    goes first. outputs: by choice, the ids already produced elsewhere, to go on from. Choices in `ended` are not run.
    guide: what Runner.prepare made of params that constrain tokens.
    pooling: what is wanted in place of tokens.
    """

    key: Key
    prompt: Ids[int]
    params: SamplingParams
    salt: bytes = b""
    band: int = 0
    tag: float = 0.0
    outputs: Mapping[int, Ids[int]] = field(default_factory=dict)
    ended: frozenset[int] = frozenset()
    guide: object = None
    pooling: Pooling | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a choice ended. reason: "stop", "length" or "error" (then `error` says what for the client to read).

    num_tokens: output tokens that count, those of `Work.outputs` and the stop token included. num_cached_tokens:
    prompt tokens of the request that were found in the prefix cache, the same in every choice. vector:
    what Work.pooling asked for.
    """

    reason: str
    num_tokens: int
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    error: str | None = None
    vector: bytes | None = None


@dataclass(slots=True)
class Delta:
    """New tokens of one choice, its end, or both. idx: index of token_ids[0] in the choice's output.

    logprobs: one per token id if the request asked. prompt_logprobs: of the prompt's tokens from the second on, once
    per request, with the first choice's first token. A Delta that only ends a choice has no token_ids.
    """

    work: Work
    choice: int
    idx: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish: Finish | None = None

    @property
    def key(self) -> Key:
        """(rid, epoch) of the request."""
        return self.work.key


class Sequence:
    """One choice being produced.

    order: (band, tag, seq_id), by which all lines stand; the greatest is the "youngest", preempted first.
    line: the scheduler's list it stands in, None once ended. started: the runner knows it.
    prompt_logprobs: those gathered so far, None when not wanted (any more).
    """

    __slots__ = (
        "blocks", "choice", "keys", "line", "num_computed", "num_prompt", "num_published", "order", "prompt_logprobs",
        "request", "seq_id", "started", "stopping", "tokens", "wants_logprobs",
    )  # fmt: skip

    def __init__(self, request: "Request", seq_id: int, choice: int, stopping: Stopping):
        work = request.work
        self.request = request
        self.seq_id = seq_id
        self.choice = choice
        self.stopping = stopping
        self.order = (work.band, work.tag, seq_id)
        self.tokens = [*work.prompt, *work.outputs.get(choice, ())]
        self.num_prompt = len(work.prompt)
        self.num_computed = 0
        self.blocks: list[int] = []
        self.keys: list[bytes] = []
        self.num_published = 0
        self.started = False
        self.line: list[Sequence] | None = None
        self.wants_logprobs = work.params.num_logprobs is not None
        self.prompt_logprobs: list[TokenLogprobs] | None = None

    @property
    def num_output(self) -> int:
        """Output tokens so far, resumed ones included."""
        return len(self.tokens) - self.num_prompt

    @property
    def pooling(self) -> Pooling | None:
        """What it gives in place of tokens."""
        return self.request.work.pooling

    @property
    def is_first(self) -> bool:
        """Whether this choice computes the prompt that its siblings wait for."""
        return self.request.first is self

    @property
    def is_held(self) -> bool:
        """Whether to wait: the first choice is computing the blocks of the prompt that this one will share.

        If the prompt's logprobs are wanted, until the whole prompt is computed, as they go out before any token.
        """
        first = self.request.first
        if first is self or first.line is None or self.blocks:
            return False
        return first.prompt_logprobs is not None or first.num_computed < self.request.num_shareable


class Request:
    """The choices of one Work that have not ended, by choice number. `first` computes the prompt for all.

    num_shareable: tokens of the prompt's full blocks, but for the last token's, which each choice computes itself.
    """

    __slots__ = ("first", "num_cached_tokens", "num_shareable", "root", "sequences", "work")

    def __init__(self, work: Work, block_size: int):
        self.work = work
        self.root = root_key(work.salt)
        self.num_shareable = (len(work.prompt) - 1) // block_size * block_size
        self.num_cached_tokens = 0
        self.sequences: dict[int, Sequence] = {}
        self.first: Sequence
