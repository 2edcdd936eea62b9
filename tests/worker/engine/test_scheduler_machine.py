"""Random traffic over tiny pools, audited after every step, each output equal to the oracle. It knows nothing of time."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from services.worker.sim import SimSpec, expected_tokens
from shared.sampling import SamplingParams
from tests.worker.engine.drive import Drive

PROMPTS = [list(range(base, base + length)) for base in (1, 500) for length in (1, 5, 15, 16, 17, 32, 40, 70)]


class TrafficMachine(RuleBasedStateMachine):
    """Requests come, are cancelled, paused, resumed, stopped, cut over; the pool may be too small for some."""

    @initialize(
        num_blocks=st.integers(4, 24),
        budget=st.sampled_from([1, 2, 7, 16, 33, 512]),
        seats=st.integers(1, 6),
        draft=st.booleans(),
    )
    def start(self, num_blocks: int, budget: int, seats: int, draft: bool) -> None:
        spec = SimSpec(num_blocks=num_blocks, max_model_len=130, vocab_size=997, eos_token_ids=(2,), eos_one_in=25)
        self.drive = Drive(spec, max_num_seqs=seats, max_step_tokens=budget, drafter=self._draft if draft else None)
        self.count = 0
        self.paused: set[tuple[str, int]] = set()
        self.cuts: dict[tuple[str, int], int] = {}

    def _draft(self, tokens: list[int], most: int) -> list[int]:
        """Right for a while, then wrong: every sequence's truth is known here."""
        for key, choice in self.drive.tokens:
            work = self.drive.works[key]
            whole = [*work.prompt, *expected_tokens(self.drive.spec, work.prompt, work.params, choice)[0]]
            if whole[: len(tokens)] == tokens:
                return ([*whole[len(tokens) : len(tokens) + len(tokens) % 4], 3, 3])[:most]
        return []

    @rule(
        prompt=st.sampled_from(PROMPTS),
        n=st.sampled_from([1, 1, 2, 4]),
        most=st.integers(1, 60),
        least=st.sampled_from([0, 0, 10]),
        band=st.integers(0, 2),
        salt=st.sampled_from([b"", b"", b"x"]),
        prompt_logprobs=st.sampled_from([None, None, 1]),
        resumed=st.sampled_from([0, 0, 0, 1, 17, 90]),
    )
    def submit(self, prompt, n, most, least, band, salt, prompt_logprobs, resumed) -> None:
        params = SamplingParams(
            seed=self.count % 3,
            n=n,
            max_tokens=max(most, least),
            min_tokens=least,
            num_prompt_logprobs=prompt_logprobs,
            num_logprobs=prompt_logprobs,
        )
        outputs = {}
        if resumed:
            outputs = {choice: expected_tokens(self.drive.spec, prompt, params, choice)[0][:resumed] for choice in range(n)}
        key = (f"r{self.count}", 1)
        self.count += 1
        self.drive.submit(key, prompt, params, band=band, tag=float(self.count % 4), salt=salt, outputs=outputs)

    def _live(self) -> list[tuple[str, int]]:
        return [key for key in self.drive.works if key in self.drive.scheduler._requests]

    @precondition(lambda self: self._live())
    @rule(data=st.data())
    def cancel(self, data) -> None:
        key = data.draw(st.sampled_from(self._live()))
        self.drive.scheduler.cancel(key)
        self.paused.discard(key)
        for choice in range(self.drive.works.pop(key).params.n):
            self.drive.tokens.pop((key, choice))

    @precondition(lambda self: self._live())
    @rule(data=st.data())
    def pause(self, data) -> None:
        key = data.draw(st.sampled_from(self._live()))
        self.paused.add(key)
        self.drive.scheduler.pause(key)

    @precondition(lambda self: self.paused)
    @rule(data=st.data())
    def resume(self, data) -> None:
        key = data.draw(st.sampled_from(sorted(self.paused)))
        self.paused.discard(key)
        self.drive.scheduler.resume(key)

    @precondition(lambda self: self._live())
    @rule(data=st.data(), at=st.integers(1, 40))
    def stop(self, data, at: int) -> None:
        key = data.draw(st.sampled_from(self._live()))
        if 0 in self.drive.scheduler._requests[key].sequences:
            self.cuts[key] = min(at, self.cuts.get(key, at))
        self.drive.scheduler.stop_choice(key, 0, at)

    @rule(steps=st.integers(1, 30))
    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.drive.step()

    def teardown(self) -> None:
        for key in sorted(self.paused):
            self.drive.scheduler.resume(key)
        self.drive.run(most=5000)
        for key, choice in self.drive.tokens:
            self.drive.check(key, choice, self.cuts.get(key) if choice == 0 else None)
        self.drive.check_empty()


TestTraffic = TrafficMachine.TestCase
TestTraffic.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
