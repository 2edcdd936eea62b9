"""The engine thread from outside: work in, deltas out, ticks, errors, the end. It knows nothing of how steps are planned."""

import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from services.worker.engine.blocks import IntegrityError
from services.worker.engine.engine import Delta, Engine, EngineLimits, Work
from services.worker.engine.step import RowResult, Step, StepResult
from services.worker.sim import SimRunner, SimSpec, expected_tokens
from shared.sampling import SamplingParams

SPEC = SimSpec(num_blocks=64, max_model_len=1000, vocab_size=1000)
A, B = ("a", 1), ("b", 1)


class GatedRunner(SimRunner):
    """A sim whose steps wait at a gate, so that a test decides what happens during one."""

    def __init__(self, spec: SimSpec):
        super().__init__(spec)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.broken: Exception | None = None
        self.row_error: str | None = None
        self.closed_by = ""

    def run(self, step: Step) -> StepResult:
        self.entered.release()
        assert self.gate.wait(20)
        if self.broken is not None:
            raise self.broken
        result = super().run(step)
        if self.row_error is not None:
            result.rows[0] = RowResult(error=self.row_error)
        return result

    def close(self) -> None:
        self.closed_by = threading.current_thread().name
        super().close()


class Harness:
    """An engine whose callbacks fill queues."""

    def __init__(self, limits: EngineLimits, tick_s: float):
        self.runner = GatedRunner(SPEC)
        self.deltas: queue.Queue[Delta] = queue.Queue()
        self.ticks: queue.Queue[None] = queue.Queue()
        self.fatal: queue.Queue[Exception] = queue.Queue()
        self.engine = Engine(
            self.runner,
            limits,
            on_step=lambda deltas: [self.deltas.put(delta) for delta in deltas] and None,
            on_tick=lambda: self.ticks.put(None),
            on_fatal=self.fatal.put,
            tick_s=tick_s,
        )

    def submit(self, key: tuple[str, int], length: int = 20, max_tokens: int = 10, **rest: object) -> Work:
        params = SamplingParams(seed=3, max_tokens=max_tokens, **rest)  # type: ignore[arg-type]
        work = Work(key, list(range(length)), params)
        self.engine.submit(work)
        return work

    def collect(self, work: Work, choice: int = 0) -> tuple[list[int], str]:
        """All tokens of a choice and why it ended; other choices' deltas are passed over."""
        tokens: list[int] = []
        while True:
            delta = self.deltas.get(timeout=20)
            if delta.work is work and delta.choice == choice:
                tokens += delta.token_ids
                if delta.finish is not None:
                    return tokens[: delta.finish.num_tokens], delta.finish.reason


@pytest.fixture(name="make")
def _make() -> Iterator[Callable[..., Harness]]:
    made: list[Harness] = []

    def make(limits: EngineLimits | None = None, tick_s: float = 0.01) -> Harness:
        made.append(Harness(limits or EngineLimits(4, 64), tick_s))
        made[-1].engine.start()
        return made[-1]

    yield make
    for each in made:
        each.runner.gate.set()
        assert each.engine.stop()
        assert each.runner.closed_by == "engine"


def test_work_becomes_its_tokens(make):
    each = make()
    work = each.submit(A, n=2)
    assert each.collect(work) == expected_tokens(SPEC, work.prompt, work.params, 0)
    again = each.submit(B)
    assert each.collect(again) == expected_tokens(SPEC, again.prompt, again.params, 0)


def test_cancel_during_a_step_frees_everything(make):
    each = make()
    each.runner.gate.clear()
    work = each.submit(A, max_tokens=900)
    assert each.runner.entered.acquire(timeout=20)
    each.engine.cancel(A)
    each.engine.cancel(("nobody", 1))
    each.runner.gate.set()
    other = each.submit(B)
    each.collect(other)
    assert each.engine.stats().free_blocks == 64
    assert work.key == A


def test_a_second_work_of_a_key_replaces_the_first_and_can_be_told_apart(make):
    each = make()
    each.runner.gate.clear()
    first = each.submit(A, max_tokens=900)
    assert each.runner.entered.acquire(timeout=20)
    second = each.submit(A)
    each.runner.gate.set()
    assert each.collect(second) == expected_tokens(SPEC, second.prompt, second.params, 0)
    assert first is not second
    assert first != second


def test_stop_choice_pause_and_resume(make):
    each = make()
    each.runner.gate.clear()
    work = each.submit(A, max_tokens=900)
    assert each.runner.entered.acquire(timeout=20)
    each.engine.pause(A)
    each.engine.stop_choice(A, 0, 30)
    each.runner.gate.set()
    other = each.submit(B)
    assert each.collect(other)[1] == "length"
    stats = each.engine.stats()
    assert (stats.running, stats.waiting, stats.paused) == (0, 0, 1)
    assert stats.free_blocks == 62
    each.engine.resume(A)
    expected, _ = expected_tokens(SPEC, work.prompt, work.params, 0)
    tokens = []
    while True:
        delta = each.deltas.get(timeout=20)
        tokens += delta.token_ids
        if delta.finish is not None:
            break
    assert delta.finish.reason == "stop"
    assert tokens == expected[delta.idx + len(delta.token_ids) - len(tokens) : 30]


def test_a_row_error_ends_that_request_alone(make):
    each = make()
    each.runner.row_error = "logits are not numbers"
    work = each.submit(A)
    assert each.collect(work) == ([], "error")
    each.runner.row_error = None
    other = each.submit(B)
    assert each.collect(other) == expected_tokens(SPEC, other.prompt, other.params, 0)


def test_an_exception_of_the_runner_is_fatal_and_the_last_word(make):
    each = make()
    each.runner.broken = RuntimeError("device lost")
    each.submit(A)
    assert str(each.fatal.get(timeout=20)) == "device lost"
    assert each.engine.stop()
    assert each.deltas.empty()
    assert each.fatal.empty()


def test_a_leak_is_found_on_becoming_idle(make):
    each = make()
    each.collect(each.submit(A))
    each.engine._scheduler.lines.pool.allocate()
    each.submit(B)
    assert isinstance(each.fatal.get(timeout=20), IntegrityError)


def test_ticks_come_while_idle_and_after_steps_but_not_during_one(make):
    each = make()
    for _ in range(3):
        each.ticks.get(timeout=20)
    each.runner.gate.clear()
    work = each.submit(A, max_tokens=1)
    assert each.runner.entered.acquire(timeout=20)
    stalled_s = each.engine.stalled_s()
    while not each.ticks.empty():
        each.ticks.get()
    with pytest.raises(queue.Empty):
        each.ticks.get(timeout=0.1)
    assert each.engine.stalled_s() >= stalled_s + 0.1
    each.runner.gate.set()
    each.collect(work)
    each.ticks.get(timeout=20)
    each.ticks.get(timeout=20)
    assert each.engine.stalled_s() < 5


def test_room_counts_seats_and_memory_and_what_is_still_in_the_inbox(make):
    each = make()
    assert each.engine.stats().room == 4
    each.runner.gate.clear()
    each.submit(A, length=600, max_tokens=300)
    assert each.runner.entered.acquire(timeout=20)
    each.submit(B, n=2)
    assert each.engine.stats().room == 1
    each.runner.gate.set()
    big = make(EngineLimits(4, 1000))
    big.runner.gate.clear()
    big.submit(A, length=600, max_tokens=300)
    assert big.runner.entered.acquire(timeout=20)
    assert big.engine.stats().room == 0, "26 blocks are free and such a sequence takes 38"


def test_stats_count_steps_tokens_and_waste(make):
    each = make()
    each.collect(each.submit(A, length=100, max_tokens=60))
    each.collect(each.submit(B, length=100, max_tokens=60))
    stats = each.engine.stats()
    assert stats.steps == 61 + 60
    assert stats.computed_tokens == 159 + 159 - 96
    assert stats.cached_tokens == 96
    assert 0 < stats.step_p50_s <= stats.step_p99_s
    assert stats.stall_limit_s == max(5.0, 10 * stats.step_p99_s)
    # Weighted by how long each step took, so bounded by the worst step, whichever the machine made long.
    assert 0 < stats.kv_waste < 16 / 112
    assert stats.num_blocks == stats.free_blocks == 64


def test_the_engine_and_the_sim_need_no_torch():
    code = "import sys, services.worker.engine.engine, services.worker.sim; print({'torch', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
