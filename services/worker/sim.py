"""A runner without a model: tokens are a hash, time is a formula, and the KV cache is checked as if it were real.

Token i of a choice is H(prompt, seed, choice, i) mod vocab_size, so anyone can compute what a request must yield
(`expected_tokens`), at any scale, whatever happened to it on the way. Each slot holds the running hash of every token up
to it, as a real key depends on all before it; a row whose block table does not hold its sequence's own past raises
KvViolation, which finds a wrong block table, a block with two writers or a false prefix hit at once.

It knows nothing of torch, text or weights.
"""

import hashlib
import os
import signal
import struct
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.worker.engine.step import BLOCK_SIZE, Pooling, Row, RowResult, RunnerLimits, Start, Step, StepResult, TokenLogprobs
from shared.errors import InvalidRequest
from shared.sampling import SamplingParams

_MASK = 2**64 - 1
FINGERPRINT = "sim-1"
VECTOR_SIZE = 64


class KvViolation(Exception):
    """A row was given blocks that do not hold what its sequence has computed."""


@dataclass(frozen=True, slots=True)
class SimSpec:
    """What to pretend. eos_one_in: one token in so many is the first of eos_token_ids; 0 for none.

    A step of `rows` rows of which `tokens` tokens are owed beyond one each takes
    step_ms + rows * row_ms + tokens / prefill_tokens_per_s * 1000 milliseconds; prefill_tokens_per_s 0 is free.
    A prompt that holds poison_token ends the process at once, as a fault in a kernel would.
    """

    num_blocks: int = 4096
    max_model_len: int = 8192
    vocab_size: int = 32000
    eos_token_ids: tuple[int, ...] = ()
    eos_one_in: int = 0
    step_ms: float = 0.0
    row_ms: float = 0.0
    prefill_tokens_per_s: float = 0.0
    poison_token: int | None = None

    def limits(self) -> RunnerLimits:
        """The same as the engine wants it."""
        facts = (self.num_blocks, self.max_model_len, self.vocab_size, self.eos_token_ids, FINGERPRINT)
        return RunnerLimits(*facts, kinds=("generate", "embed"), vector_size=VECTOR_SIZE)

    def step_s(self, rows: int, tokens: int) -> float:
        """Modelled seconds of a step."""
        prefill_s = (tokens - rows) / self.prefill_tokens_per_s if self.prefill_tokens_per_s else 0.0
        return (self.step_ms + rows * self.row_ms) / 1000 + prefill_s


def _mix(value: int) -> int:
    """A 64-bit hash of a 64-bit number (splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


@dataclass(frozen=True, slots=True)
class _Source:
    """The endless tokens of one choice."""

    spec: SimSpec
    params: SamplingParams
    root: int

    @staticmethod
    def of(spec: SimSpec, prompt: Sequence[int], params: SamplingParams, choice: int) -> "_Source":
        text = array("I", prompt).tobytes() + array("q", [params.seed or 0, choice]).tobytes()
        return _Source(spec, params, int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))

    def token(self, index: int) -> int:
        drawn, spec = _mix(self.root + index), self.spec
        if not self.params.min_tokens and not spec.eos_one_in:
            return (drawn >> 20) % spec.vocab_size
        if index < self.params.min_tokens or not spec.eos_one_in or drawn % spec.eos_one_in:
            token_id = (drawn >> 20) % spec.vocab_size
        else:
            token_id = spec.eos_token_ids[0]
        if index < self.params.min_tokens:
            barred = {*spec.eos_token_ids, *self.params.stop_token_ids}
            while token_id in barred:
                token_id = (token_id + 1) % spec.vocab_size
        return token_id


def expected_tokens(spec: SimSpec, prompt: Sequence[int], params: SamplingParams, choice: int = 0) -> tuple[list[int], str]:
    """All output tokens of a choice and its finish reason, straight from the definition."""
    source = _Source.of(spec, prompt, params, choice)
    room = spec.max_model_len - len(prompt)
    most = room if params.max_tokens is None else min(room, params.max_tokens)
    ends = {*params.stop_token_ids} | (set() if params.ignore_eos else {*spec.eos_token_ids})
    tokens: list[int] = []
    while True:
        tokens.append(source.token(len(tokens)))
        if tokens[-1] in ends and len(tokens) > params.min_tokens:
            return tokens, "stop"
        if len(tokens) >= most:
            return tokens, "length"


def expected_vector(prompt: Sequence[int], pooling: Pooling) -> bytes:
    """The vector of a prompt: made up, but always the same, and of length 1 unless it is wanted raw."""
    text = array("I", prompt).tobytes() + pooling.kind.encode()
    source = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    signs = [1.0 if _mix(source + index) % 2 else -1.0 for index in range(pooling.dimensions)]
    length = 1.0 if pooling.raw else len(signs) ** 0.5
    return struct.pack(f"<{len(signs)}f", *(sign / length for sign in signs))


def expected_logprobs(spec: SimSpec, token_id: int, position: int, num_alternatives: int) -> TokenLogprobs:
    """What the sim reports for a token at a position of prompt + output: made up, but always the same."""
    best = -(_mix(position * spec.vocab_size + token_id) % 4096) / 4096
    others = range(num_alternatives)
    ids = (token_id, *((token_id + each) % spec.vocab_size for each in others))
    return TokenLogprobs(ids, (best, *(best - each for each in others)))


@dataclass(slots=True)
class _Known:
    """A sequence: its tokens so far, for each computed one the running hash up to it, and those that end a block."""

    source: _Source
    num_prompt: int
    tokens: list[int]
    pooling: Pooling | None = None
    hashes: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def compute(self, position: int, token_id: int) -> int:
        """The hash up to `token_id` at the next position."""
        hashes = self.hashes
        computed = hash((hashes[-1] if hashes else 0, token_id))
        hashes.append(computed)
        if position % BLOCK_SIZE == BLOCK_SIZE - 1:
            self.ends.append(computed)
        return computed

    def forget(self, num_computed: int) -> None:
        """Tokens from there on are to be computed again."""
        del self.hashes[num_computed:]
        del self.ends[num_computed // BLOCK_SIZE :]


class SimRunner:
    """A Runner after `spec`. The rows of a step are checked and computed in order."""

    def __init__(self, spec: SimSpec):
        self.spec = spec
        self.limits = spec.limits()
        self._known: dict[int, _Known] = {}
        self._slots = [0] * (spec.num_blocks * BLOCK_SIZE)
        self._num_written = [0] * spec.num_blocks
        # By block: the hash in its last slot, None while it is not full.
        self._full: list[int | None] = [None] * spec.num_blocks

    def run(self, step: Step) -> StepResult:
        """Checks, computes, and takes the modelled time."""
        began_at = time.monotonic()
        for seq_id in step.ends:
            del self._known[seq_id]
        for start in step.starts:
            self._start(start)
        written: set[int] = set()
        for row in step.rows:
            self._check(row)
        results = StepResult([self._row(row, written) for row in step.rows])
        step_s = self.spec.step_s(len(step.rows), sum(len(row.token_ids) for row in step.rows))
        left_s = step_s - (time.monotonic() - began_at)
        if left_s > 0:
            time.sleep(left_s)
        return results

    def prepare(self, params: SamplingParams) -> object:
        """Refuses: what a hash yields keeps to no grammar."""
        message = "The sim runner computes no model: it keeps to no grammar, allowed_token_ids or bad_words."
        raise InvalidRequest(message, param="grammar", code="unsupported_parameter")

    def close(self) -> None:
        """Forgets all sequences."""
        self._known.clear()

    def _start(self, start: Start) -> None:
        if start.seq_id in self._known:
            raise KvViolation(f"sequence {start.seq_id} started twice")
        if self.spec.poison_token in start.prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        source = _Source.of(self.spec, start.prompt, start.params, start.choice)
        self._known[start.seq_id] = _Known(source, len(start.prompt), [*start.prompt, *start.output], start.pooling)

    def _check(self, row: Row) -> None:
        """Raises KvViolation unless the row continues its sequence and its blocks hold all before it."""
        known, start, table = self._known[row.seq_id], row.num_computed, row.block_table
        end = start + len(row.token_ids)
        num_sure = len(row.token_ids) - row.num_drafts
        if num_sure < 1 or list(row.token_ids[:num_sure]) != known.tokens[start : start + num_sure]:
            raise KvViolation(f"sequence {row.seq_id}: the row at {start} does not have the sequence's tokens")
        ends = start + num_sure == len(known.tokens)
        if row.sample != (ends and known.pooling is None) or (row.num_drafts and not row.sample):
            raise KvViolation(f"sequence {row.seq_id}: sample={row.sample} at {start + num_sure} of {len(known.tokens)}")
        if len(table) * BLOCK_SIZE < end or end > self.limits.max_model_len:
            raise KvViolation(f"sequence {row.seq_id}: {len(table)} blocks for {end} tokens")
        for position in range(len(known.hashes), start):
            known.compute(position, known.tokens[position])
        num_full, part = divmod(start, BLOCK_SIZE)
        ok = list(map(self._full.__getitem__, table[:num_full])) == known.ends[:num_full]
        if ok and part:
            ok = self._slots[table[num_full] * BLOCK_SIZE + part - 1] == known.hashes[start - 1]
            ok = ok and self._num_written[table[num_full]] >= part
        if not ok:
            raise KvViolation(f"sequence {row.seq_id}: its blocks do not hold its first {start} tokens")

    def _row(self, row: Row, written: set[int]) -> RowResult:
        known, start = self._known[row.seq_id], row.num_computed
        if len(known.hashes) > start:
            known.forget(start)
        block = -1
        for position, token_id in enumerate(row.token_ids, start):
            computed = known.compute(position, token_id)
            block, offset = row.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE
            if offset == 0 or position == start:
                if block in written:
                    raise KvViolation(f"sequence {row.seq_id}: block {block} is written by two rows")
                written.add(block)
            self._slots[block * BLOCK_SIZE + offset] = computed
            self._num_written[block] = offset + 1
            self._full[block] = computed if offset == BLOCK_SIZE - 1 else None
        result = RowResult()
        if row.prompt_logprobs:
            self._prompt_logprobs(known, row, result)
        if row.sample:
            self._sample(known, row, result)
        elif known.pooling is not None and len(known.hashes) == len(known.tokens):
            result.vector = expected_vector(known.tokens, known.pooling)
        return result

    def _sample(self, known: _Known, row: Row, result: RowResult) -> None:
        """Yields the next token, and one more for each draft that equals the one before it."""
        drafts = list(row.token_ids[len(row.token_ids) - row.num_drafts :]) if row.num_drafts else []
        num_logprobs = known.source.params.num_logprobs
        logprobs: list[TokenLogprobs] = []
        while True:
            token_id = known.source.token(len(known.tokens) - known.num_prompt)
            if num_logprobs is not None:
                logprobs.append(expected_logprobs(self.spec, token_id, len(known.tokens), num_logprobs))
            known.tokens.append(token_id)
            result.token_ids.append(token_id)
            if not drafts or drafts.pop(0) != token_id:
                break
        result.logprobs = logprobs
        if row.num_drafts:
            known.forget(len(known.tokens) - 1)

    def _prompt_logprobs(self, known: _Known, row: Row, result: RowResult) -> None:
        most = known.source.params.num_prompt_logprobs or 0
        end = min(row.num_computed + len(row.token_ids), known.num_prompt - 1)
        positions = range(row.num_computed + 1, end + 1)
        result.prompt_logprobs = [expected_logprobs(self.spec, known.tokens[each], each, most) for each in positions]
