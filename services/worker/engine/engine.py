"""The engine thread: inbox, schedule, run, postprocess, outbox, for as long as there is work; a tick when there is none.

One thread owns the runner. Everything asked of the engine is a call appended to its inbox, done between steps; all
that it says goes out through three callbacks, called on this thread, which must only hand over. It knows nothing of
torch, text, queues, leases or connections.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from services.worker.engine.scheduler import Drafter, Scheduler
from services.worker.engine.sequence import Delta, Finish, Key, Work
from services.worker.engine.step import Runner
from shared.sampling import SamplingParams

__all__ = ["Delta", "Engine", "EngineLimits", "EngineStats", "Finish", "Key", "Work"]

TICK_S = 0.5
NUM_TIMES = 1024


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """max_num_seqs: sequences computed at once. max_step_tokens: most tokens of one step, the chunk of a prefill."""

    max_num_seqs: int
    max_step_tokens: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. Sequences: running (computed each step), waiting (for a seat or blocks), paused (by a slow reader).

    room: about how many more sequences could start now. computed_tokens and cached_tokens: tokens paid by computing,
    and by finding their blocks, since the start. kv_unused_slot_s and kv_slot_s: slots of referenced blocks that hold
    nothing, and all slots of referenced blocks, each integrated over time. Step times in seconds, of recent steps.
    """

    running: int
    waiting: int
    paused: int
    room: int
    num_blocks: int
    free_blocks: int
    steps: int
    preemptions: int
    computed_tokens: int
    cached_tokens: int
    kv_unused_slot_s: float
    kv_slot_s: float
    step_p50_s: float
    step_p99_s: float

    @property
    def kv_waste(self) -> float:
        """Share of the slots of referenced blocks that held nothing, 0 to 1, averaged over slots and time."""
        return self.kv_unused_slot_s / self.kv_slot_s if self.kv_slot_s else 0.0

    @property
    def stall_limit_s(self) -> float:
        """How long the engine may go without progress before it counts as stuck."""
        return max(5.0, 10 * self.step_p99_s)


class Engine:
    """Runs Work on a Runner. Methods may be called from any thread; none waits for a step but `stop`.

    on_step(deltas): after each step that gave any, in order. on_tick(): after each step and, when nothing can run,
    every tick_s: never while a step is stuck. on_fatal(exception): once, if the engine thread must end; nothing
    comes after it. An exception in a callback is fatal, too.
    """

    def __init__(
        self,
        runner: Runner,
        limits: EngineLimits,
        *,
        on_step: Callable[[list[Delta]], None],
        on_tick: Callable[[], None],
        on_fatal: Callable[[Exception], None],
        drafter: Drafter | None = None,
        tick_s: float = TICK_S,
    ):
        self._runner = runner
        self._scheduler = Scheduler(runner.limits, limits.max_num_seqs, limits.max_step_tokens, drafter)
        self._limits = limits
        self._on_step, self._on_tick, self._on_fatal = on_step, on_tick, on_fatal
        self._tick_s = tick_s
        self._inbox: deque[Callable[[], None]] = deque()
        self._num_submitted = self._num_accepted = 0
        self._wake = threading.Condition()
        self._stopping = False
        self._audited = False
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._progress_at = math.inf
        self._steps = 0
        self._times: list[float] = []
        self._unused_slot_s = self._slot_s = 0.0

    def start(self) -> None:
        """Starts the thread."""
        self._progress_at = time.monotonic()
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Ends the thread after the step it is in and closes the runner; whether it ended in time."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def prepare(self, params: SamplingParams) -> object:
        """What Work with params that constrain its tokens needs as its guide; see Runner.prepare. Waits for no step."""
        return self._runner.prepare(params)

    def submit(self, work: Work) -> None:
        """Runs `work`; one still there under the same key is cancelled first.

        Work that cannot run ends with an error in its Finish; choices that `outputs` shows to be over end at once.
        """
        with self._wake:
            self._num_submitted += work.params.n
        self._post(partial(self._accept, work))

    def cancel(self, key: Key) -> None:
        """Drops a request and frees its blocks. No Delta of it comes once this is done; those before may still come."""
        self._post(partial(self._scheduler.cancel, key))

    def stop_choice(self, key: Key, choice: int, num_tokens: int) -> None:
        """Ends a choice at `num_tokens` output tokens, now or when it gets there, with reason "stop"."""
        self._post(partial(self._scheduler.stop_choice, key, choice, num_tokens))

    def pause(self, key: Key) -> None:
        """Computes nothing more of a request until `resume`. It keeps its blocks while nobody else needs them."""
        self._post(partial(self._scheduler.pause, key))

    def resume(self, key: Key) -> None:
        """Goes on with a paused request."""
        self._post(partial(self._scheduler.resume, key))

    def stalled_s(self) -> float:
        """Seconds since the thread last finished a step or saw that it had nothing to do; 0 before start."""
        return max(0.0, time.monotonic() - self._progress_at)

    def stats(self) -> EngineStats:
        """A snapshot; each number is right by itself, together they may be a step apart."""
        lines, pool = self._scheduler.lines, self._scheduler.lines.pool
        running, waiting, paused = len(lines.running), len(lines.waiting), len(lines.paused)
        times = sorted(self._times)
        seats = self._limits.max_num_seqs - running - waiting - (self._num_submitted - self._num_accepted)
        typical = max(1, pool.num_referenced // max(1, running + paused))
        return EngineStats(
            running=running,
            waiting=waiting,
            paused=paused,
            room=max(0, min(seats, (pool.num_free - lines.num_promised()) // typical)),
            num_blocks=pool.num_blocks,
            free_blocks=pool.num_free,
            steps=self._steps,
            preemptions=lines.num_preemptions,
            computed_tokens=self._scheduler.num_computed_tokens,
            cached_tokens=lines.num_cached_tokens,
            kv_unused_slot_s=self._unused_slot_s,
            kv_slot_s=self._slot_s,
            step_p50_s=times[len(times) // 2] if times else 0.0,
            step_p99_s=times[len(times) * 99 // 100] if times else 0.0,
        )

    def _post(self, call: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(call)
            self._wake.notify()

    def _accept(self, work: Work) -> None:
        self._num_accepted += work.params.n
        self._scheduler.submit(work)

    def _main(self) -> None:
        try:
            while not self._stopping:
                while self._inbox:
                    self._inbox.popleft()()
                if not self._step():
                    self._idle()
        except Exception as exception:
            self._on_fatal(exception)
        finally:
            self._runner.close()

    def _step(self) -> bool:
        """Schedules, runs, postprocesses, hands over; False when there was nothing to do."""
        began_at = time.monotonic()
        plan = self._scheduler.schedule()
        if plan.step.rows:
            result = self._runner.run(plan.step)
            self._scheduler.finish(plan, result)
            step_s = time.monotonic() - began_at
            self._scheduler.learn(plan, step_s)
            self._measure(step_s)
        deltas = self._scheduler.take_deltas()
        if not plan.step.rows and not deltas:
            return False
        if deltas:
            self._on_step(deltas)
        self._on_tick()
        self._progress_at = time.monotonic()
        self._audited = False
        return True

    def _measure(self, step_s: float) -> None:
        if len(self._times) < NUM_TIMES:
            self._times.append(step_s)
        else:
            self._times[self._steps % NUM_TIMES] = step_s
        self._steps += 1
        unused, slots = self._scheduler.lines.slots()
        self._unused_slot_s += unused * step_s
        self._slot_s += slots * step_s

    def _idle(self) -> None:
        """Audits once on becoming idle, then waits for the inbox or the next tick."""
        self._scheduler.check_idle()
        if not self._audited:
            self._scheduler.check_integrity()
            self._audited = True
        self._progress_at = time.monotonic()
        with self._wake:
            woken = self._wake.wait_for(lambda: self._inbox or self._stopping, self._tick_s)
        if not woken:
            self._on_tick()
