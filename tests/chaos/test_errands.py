"""A batch and responses in the background, through two minutes of faults. They know nothing of how errands are shared out.

Redis forgets nothing here: what files, batches and kept responses are stands in Redis alone.
"""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.cluster import Plan
from tests.chaos.errands import Errands
from tests.chaos.load import spec_of
from tests.chaos.trial import trial, vocabulary

pytestmark = [pytest.mark.chaos, pytest.mark.full]

WIDTH, NUM_LINES, NUM_RESPONSES, NUM_TEXTS = 2, 500, 16, 4
SECONDS, EVERY_S = 120.0, 3.0


@pytest.mark.timeout(600)
async def test_errands_end_whole_whoever_dies(seed: int, tmp_path: Path) -> None:
    plan = Plan()
    plan = replace(plan, router={**plan.router, "files_dir": str(tmp_path / "files")})
    async with trial(seed, WIDTH, plan, spared=("redis_flush",)) as running:
        errands = Errands(running.cluster, spec_of(plan), await vocabulary(running.cluster), running.verdict, NUM_LINES)
        try:
            await errands.begin(NUM_TEXTS)
            await asyncio.gather(
                running.nemesis.at_random(SECONDS, EVERY_S), errands.respond(NUM_RESPONSES, SECONDS / NUM_RESPONSES)
            )
            running.cluster.heal()
            await errands.judge()
        except BaseException:
            running.keep_logs(tmp_path / "logs")
            raise
        finally:
            await errands.close()
        verdict = await running.finish()
        if not verdict.sound:
            running.keep_logs(tmp_path / "logs")
        schedule = [f"{each.at - running.began_at:.1f} {each.kind}: {each.detail}" for each in running.nemesis.struck]
        assert verdict.sound, "\n".join([f"seed {seed}, logs in {tmp_path}/logs", *verdict.findings[:20], *schedule])
