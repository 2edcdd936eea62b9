"""Which layout of tiles this code makes and reads. It knows nothing of what a layout is."""

import hashlib
from functools import cache
from pathlib import Path


@cache
def layout_version() -> str:
    """Another one whenever anything in this folder changes, so that tiles of another making are never taken for ours."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(path for suffix in ("*.py", "*.h", "*.cpp") for path in folder.glob(suffix)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
