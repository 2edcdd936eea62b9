"""Generates shared/pb from protos/*.proto when it is missing or stale; run it as a script.

The generated files are never committed: the build hook, the Makefile and the tests all call this, perhaps at once,
so one process at a time writes. It knows nothing of what the protos say.
"""

import fcntl
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate(root: Path = ROOT) -> bool:
    """Writes root/shared/pb/*_pb2.py, *_pb2_grpc.py and *_pb2.pyi; says whether it had to."""
    sources = sorted((root / "protos").glob("*.proto"))
    out = root / "shared" / "pb"
    out.mkdir(exist_ok=True)
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = out / "__init__.py"
        if stamp.exists() and all(stamp.stat().st_mtime >= source.stat().st_mtime for source in sources):
            return False
        _run_protoc(root, [source.name for source in sources])
        stamp.write_text('"""Generated from protos/ by protos/generate.py; do not edit."""\n')
        return True


def _run_protoc(root: Path, names: list[str]) -> None:
    from grpc_tools import protoc

    outputs = [f"--{kind}_out={root}" for kind in ("python", "pyi", "grpc_python")]
    sources = [f"shared/pb/{name}" for name in names]
    if protoc.main(["protoc", f"-Ishared/pb={root / 'protos'}", *outputs, *sources]) != 0:
        raise SystemExit("protoc failed; its message is above")


if __name__ == "__main__":
    print("generated shared/pb" if generate() else "shared/pb is up to date", file=sys.stderr)
