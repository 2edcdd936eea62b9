"""Decides what each step computes, and books what it gave.

There is no prefill and no decode: a sequence owes its known tokens less its computed ones, and each step pays some.

1. Every running sequence is promised one token of the step's budget. What is over goes to them in order, then to
   waiting ones. So a long prompt never takes the token of a sequence that only decodes. While any decodes, a step
   computes few other tokens (pace.py), as all wait for the longest step; those behind many others count for more. No prompt
   takes more than half of what is over while a sequence may get a seat, or while shorter ones behind it need the rest.
2. A waiting sequence gets a seat when blocks for all that it owes are free, beyond those promised to running ones. The
   first that cannot makes all behind it wait, so none is passed over for ever.
3. Of n choices the first computes the prompt; the others wait until it has, and find its blocks in the cache.
4. A prompt to pool pays for its tokens like any other and ends with the last of them.
5. A sequence that outgrew the whole pool ends with an error. The first running one else always gets its blocks
   (lines.py), so every step with work makes progress.

It knows nothing of threads, clocks or the device.
"""

import itertools
import math
from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass

from services.worker.engine.blocks import BlockPool, IntegrityError
from services.worker.engine.lines import Lines
from services.worker.engine.pace import Chunk, Pace
from services.worker.engine.sequence import Delta, Finish, Key, Request, Sequence, Work
from services.worker.engine.step import Row, RowResult, RunnerLimits, Start, Step, StepResult
from services.worker.engine.stopping import Stopping

Drafter = Callable[[list[int], int], Ids[int]]
"""Guesses what follows the known tokens: at most so many ids, perhaps none."""


@dataclass(slots=True)
class Plan:
    """A step, the sequence of each of its rows, and the rows of more than one token, drafts aside."""

    step: Step
    sequences: list[Sequence]
    chunks: list[Chunk]


class Scheduler:
    """Takes Work and gives Deltas; in between `schedule` and `finish` alternate."""

    def __init__(self, limits: RunnerLimits, max_num_seqs: int, max_step_tokens: int, drafter: Drafter | None = None):
        self.lines = Lines(BlockPool(limits.num_blocks, limits.block_size))
        self.num_computed_tokens = 0
        self._limits = limits
        self._max_num_seqs = max_num_seqs
        self._max_step_tokens = max_step_tokens
        self._drafter = drafter
        self._pace = Pace()
        self._requests: dict[Key, Request] = {}
        self._seq_ids = itertools.count()
        self._ends: list[int] = []
        self._deltas: list[Delta] = []

    def submit(self, work: Work) -> None:
        """Puts the choices of `work` in line; those that are over, or can never run, end at once."""
        self.cancel(work.key)
        request = Request(work, self._limits.block_size)
        room = self._limits.max_model_len - len(work.prompt)
        for choice in range(work.params.n):
            if choice not in work.ended:
                stopping = Stopping.of(work.params, self._limits.eos_token_ids, room)
                request.sequences[choice] = Sequence(request, next(self._seq_ids), choice, stopping)
        if not request.sequences:
            return
        self._requests[work.key] = request
        request.first = next(iter(request.sequences.values()))
        if work.params.num_prompt_logprobs is not None and not work.ended and not any(work.outputs.values()):
            request.first.prompt_logprobs = []
        for sequence in list(request.sequences.values()):
            self.lines.move(sequence, self.lines.waiting)
            least = 0 if work.pooling else 1  # of room: for the first token of the output
            if not work.prompt or room < least:
                most = self._limits.max_model_len - least
                self._fail(sequence, f"a prompt must have 1 to {most} tokens here, not {len(work.prompt)}")
            elif sequence.num_output:
                reason = sequence.stopping.reason(sequence.tokens[-1], sequence.num_output)
                if reason is not None:
                    self._end(sequence, reason)

    def cancel(self, key: Key) -> None:
        """Forgets a request, and its deltas not yet taken."""
        request = self._requests.pop(key, None)
        if request is not None:
            for sequence in request.sequences.values():
                self._leave(sequence)
            self._deltas = [delta for delta in self._deltas if delta.work is not request.work]

    def stop_choice(self, key: Key, choice: int, num_tokens: int) -> None:
        """Ends a choice at `num_tokens` output tokens, now or when it has as many. Nothing if it has ended."""
        request = self._requests.get(key)
        sequence = request.sequences.get(choice) if request is not None else None
        if sequence is None:
            return
        if sequence.num_output >= num_tokens:
            del sequence.tokens[sequence.num_prompt + num_tokens :]
            self._end(sequence, "stop")
        else:
            sequence.stopping = sequence.stopping.at(num_tokens)

    def pause(self, key: Key) -> None:
        """Takes a request out of the running; it keeps its blocks until others need them."""
        self._move_all(key, self.lines.paused)

    def resume(self, key: Key) -> None:
        """Lines a paused request up again."""
        request = self._requests.get(key)
        if request is not None and any(each.line is self.lines.paused for each in request.sequences.values()):
            self._move_all(key, self.lines.waiting)

    def take_deltas(self) -> list[Delta]:
        """What has been produced since the last call, in order."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def check_idle(self) -> None:
        """Raises IntegrityError if anything could run; for when `schedule` gave nothing."""
        running, waiting = self.lines.running, self.lines.waiting
        if running or waiting:
            raise IntegrityError(f"no progress with {len(running)} sequences running and {len(waiting)} waiting")

    def check_integrity(self) -> None:
        """Raises IntegrityError if blocks, lines or requests contradict one another."""
        self.lines.check_integrity()
        inside = len(self.lines.running) + len(self.lines.waiting) + len(self.lines.paused)
        if inside != sum(len(request.sequences) for request in self._requests.values()):
            raise IntegrityError("a sequence stands in a line without a request, or in none")

    def schedule(self) -> Plan:
        """What to compute next; no rows when nothing can run."""
        plan = Plan(Step([]), [], [])
        budget = self._schedule_running(plan)
        if self.lines.waiting and budget:
            self._schedule_waiting(plan, budget)
        if plan.step.rows:
            plan.step.ends, self._ends = self._ends, []
        return plan

    def _budget(self) -> int:
        """Most tokens of the next step."""
        running = self.lines.running
        num_decoding = sum(len(sequence.tokens) - sequence.num_computed == 1 for sequence in running)
        if not num_decoding:
            return self._max_step_tokens
        return min(self._max_step_tokens, len(running) + self._pace.beside(num_decoding))

    def _schedule_running(self, plan: Plan) -> int:
        """Adds rows for running sequences; the budget left. The line may lose its last ones, and those that never fit."""
        running, size, index = self.lines.running, self._limits.block_size, 0
        budget = self._budget()
        spare = max(0, budget - len(running))
        over, is_cut = spare, False  # over: what was left when the first prompt that does not get all came to its turn
        is_mixed, may_seat = budget < self._max_step_tokens, self._may_seat()
        while index < len(running) and budget:
            sequence = running[index]
            count, weight = len(sequence.tokens) - sequence.num_computed, 1.0
            if count > 1:
                weight = self._pace.weight(sequence.num_computed) if is_mixed else 1.0
                over = over if is_cut else spare
                most = spare - min(over // 2, self._owed_behind(index, count, may_seat)) if spare else 0
                if may_seat:
                    most = min(most, (over + 1) // 2)
                count = min(count, 1 + int(max(0, most) / weight), budget)
            end = sequence.num_computed + count
            if end > len(sequence.blocks) * size:
                if not self.lines.fits(sequence):
                    self._outgrown(sequence)
                    continue
                if not self.lines.extend(sequence, end):
                    break
            index += 1
            cost = math.ceil((count - 1) * weight)
            drafts: Ids[int] = ()
            if self._drafter is not None and spare > cost and end == len(sequence.tokens) and sequence.pooling is None:
                drafts = self._drafts(self._drafter, sequence, spare - cost)
            self._add_row(plan, sequence, end, drafts)
            is_cut = is_cut or end < len(sequence.tokens)
            cost += len(drafts)
            spare -= cost
            budget -= 1 + cost
        return budget

    def _may_seat(self) -> bool:
        """Whether there is a seat, and somebody waits who is not held."""
        lines = self.lines
        return len(lines.running) < self._max_num_seqs and any(not each.is_held for each in lines.waiting)

    def _owed_behind(self, index: int, count: int, may_seat: bool) -> int:
        """Tokens that those behind a running sequence owe, of those that owe less than `count`; running ones' first aside."""
        waiting = [each for each in self.lines.waiting if not each.is_held] if may_seat else []
        seated = itertools.islice(self.lines.running, index + 1, None)
        owed = [len(each.tokens) - each.num_computed - 1 for each in seated]
        owed += [len(each.tokens) - each.num_computed for each in waiting]
        return sum(num for num in owed if num < count - 1)

    def _schedule_waiting(self, plan: Plan, budget: int) -> None:
        """Gives seats to waiting sequences while seats, budget and blocks last."""
        lines = self.lines
        for sequence in lines.waiting[:]:
            if not budget or len(lines.running) >= self._max_num_seqs:
                break
            if sequence.is_held:
                continue
            if not lines.fits(sequence):
                self._outgrown(sequence)
                continue
            if not lines.seat(sequence):
                break
            if sequence.is_first and not sequence.started:
                sequence.request.num_cached_tokens = min(sequence.num_computed, sequence.num_prompt)
            end = min(len(sequence.tokens), sequence.num_computed + budget)
            lines.grow(sequence, end)
            budget -= end - sequence.num_computed
            self._add_row(plan, sequence, end, ())

    def _add_row(self, plan: Plan, sequence: Sequence, end: int, drafts: Ids[int]) -> None:
        start, tokens = sequence.num_computed, sequence.tokens
        ids = tokens[start:end]
        if end - start > 1:
            plan.chunks.append((end - start, start))
        if drafts:
            ids += drafts
        row = Row(sequence.seq_id, start, ids, sequence.blocks, end == len(tokens) and sequence.pooling is None, len(drafts))
        if sequence.prompt_logprobs is not None:
            row.prompt_logprobs = start < sequence.num_prompt - 1
        if not sequence.started:
            sequence.started = True
            work, output = sequence.request.work, tokens[sequence.num_prompt :]
            started = Start(sequence.seq_id, sequence.choice, work.params, work.prompt, output, work.guide, work.pooling)
            plan.step.starts.append(started)
        plan.step.rows.append(row)
        plan.sequences.append(sequence)

    def _drafts(self, drafter: Drafter, sequence: Sequence, spare: int) -> Ids[int]:
        """Guesses for a row that samples: only into blocks that nobody is promised, and none past its end."""
        known = len(sequence.tokens)
        blocks = len(sequence.blocks) + max(0, self.lines.pool.num_free - self.lines.num_promised())
        most = min(spare, blocks * self._limits.block_size - known, sequence.stopping.most - sequence.num_output - 1)
        if most < 1:
            return ()
        drafts = drafter(sequence.tokens, most)[:most]
        self.lines.grow(sequence, known + len(drafts))
        return drafts

    def finish(self, plan: Plan, result: StepResult) -> None:
        """Books a step's results: advances, publishes full blocks, ends what is over."""
        size = self._limits.block_size
        for sequence, row, got in zip(plan.sequences, plan.step.rows, result.rows, strict=True):
            num_ids, new = len(row.token_ids), got.token_ids
            self.num_computed_tokens += num_ids
            if got.error is not None:
                self._fail(sequence, got.error)
                continue
            if row.sample != bool(new):
                raise RuntimeError(f"the runner gave {len(new)} tokens for a row with sample={row.sample}")
            if row.prompt_logprobs and sequence.prompt_logprobs is not None:
                sequence.prompt_logprobs += got.prompt_logprobs[len(sequence.prompt_logprobs) - row.num_computed :]
            delta = reason = None
            if new:
                delta, reason = self._book(sequence, got)
            computed = row.num_computed + num_ids
            if row.num_drafts:  # The KV of a token is right up to the last accepted draft; the rest is overwritten.
                computed += len(new) - 1 - row.num_drafts
            sequence.num_computed = computed
            if computed // size > sequence.num_published:
                self.lines.publish(sequence)
            if reason is not None:
                self._end(sequence, reason, delta)
            elif sequence.pooling is not None and computed == len(sequence.tokens):
                if got.vector is None:
                    raise RuntimeError("the runner gave no vector for a prompt that was to be pooled")
                self._end(sequence, "stop", vector=got.vector)

    def learn(self, plan: Plan, step_s: float) -> None:
        """Takes note of how long a step took, for the size of later ones."""
        self._pace.learn(len(plan.step.rows) - len(plan.chunks), plan.chunks, step_s)

    def _book(self, sequence: Sequence, got: RowResult) -> tuple[Delta, str | None]:
        """Appends what a row sampled, up to the token that ends the choice: the delta, and the reason if it ends."""
        new, tokens, reason = got.token_ids, sequence.tokens, None
        idx = len(tokens) - sequence.num_prompt
        for count, token_id in enumerate(new, 1):
            reason = sequence.stopping.reason(token_id, idx + count)
            if reason is not None:
                del new[count:]
                break
        tokens += new
        delta = Delta(sequence.request.work, sequence.choice, idx, new)
        if sequence.wants_logprobs:
            delta.logprobs = list(got.logprobs[: len(new)])
        if sequence.prompt_logprobs is not None:
            delta.prompt_logprobs, sequence.prompt_logprobs = sequence.prompt_logprobs, None
        self._deltas.append(delta)
        return delta, reason

    def _end(
        self,
        sequence: Sequence,
        reason: str,
        delta: Delta | None = None,
        error: str | None = None,
        vector: bytes | None = None,
    ) -> None:
        """Ends a choice, in the given delta or in one of its own."""
        num_output, request = sequence.num_output, sequence.request
        if delta is None:
            delta = Delta(request.work, sequence.choice, num_output, [])
            self._deltas.append(delta)
        stop_id = None
        if reason == "stop" and num_output and sequence.stopping.ends(sequence.tokens[-1], num_output):
            stop_id = sequence.tokens[-1]
        delta.finish = Finish(reason, num_output, stop_id, request.num_cached_tokens, error, vector)
        self._leave(sequence)
        del request.sequences[sequence.choice]
        if not request.sequences:
            del self._requests[request.work.key]

    def _fail(self, sequence: Sequence, error: str) -> None:
        self._end(sequence, "error", error=error)

    def _outgrown(self, sequence: Sequence) -> None:
        slots = self._limits.num_blocks * self._limits.block_size
        self._fail(sequence, f"{len(sequence.tokens)} tokens do not fit in the KV memory of this worker ({slots} tokens)")

    def _leave(self, sequence: Sequence) -> None:
        self.lines.leave(sequence)
        if sequence.started:
            self._ends.append(sequence.seq_id)

    def _move_all(self, key: Key, line: list[Sequence]) -> None:
        request = self._requests.get(key)
        for sequence in request.sequences.values() if request is not None else ():
            self.lines.move(sequence, line)
