"""What sampling remembers of each sequence, a pure function of (prompt, output), and the choice of the next tokens.

A row with drafts is sampled once after each draft, as if the drafts were its output; a draft is accepted iff it is the
token that draw gives, so drafts never change what is produced. It knows nothing of how logits are made.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import Ops
from kernels.sample.params import NO_TOKEN_LEFT, NOT_A_NUMBER, SampleParams
from services.worker.engine.step import Row, RowResult, Start, Step, TokenLogprobs
from services.worker.runtime.grammar import Guide
from services.worker.runtime.masks import FAILED, Masks, Wanted, bits_of
from services.worker.runtime.prepare import num_wanted

ERRORS = {
    NOT_A_NUMBER: "the model's output for this request is not a number",
    NO_TOKEN_LEFT: "what was asked for (logit_bias, min_tokens, bad_words, a grammar) leaves no token that could come next",
}

NO_TOKEN = "what was drawn for this request is no token"
BROKEN = "this request could not be sampled; it has been logged"

_NONE = np.zeros(0, dtype=np.int32)
NO_MASK = torch.zeros(0, dtype=torch.int32)

logger = logging.getLogger(__name__)


class Counts:
    """How often each token id occurred: ids in order of first occurrence, in arrays that grow by doubling."""

    def __init__(self, token_ids: Iterable[int]):
        self._place: dict[int, int] = {}
        self._ids = np.zeros(64, dtype=np.int32)
        self._counts = np.zeros(64, dtype=np.int32)
        for token_id in token_ids:
            self.add(token_id)

    @property
    def ids(self) -> NDArray[np.int32]:
        """The different ids; valid until the next change."""
        return self._ids[: len(self._place)]

    @property
    def counts(self) -> NDArray[np.int32]:
        """How often each of `ids` occurred."""
        return self._counts[: len(self._place)]

    def add(self, token_id: int) -> None:
        """One more."""
        place = self._place.setdefault(token_id, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token_id
        self._counts[place] += 1

    def remove(self, token_id: int) -> None:
        """Undoes the last `add`."""
        place = self._place[token_id]
        self._counts[place] -= 1
        if self._counts[place] == 0:
            del self._place[token_id]


class Sampled:
    """One sequence. Counts are kept only where its params have a use for them."""

    def __init__(self, start: Start, eos_token_ids: tuple[int, ...], vocab_size: int):
        params = start.params
        self.params = params
        self.choice = start.choice
        self.prompt = start.prompt
        self.num_output = len(start.output)
        counted = params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        self.output = Counts(start.output) if counted else None
        self.seen = Counts([*start.prompt, *start.output]) if params.repetition_penalty != 1.0 else None
        ends = set(params.stop_token_ids) | (set() if params.ignore_eos else set(eos_token_ids))
        self.end_ids = np.array(sorted(ends), dtype=np.int32)
        self.bias_ids = np.array([token_id for token_id, _ in params.logit_bias], dtype=np.int32)
        self.bias_values = np.array([bias for _, bias in params.logit_bias], dtype=np.float32)
        self.guide = Guide(start.guide, start.output) if params.grammar is not None else None
        self.allowed = bits_of(params.allowed_token_ids, vocab_size) if params.allowed_token_ids else None
        self.tail = list(start.output) if params.bad_word_ids else None

    @property
    def is_masked(self) -> bool:
        """Whether a mask says what may come next."""
        return self.guide is not None or self.allowed is not None

    def push(self, token_id: int) -> None:
        """The output grew by this token."""
        self.num_output += 1
        for counts in (self.output, self.seen):
            if counts is not None:
                counts.add(token_id)
        if self.guide is not None:
            self.guide.push(token_id)
        if self.tail is not None:
            self.tail.append(token_id)

    def pop(self, token_id: int) -> None:
        """Undoes the last push."""
        self.num_output -= 1
        for counts in (self.output, self.seen):
            if counts is not None:
                counts.remove(token_id)
        if self.guide is not None:
            self.guide.pop()
        if self.tail is not None:
            self.tail.pop()

    def draw(self) -> "Draw":
        """What the next token depends on, as of now."""
        early = self.num_output < self.params.min_tokens
        if self.output is None and self.seen is None and self.tail is None and not early:
            return self, self.num_output, PLAIN
        lists = Lists(
            self.output.ids.copy() if self.output else _NONE,
            self.output.counts.copy() if self.output else _NONE,
            self.seen.ids.copy() if self.seen else _NONE,
            self._banned(early),
        )
        return self, self.num_output, lists

    def _banned(self, early: bool) -> NDArray[np.int32]:
        """The ends while it is too early for them, and the last token of each bad word whose others were the last to come."""
        ends = self.end_ids if early else _NONE
        if self.tail is None:
            return ends
        last = {ids[-1] for ids in self.params.bad_word_ids if self._ends_with(ids[:-1])}
        return np.union1d(ends, np.array(sorted(last), dtype=np.int32)) if last else ends

    def _ends_with(self, ids: tuple[int, ...]) -> bool:
        return not ids or (self.tail is not None and tuple(self.tail[-len(ids) :]) == ids)


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """Those of one row of SampleParams that change as the output grows."""

    output_ids: NDArray[np.int32]
    output_counts: NDArray[np.int32]
    seen_ids: NDArray[np.int32]
    banned_ids: NDArray[np.int32]


PLAIN = Lists(_NONE, _NONE, _NONE, _NONE)

Draw: TypeAlias = tuple[Sampled, int, Lists]
"""One row of SampleParams: whose, its position, and its lists, which are PLAIN where nothing else changes from draw to draw."""


class Sampler:
    """All sequences of one runner, by seq_id."""

    def __init__(self, ops: Ops, eos_token_ids: tuple[int, ...], vocab_size: int, device: str, masks: Masks):
        self._ops = ops
        self._columns = Columns(device)
        self._vocab_size = vocab_size
        self._masks = masks
        self._eos_token_ids = eos_token_ids
        self._sequences: dict[int, Sampled] = {}

    def close(self) -> None:
        """Ends the thread that fills masks."""
        self._masks.close()

    def begin(self, step: Step) -> None:
        """Forgets and learns what `step` says, and starts on the masks that its rows will need."""
        self._update(step)
        known = ((row, self._sequences.get(row.seq_id)) for row in step.rows if row.sample)
        wanted = [
            Wanted(row.seq_id, sequence.guide, sequence.allowed, row.token_ids[-row.num_drafts :] if row.num_drafts else ())
            for row, sequence in known
            if sequence is not None and sequence.is_masked
        ]
        self._masks.begin(wanted, self._vocab_size)

    def _update(self, step: Step) -> None:
        for seq_id in step.ends:
            self._sequences.pop(seq_id, None)
        for start in step.starts:
            try:
                self._sequences[start.seq_id] = Sampled(start, self._eos_token_ids, self._vocab_size)
            except Exception:
                # Its rows end it; the others of the step are not to suffer for it.
                logger.exception("a sequence could not be begun")

    def sample(self, rows: Sequence[Row], logits: Tensor) -> list[RowResult]:
        """Results of the rows begun, whose logits [S, V] are those that they want (prepare.num_wanted), in order."""
        masks = self._masks.take()
        results = [RowResult(error=self._fault(row, masks)) for row in rows]
        draws: list[Draw] = []
        masked: list[int] = []  # which of the masks each draw has, -1 for none
        chosen: list[int] = []  # of the logits, one per draw
        asked: list[tuple[Row, RowResult, int, int]] = []  # who wants prompt logprobs, and which logits those are of
        end = 0
        for row, result in zip(rows, results, strict=True):
            first, end = end, end + num_wanted(row)
            if row.sample and result.error is None:
                try:
                    draws += self._drafted(row) if row.num_drafts else (self._sequences[row.seq_id].draw(),)
                except Exception:
                    logger.exception("a sequence could not be sampled")
                    result.error = BROKEN
                else:
                    chosen += range(end - 1 - row.num_drafts, end)
                    mask = masks.get(row.seq_id)
                    num = 1 + row.num_drafts
                    masked += [-1] * num if mask is None else range(mask, mask + num)
            if row.prompt_logprobs:
                asked.append((row, result, first, end))
        if draws:
            drawn = logits if len(chosen) == end else logits[torch.tensor(chosen, device=logits.device)]
            ids = self._ops.sample(drawn, self._columns.params_of(draws, masked, self._masks.tensor)).tolist()
            self._book(rows, results, ids, drawn)
        for row, result, first, end in asked:
            if result.error is None:
                result.prompt_logprobs = self._of_prompt(row, logits[first:end])
        return results

    def _fault(self, row: Row, masks: Mapping[int, int | None]) -> str | None:
        """Why nothing can be said of a row."""
        if row.seq_id not in self._sequences:
            return BROKEN
        return FAILED if masks.get(row.seq_id, 0) is None else None

    def _drafted(self, row: Row) -> list[Draw]:
        """The draws of a row with drafts: of the token after each of them, too."""
        sequence = self._sequences[row.seq_id]
        draws, drafts = [sequence.draw()], row.token_ids[-row.num_drafts :]
        for draft in drafts:
            sequence.push(draft)
            draws.append(sequence.draw())
        for draft in reversed(drafts):
            sequence.pop(draft)
        return draws

    def _book(self, rows: Sequence[Row], results: list[RowResult], ids: list[int], logits: Tensor) -> None:
        """Accepts drafts, remembers tokens, and adds log-probabilities for those who ask."""
        at, vocab_size = 0, logits.shape[1]
        for row, result in zip(rows, results, strict=True):
            if not row.sample or result.error is not None:
                continue
            sequence, num = self._sequences[row.seq_id], 1
            if row.num_drafts:
                drafts = row.token_ids[-row.num_drafts :]
                while num <= len(drafts) and ids[at + num - 1] == drafts[num - 1]:
                    num += 1
            tokens = ids[at : at + num]
            if min(tokens) < 0 or max(tokens) >= vocab_size:
                result.error = ERRORS.get(min(tokens), NO_TOKEN)
            else:
                for token_id in tokens:
                    sequence.push(token_id)
                result.token_ids = tokens
                if sequence.params.num_logprobs is not None:
                    result.logprobs = self._logprobs(logits[at : at + num], tokens, sequence.params.num_logprobs)
            at += 1 + row.num_drafts

    def _of_prompt(self, row: Row, logits: Tensor) -> list[TokenLogprobs]:
        sequence = self._sequences[row.seq_id]
        targets = sequence.prompt[row.num_computed + 1 : row.num_computed + 1 + len(row.token_ids)]
        return self._logprobs(logits[: len(targets)], targets, sequence.params.num_prompt_logprobs or 0)

    def _logprobs(self, logits: Tensor, token_ids: Sequence[int], num_alternatives: int) -> list[TokenLogprobs]:
        """Of each token under its row of raw logits, with the most likely ones after it."""
        if not len(token_ids):
            return []
        targets = torch.tensor(list(token_ids), dtype=torch.int64, device=logits.device)
        own, ids, values = self._ops.logprobs(logits.contiguous(), targets, num_alternatives)
        columns = zip(token_ids, own.tolist(), ids.tolist(), values.tolist(), strict=True)
        return [TokenLogprobs((token_id, *top), (value, *tops)) for token_id, value, top, tops in columns]


class Columns:
    """SampleParams of draws. What does not change from step to step is kept for as long as the same sequences draw."""

    def __init__(self, device: str):
        self._device = device
        self._sequences: tuple[Sampled, ...] = ()
        self._masked: list[int] = []
        self._fixed: dict[str, Tensor] = {}
        self._positions = np.zeros(0, dtype=np.int64)  # where it is the host's, the memory of _plain.position
        self._plain: SampleParams | None = None  # of the same sequences, if none has lists

    def params_of(self, draws: Sequence[Draw], masked: list[int], masks: Tensor) -> SampleParams:
        """The arrays of `draws`, on the device; valid until the next call. masked: which of the masks each draw has, or -1."""
        sequences, positions, lists = zip(*draws, strict=True)
        has_masks = max(masked) >= 0
        if sequences != self._sequences or masked != self._masked or (has_masks and self._device != "cpu"):
            self._sequences, self._masked, self._plain = sequences, masked, None
            self._fixed = self._fixed_of(sequences)
            self._fixed["mask_row"] = self._column(masked, np.int32)
            self._fixed["mask"] = masks.to(self._device) if has_masks else NO_MASK
        if lists.count(PLAIN) < len(lists):
            return self._whole(np.array(positions), lists)
        if self._plain is None:
            self._positions = np.array(positions)
            self._plain = self._whole(self._positions, lists)
        else:
            self._positions[:] = positions
            if self._device != "cpu":
                self._plain.position.copy_(torch.from_numpy(self._positions))
        return self._plain

    def _whole(self, positions: NDArray[np.int64], lists: Sequence[Lists]) -> SampleParams:
        output, seen, banned = zip(*[(each.output_ids, each.seen_ids, each.banned_ids) for each in lists], strict=True)
        return SampleParams(
            **self._fixed,
            position=torch.from_numpy(positions).to(self._device),
            output_start=self._starts(output),
            output_ids=self._joined(output),
            output_counts=self._joined([each.output_counts for each in lists]),
            seen_start=self._starts(seen),
            seen_ids=self._joined(seen),
            banned_start=self._starts(banned),
            banned_ids=self._joined(banned),
        )

    def _fixed_of(self, sequences: Sequence[Sampled]) -> dict[str, Tensor]:
        params = [sequence.params for sequence in sequences]
        floats = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
        bias = [sequence.bias_ids for sequence in sequences]
        return {name: self._column((getattr(each, name) for each in params), np.float32) for name in floats} | {
            "top_k": self._column((each.top_k for each in params), np.int32),
            "seed": self._column((each.seed or 0 for each in params), np.int64),
            "choice": self._column((sequence.choice for sequence in sequences), np.int64),
            "bias_start": self._starts(bias),
            "bias_ids": self._joined(bias),
            "bias_values": self._joined([sequence.bias_values for sequence in sequences]),
        }

    def _column(self, values: Iterable[float], dtype: type[np.generic]) -> Tensor:
        return torch.from_numpy(np.fromiter(values, dtype)).to(self._device)

    def _joined(self, lists: Sequence[NDArray[np.generic]]) -> Tensor:
        return torch.from_numpy(np.concatenate(lists)).to(self._device)

    def _starts(self, lists: Sequence[NDArray[np.generic]]) -> Tensor:
        return self._column(accumulate(map(len, lists), initial=0), np.int32)
