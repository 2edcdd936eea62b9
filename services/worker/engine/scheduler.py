"""Decides what each step computes, and books what it gave.

There is no prefill and no decode: a sequence owes its known tokens less its computed ones, and each step pays some.

1. Three lines, each in order of (band, tag, seq_id): running (has a seat), waiting, paused. Any may hold blocks.
2. Every running sequence is promised one token of the budget; what is over goes to them in order, then to waiting ones.
   So a long prompt never takes the token of a sequence that only decodes.
3. A waiting sequence gets a seat when blocks for all it owes are free, beyond those promised to running ones. The
   first that cannot makes all behind it wait.
4. Out of blocks: paused sequences lose theirs first, then waiting ones, then the last running one, which goes back to
   waiting and is recomputed (mostly from the cache). The last running one itself merely sits the step out.
   So the first running sequence always gets what it needs, and every step with work makes progress.

It knows nothing of threads, time or the device.
"""

import itertools
from bisect import bisect_left, insort
from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass

from services.worker.engine.blocks import BlockPool, IntegrityError
from services.worker.engine.sequence import Delta, Finish, Key, Request, Sequence, Work
from services.worker.engine.step import Row, RowResult, RunnerLimits, Start, Step, StepResult
from services.worker.engine.stopping import Stopping
from shared.prefix import block_key

Drafter = Callable[[list[int], int], Ids[int]]
"""Guesses what follows the known tokens: at most so many ids, perhaps none."""


@dataclass(slots=True)
class Plan:
    """A step and the sequence of each of its rows."""

    step: Step
    sequences: list[Sequence]


def _order(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.order


class Scheduler:
    """The lines of sequences and the pool their blocks come from; `schedule` and `finish` alternate."""

    def __init__(self, limits: RunnerLimits, max_num_seqs: int, max_step_tokens: int, drafter: Drafter | None = None):
        self.pool = BlockPool(limits.num_blocks, limits.block_size)
        self.num_preemptions = self.num_computed_tokens = self.num_cached_tokens = 0
        self._limits = limits
        self._block_size = limits.block_size
        self._max_num_seqs = max_num_seqs
        self._max_step_tokens = max_step_tokens
        self._drafter = drafter
        self._running: list[Sequence] = []
        self._waiting: list[Sequence] = []
        self._paused: list[Sequence] = []
        self._requests: dict[Key, Request] = {}
        self._seq_ids = itertools.count()
        self._ends: list[int] = []
        self._deltas: list[Delta] = []

    # What is asked between steps.

    def submit(self, work: Work) -> None:
        """Puts the choices of `work` in line; those that are over, or can never run, end at once."""
        self.cancel(work.key)
        request = Request(work, self._block_size)
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
            self._move(sequence, self._waiting)
            if not work.prompt or room < 1:
                most = self._limits.max_model_len - 1
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
        self._move_all(key, self._paused)

    def resume(self, key: Key) -> None:
        """Lines a paused request up again."""
        request = self._requests.get(key)
        if request is not None and any(sequence.line is self._paused for sequence in request.sequences.values()):
            self._move_all(key, self._waiting)

    def take_deltas(self) -> list[Delta]:
        """What has been produced since the last call, in order."""
        deltas, self._deltas = self._deltas, []
        return deltas

    # What can be seen. Called from other threads, too, so each reads a line's length or a copy.

    def counts(self) -> tuple[int, int, int]:
        """Sequences running, waiting, paused."""
        return len(self._running), len(self._waiting), len(self._paused)

    def num_promised(self) -> int:
        """Blocks that running sequences need for the tokens they owe, and one more each to go on."""
        size = self._block_size
        return sum(max(0, -(-len(each.tokens) // size) - len(each.blocks)) + 1 for each in self._running[:])

    def slots(self) -> tuple[int, int]:
        """Slots of referenced blocks that hold nothing yet, and all slots of referenced blocks.

        Shared blocks are full, so what sequences lack in their own tables adds up without counting any twice.
        """
        size, unused = self._block_size, 0
        for line in (self._running, self._waiting, self._paused):
            for each in line:
                unused += len(each.blocks) * size - each.num_computed
        return unused, self.pool.num_referenced * size

    def check_integrity(self) -> None:
        """Raises IntegrityError if pool, tables, lines and requests contradict one another."""
        lines = (self._running, self._waiting, self._paused)
        everyone = [sequence for line in lines for sequence in line]
        self.pool.check_integrity(sequence.blocks for sequence in everyone)
        for line in lines:
            if any(each.line is not line for each in line) or line != sorted(line, key=_order):
                raise IntegrityError("a sequence is not where it thinks it is, or out of order")
        for each in everyone:
            if not each.num_computed <= len(each.blocks) * self._block_size or each.num_computed >= len(each.tokens):
                raise IntegrityError(f"sequence {each.seq_id}: {each.num_computed} computed of {len(each.tokens)} tokens")
        if len(everyone) != sum(len(request.sequences) for request in self._requests.values()):
            raise IntegrityError("a sequence stands in a line without a request, or in none")

    def check_idle(self) -> None:
        """Raises IntegrityError if anything could run; for when `schedule` gave nothing."""
        if self._running or self._waiting:
            raise IntegrityError(f"no progress with {len(self._running)} running and {len(self._waiting)} waiting")

    # The step.

    def schedule(self) -> Plan:
        """What to compute next; no rows when nothing can run."""
        plan = Plan(Step([]), [])
        budget = self._schedule_running(plan)
        if self._waiting and budget:
            self._schedule_waiting(plan, budget)
        if plan.step.rows:
            plan.step.ends, self._ends = self._ends, []
        return plan

    def _schedule_running(self, plan: Plan) -> int:
        """Adds rows for running sequences; the budget left. May shorten the line from its end, or drop who never fits."""
        running, size, index = self._running, self._block_size, 0
        budget = self._max_step_tokens
        spare = max(0, budget - len(running))
        while index < len(running) and budget:
            sequence = running[index]
            start = sequence.num_computed
            count = min(len(sequence.tokens) - start, 1 + spare, budget)
            lacking = (start + count + size - 1) // size - len(sequence.blocks)
            if lacking > 0 and not self._extend(sequence, lacking):
                index += sequence.line is running
                continue
            index += 1
            drafts: Ids[int] = ()
            if self._drafter is not None and spare >= count and start + count == len(sequence.tokens):
                drafts = self._drafts(sequence, spare - count + 1)
            self._add_row(plan, sequence, count, drafts)
            count += len(drafts)
            spare -= count - 1
            budget -= count
        return budget

    def _schedule_waiting(self, plan: Plan, budget: int) -> None:
        """Gives seats to waiting sequences while seats, budget and blocks last."""
        for sequence in self._waiting[:]:
            if not budget or len(self._running) >= self._max_num_seqs:
                break
            if sequence.line is not self._waiting or sequence.is_held:
                continue
            if not self._admit(sequence):
                if sequence.line is None:
                    continue
                break
            count = min(len(sequence.tokens) - sequence.num_computed, budget)
            lacking = -(-(sequence.num_computed + count) // self._block_size) - len(sequence.blocks)
            sequence.blocks += [self.pool.allocate() for _ in range(lacking)]
            self._add_row(plan, sequence, count, ())
            budget -= count

    def _add_row(self, plan: Plan, sequence: Sequence, count: int, drafts: Ids[int]) -> None:
        start, tokens = sequence.num_computed, sequence.tokens
        end = start + count
        ids = tokens[start:end]
        if drafts:
            ids += drafts
        row = Row(sequence.seq_id, start, ids, sequence.blocks, end == len(tokens), len(drafts))
        if sequence.prompt_logprobs is not None:
            row.prompt_logprobs = start < sequence.num_prompt - 1
        if not sequence.started:
            sequence.started = True
            work = sequence.request.work
            plan.step.starts.append(
                Start(sequence.seq_id, sequence.choice, work.params, work.prompt, tokens[sequence.num_prompt :])
            )
        plan.step.rows.append(row)
        plan.sequences.append(sequence)

    def _drafts(self, sequence: Sequence, spare: int) -> Ids[int]:
        """Guesses for a row that samples: only into slots that can be had for nothing, and none past its end."""
        if self._drafter is None:
            return ()
        room = (len(sequence.blocks) + self.pool.num_free - len(self._running)) * self._block_size - len(sequence.tokens)
        most = min(spare, room, sequence.stopping.most - sequence.num_output - 1)
        if most < 1:
            return ()
        drafts = list(self._drafter(sequence.tokens, most))[:most]
        lacking = -(-(len(sequence.tokens) + len(drafts)) // self._block_size) - len(sequence.blocks)
        sequence.blocks += [self.pool.allocate() for _ in range(lacking)]
        return drafts

    # Blocks.

    def _extend(self, sequence: Sequence, lacking: int) -> bool:
        """Gives a running sequence more blocks, others' if need be. If it can never fit, it ends with an error."""
        while self.pool.num_free < lacking:
            if self._fails_to_fit(sequence):
                return False
            last = self._running[-1]
            if not self._reclaim(sequence):
                if last is sequence:
                    return False
                self.num_preemptions += 1
                self._drop_blocks(last)
                self._move(last, self._waiting)
        sequence.blocks += [self.pool.allocate() for _ in range(lacking)]
        return True

    def _admit(self, sequence: Sequence) -> bool:
        """Moves a waiting sequence to running with the cached blocks of its beginning, if there is room for all it owes."""
        if self._fails_to_fit(sequence):
            return False
        promised = self.num_promised() if self._running else -1
        while True:
            hits = [] if sequence.blocks else self._find(sequence)
            needed = -(-len(sequence.tokens) // self._block_size) - len(sequence.blocks) - len(hits)
            if self.pool.num_free - promised > needed + self.pool.count_free(hits):
                break
            if not self._reclaim(sequence):
                return False
        if hits:
            self.pool.share(hits)
            sequence.blocks = hits
            sequence.num_published = len(hits)
            sequence.num_computed = len(hits) * self._block_size
            self.num_cached_tokens += sequence.num_computed
            if sequence.is_first and not sequence.started:
                sequence.request.num_cached_tokens = min(sequence.num_computed, sequence.num_prompt)
        self._move(sequence, self._running)
        return True

    def _find(self, sequence: Sequence) -> list[int]:
        """Cached blocks of its beginning: never that of the last token, which is always computed to get its logits.

        While prompt logprobs are gathered, only as far as they have come.
        """
        most = (len(sequence.tokens) - 1) // self._block_size
        if sequence.prompt_logprobs is not None:
            most = min(most, len(sequence.prompt_logprobs) // self._block_size)
        request = sequence.request
        if not sequence.keys:
            sequence.keys = request.first.keys[: request.num_shareable // self._block_size]
        for index in range(len(sequence.keys), most):
            self._make_key(sequence, index)
        return self.pool.find(sequence.keys[:most], sequence.tokens)

    def _make_key(self, sequence: Sequence, index: int) -> None:
        start = index * self._block_size
        parent = sequence.keys[-1] if sequence.keys else sequence.request.root
        sequence.keys.append(block_key(parent, sequence.tokens[start : start + self._block_size]))

    def _reclaim(self, sequence: Sequence) -> bool:
        """Frees the blocks of one paused sequence, else of one waiting behind `sequence`; False if there is none."""
        for line in (self._paused, self._waiting):
            for victim in reversed(line):
                if victim is sequence:
                    break
                if victim.blocks:
                    self.num_preemptions += 1
                    self._drop_blocks(victim)
                    return True
        return False

    def _drop_blocks(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = sequence.num_published = 0

    def _fails_to_fit(self, sequence: Sequence) -> bool:
        """Ends a sequence that has outgrown the whole pool with an error."""
        if len(sequence.tokens) <= self.pool.num_blocks * self._block_size:
            return False
        slots = self.pool.num_blocks * self._block_size
        self._fail(sequence, f"{len(sequence.tokens)} tokens do not fit in the {slots} tokens of KV memory of this worker")
        return True

    # Results.

    def finish(self, plan: Plan, result: StepResult) -> None:
        """Books a step's results: advances, publishes full blocks, ends what is over."""
        size = self._block_size
        for sequence, row, got in zip(plan.sequences, plan.step.rows, result.rows, strict=True):
            self.num_computed_tokens += len(row.token_ids)
            if got.error is not None:
                self._fail(sequence, got.error)
                continue
            new = got.token_ids
            # With drafts the last of `new` is sampled after the accepted ones, whose KV is right; the rest is overwritten.
            computed = row.num_computed + len(row.token_ids)
            sequence.num_computed = computed = computed - row.num_drafts + len(new) - 1 if row.num_drafts else computed
            if row.prompt_logprobs and sequence.prompt_logprobs is not None:
                known = len(sequence.prompt_logprobs) - row.num_computed
                sequence.prompt_logprobs += got.prompt_logprobs[known:]
            if new:
                self._book(sequence, got)
            if computed // size > sequence.num_published and sequence.line is not None:
                self._publish(sequence)

    def _book(self, sequence: Sequence, got: RowResult) -> None:
        """Appends what a row sampled, up to the token that ends the choice."""
        new, tokens = got.token_ids, sequence.tokens
        idx = len(tokens) - sequence.num_prompt
        reason = None
        for count, token_id in enumerate(new, 1):
            reason = sequence.stopping.reason(token_id, idx + count)
            if reason is not None:
                del new[count:]
                break
        tokens += new
        delta = Delta(sequence.request.work, sequence.choice, idx, new)
        if sequence.wants_logprobs:
            delta.logprobs = got.logprobs[: len(new)]
        if sequence.prompt_logprobs is not None:
            delta.prompt_logprobs, sequence.prompt_logprobs = sequence.prompt_logprobs, None
        self._deltas.append(delta)
        if reason is not None:
            self._end(sequence, reason, delta)

    def _publish(self, sequence: Sequence) -> None:
        size = self._block_size
        for index in range(sequence.num_published, sequence.num_computed // size):
            if index == len(sequence.keys):
                self._make_key(sequence, index)
            held = sequence.tokens[index * size : (index + 1) * size]
            self.pool.publish(sequence.blocks[index], sequence.keys[index], held)
        sequence.num_published = sequence.num_computed // size

    def _end(self, sequence: Sequence, reason: str, delta: Delta | None = None, error: str | None = None) -> None:
        """Ends a choice, in the given delta or in one of its own."""
        num_output, request = sequence.num_output, sequence.request
        if delta is None:
            delta = Delta(request.work, sequence.choice, num_output, [])
            self._deltas.append(delta)
        stop_id = None
        if reason == "stop" and num_output and sequence.stopping.ends(sequence.tokens[-1], num_output):
            stop_id = sequence.tokens[-1]
        delta.finish = Finish(reason, num_output, stop_id, request.num_cached_tokens, error)
        self._leave(sequence)
        del request.sequences[sequence.choice]
        if not request.sequences:
            del self._requests[request.work.key]

    def _fail(self, sequence: Sequence, error: str) -> None:
        self._end(sequence, "error", error=error)

    # Lines.

    def _move(self, sequence: Sequence, line: list[Sequence]) -> None:
        if sequence.line is not None:
            del sequence.line[bisect_left(sequence.line, sequence.order, key=_order)]
        insort(line, sequence, key=_order)
        sequence.line = line

    def _move_all(self, key: Key, line: list[Sequence]) -> None:
        request = self._requests.get(key)
        for sequence in request.sequences.values() if request is not None else ():
            self._move(sequence, line)

    def _leave(self, sequence: Sequence) -> None:
        if sequence.line is not None:
            del sequence.line[bisect_left(sequence.line, sequence.order, key=_order)]
            sequence.line = None
        self._drop_blocks(sequence)
        if sequence.started:
            self._ends.append(sequence.seq_id)
