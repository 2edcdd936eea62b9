"""A worker whose kernels fail after a while, however often it is started. Run as a module, like the launcher.

It knows nothing of what it is asked.
"""

from services.launcher.__main__ import main
from services.worker.engine.step import Step, StepResult
from services.worker.sim import SimRunner

GOOD_STEPS = 60


class _Failing:
    """Counts steps."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.run = SimRunner.run

    def __call__(self, runner: SimRunner, step: Step) -> StepResult:
        self.num_steps += 1
        if self.num_steps > GOOD_STEPS:
            raise RuntimeError("the device is gone")
        return self.run(runner, step)


if __name__ == "__main__":
    failing = _Failing()
    SimRunner.run = lambda self, step: failing(self, step)  # type: ignore[method-assign]
    main()
