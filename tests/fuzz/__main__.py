"""Fuzzing guided by coverage: `python -m tests.fuzz TARGET --seconds N`, or every target in turn without a name.

Needs atheris (`pip install "roadtrain[fuzz]"`). It knows the targets, and nothing of what they do.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

MEMORY_MIB = 3072
SLOWEST_S = 20
# What a target's code may lie in; the rest is not watched for new paths.
WATCHED = ["services", "shared"]


def main() -> int:
    """The exit code: 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", help="one of those that tests/fuzz/targets.py names; unset: all in turn")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--corpus", type=Path, help="a folder that keeps what was interesting, for the next time")
    options = parser.parse_args()
    if options.target is not None:
        return fuzz(options.target, options.seconds, options.corpus)
    failed = []
    for name in names():
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(options.seconds)]
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
    """Never returns: libFuzzer ends the process, with the input that failed in a file named crash-..."""
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
