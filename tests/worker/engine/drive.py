"""Drives a Scheduler over a SimRunner step by step, auditing after each, and holds every output to the oracle.

It knows nothing of threads.
"""

from collections.abc import Iterable

from services.worker.engine.scheduler import Drafter, Scheduler
from services.worker.engine.sequence import Delta, Finish, Key, Work
from services.worker.engine.step import BLOCK_SIZE, Step
from services.worker.sim import SimRunner, SimSpec, expected_logprobs, expected_tokens
from shared.sampling import SamplingParams


class Drive:
    """What came out so far: `tokens` and `finishes` by (key, choice); `steps`, the steps run."""

    def __init__(self, spec: SimSpec, *, max_num_seqs: int = 8, max_step_tokens: int = 64, drafter: Drafter | None = None):
        self.spec = spec
        self.runner = SimRunner(spec)
        self.scheduler = Scheduler(self.runner.limits, max_num_seqs, max_step_tokens, drafter)
        self.max_step_tokens = max_step_tokens
        self.works: dict[Key, Work] = {}
        self.tokens: dict[tuple[Key, int], list[int]] = {}
        self.finishes: dict[tuple[Key, int], Finish] = {}
        self.deltas: list[Delta] = []
        self.steps: list[Step] = []

    def submit(self, key: Key, prompt: Iterable[int], params: SamplingParams, **rest: object) -> Work:
        work = Work(key, list(prompt), params, **rest)  # type: ignore[arg-type]
        self.works[key] = work
        for choice in range(params.n):
            if choice not in work.ended:
                self.tokens[key, choice] = list(work.outputs.get(choice, ()))
        self.scheduler.submit(work)
        return work

    def step(self) -> bool:
        """One step; False when there was nothing to do. Fails if there was and nothing came of it."""
        plan = self.scheduler.schedule()
        if plan.step.rows:
            assert sum(len(row.token_ids) for row in plan.step.rows) <= self.max_step_tokens
            self.steps.append(plan.step)
            self.scheduler.finish(plan, self.runner.run(plan.step))
        self.scheduler.check_integrity()
        deltas = self.scheduler.take_deltas()
        for delta in deltas:
            self._book(delta)
        if not plan.step.rows and not deltas:
            self.scheduler.check_idle()
            return False
        return True

    def run(self, most: int = 100_000) -> None:
        """Steps until nothing is left to do; fails if that takes more than `most`."""
        for _ in range(most):
            if not self.step():
                return
        raise AssertionError(f"not done after {most} steps")

    def _book(self, delta: Delta) -> None:
        self.deltas.append(delta)
        assert delta.work is self.works[delta.key]
        stream = delta.key, delta.choice
        assert stream not in self.finishes, "a delta after the end"
        tokens = self.tokens[stream]
        prompt, params = delta.work.prompt, delta.work.params
        if delta.prompt_logprobs is not None:
            assert not any(self.tokens[delta.key, each] for each in range(params.n)), "prompt logprobs after a token"
            want = params.num_prompt_logprobs or 0
            whole = [expected_logprobs(self.spec, prompt[at], at, want) for at in range(1, len(prompt))]
            assert delta.prompt_logprobs == whole
        if delta.token_ids:
            assert delta.idx == len(tokens)
            if params.num_logprobs is not None:
                start = len(prompt) + delta.idx
                known = enumerate(delta.token_ids, start)
                assert delta.logprobs == [expected_logprobs(self.spec, one, at, params.num_logprobs) for at, one in known]
            tokens += delta.token_ids
        if delta.finish is not None:
            self.finishes[stream] = delta.finish
            assert delta.idx + len(delta.token_ids) == delta.finish.num_tokens <= len(tokens)
            del tokens[delta.finish.num_tokens :]

    def check(self, key: Key, choice: int = 0, cut: int | None = None) -> None:
        """Fails unless the choice ended with exactly the tokens it must have; cut: where the router stopped it."""
        work = self.works[key]
        tokens, reason = expected_tokens(self.spec, work.prompt, work.params, choice)
        if cut is not None and cut <= len(tokens):
            tokens, reason = tokens[:cut], "stop"
        num_slots = self.spec.num_blocks * BLOCK_SIZE
        most = max(num_slots + 1 - len(work.prompt), len(work.outputs.get(choice, ())), 0)
        if len(tokens) > most:
            tokens, reason = tokens[:most], "error"
        finish = self.finishes[key, choice]
        assert (self.tokens[key, choice], finish.reason) == (tokens, reason), finish

    def check_all(self) -> None:
        for key, choice in self.tokens:
            self.check(key, choice)

    def check_empty(self) -> None:
        """Fails unless every block is free again."""
        pool = self.scheduler.lines.pool
        assert pool.num_free == pool.num_blocks
        assert not self.runner._known.keys() - set(self.scheduler._ends)
