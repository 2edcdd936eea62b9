"""How many requests the same KV memory holds at once: paged, against one full-length slot per request.

The engine's own scheduler runs chat-like requests over a pool of blocks, always with more waiting, until the number
running has settled; a system that reserves max_model_len slots per request holds pool / max_model_len of them. It knows
nothing of models: the sim runner computes the tokens and checks every block table.
"""

import argparse
import itertools
import json
from pathlib import Path

from bench.lengths import chat_lengths
from services.worker.engine.scheduler import Scheduler
from services.worker.engine.sequence import Work
from services.worker.sim import SimRunner, SimSpec
from shared.sampling import SamplingParams


def measure(num_blocks: int, max_model_len: int, steps: int, seed: int) -> dict[str, float]:
    """Averages over the second half of `steps` engine steps; sequences of at most max_model_len tokens."""
    spec = SimSpec(num_blocks=num_blocks, max_model_len=max_model_len)
    runner = SimRunner(spec)
    scheduler = Scheduler(spec.limits(), max_num_seqs=10_000, max_step_tokens=8192)
    lengths = chat_lengths(seed, max_model_len)
    ids = itertools.count()
    held = unused = slots = 0.0
    for step in range(steps):
        while len(scheduler.lines.waiting) < 8:
            index = next(ids)
            prompt, answer = next(lengths)
            tokens = [(index * 7919 + i) % spec.vocab_size for i in range(prompt)]
            scheduler.submit(Work((str(index), 1), tokens, SamplingParams(seed=index, max_tokens=answer), tag=float(index)))
        plan = scheduler.schedule()
        scheduler.finish(plan, runner.run(plan.step))
        scheduler.take_deltas()
        if step >= steps // 2:
            held += len(scheduler.lines.running)
            step_unused, step_slots = scheduler.lines.slots()
            unused, slots = unused + step_unused, slots + step_slots
    preallocated = num_blocks * 16 // max_model_len
    return {
        "paged_requests": held / (steps - steps // 2),
        "preallocated_requests": preallocated,
        "ratio": held / (steps - steps // 2) / preallocated,
        "kv_waste": unused / slots,
        "preemptions": scheduler.lines.num_preemptions,
        "requests": next(ids),
    }


def main() -> None:
    """Command line: python -m bench.capacity."""
    parser = argparse.ArgumentParser(prog="roadtrain bench capacity", description=__doc__.splitlines()[0])
    parser.add_argument("--num-blocks", type=int, default=2048, help="KV blocks of 16 tokens (default %(default)s)")
    parser.add_argument("--max-model-len", type=int, default=2048, help="longest request, tokens (default %(default)s)")
    parser.add_argument("--steps", type=int, default=3000, help="engine steps (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    result = measure(options.num_blocks, options.max_model_len, options.steps, options.seed)
    print(f"KV memory of {options.num_blocks * 16} tokens, requests of at most {options.max_model_len}, seed {options.seed}")
    for name, value in result.items():
        print(f"  {name:24}{value:10.3f}" if isinstance(value, float) else f"  {name:24}{value:10}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
