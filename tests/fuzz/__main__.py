"""Fuzzing: `python -m tests.fuzz TARGET --seconds N`, or every target in turn, an hour in all, without a name.

Functions are fuzzed by coverage, which needs atheris (`pip install "roadtrain[fuzz]"`); `live` sends spoilt requests to a
system of its own. It knows the targets, and nothing of what they do.
"""

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
from pathlib import Path

HOUR_S, MINUTE_S = 3600, 60
MEMORY_MIB = 3072
SLOWEST_S = 20
LIVE = "live"
# What a target's code may lie in; the rest is not watched for new paths.
WATCHED = ["services", "shared"]


def main() -> int:
    """The exit code: how many targets found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", nargs="?", help="`live`, or one that tests/fuzz/targets.py names; unset: all in turn")
    parser.add_argument("--seconds", type=float, help="for each target (default 60; of all in turn, an hour's even share)")
    parser.add_argument("--corpus", type=Path, help="a folder that keeps what was interesting, for the next time")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of `live`")
    options = parser.parse_args()
    if options.target == LIVE:
        print(f"seed {options.seed}", flush=True)
        from tests.fuzz.live import run

        print(f"{asyncio.run(run(options.seconds or MINUTE_S, options.seed))} spoilt requests; the patient is well")
        return 0
    if options.target is not None:
        return fuzz(options.target, options.seconds or MINUTE_S, options.corpus)
    every, failed = [*names(), LIVE], []
    for name in every:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(options.seconds or HOUR_S / len(every))]
        command += ["--corpus", str(options.corpus)] if options.corpus else []
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    print(f"found something: {', '.join(failed)}" if failed else "nothing found")
    return len(failed)


def names() -> list[str]:
    """Of all targets."""
    from tests.fuzz.targets import targets

    return list(targets())


def fuzz(name: str, seconds: float, kept: Path | None) -> int:
    """Never returns: libFuzzer ends the process, with the input that failed in a file named crash-...

    Nothing of what is watched may have been imported before.
    """
    import atheris

    with atheris.instrument_imports(include=WATCHED):
        from tests.fuzz.targets import targets
    target = targets()[name]
    folder = (kept or Path(tempfile.mkdtemp(prefix="fuzz-"))) / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (folder / f"seed-{number}").write_bytes(data)
    limits = [f"-max_total_time={int(seconds)}", f"-rss_limit_mb={MEMORY_MIB}", f"-timeout={SLOWEST_S}", "-max_len=4096"]
    atheris.Setup(["tests.fuzz", str(folder), *limits, "-print_final_stats=1"], target.run)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
