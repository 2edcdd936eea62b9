"""Digests of source files, by which what other sources made or computed is told apart. It knows nothing of what sources say."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def digest(root: Path, paths: Iterable[Path], *words: bytes) -> str:
    """64 hex digits for the files `paths` by their names below `root`, in any order, and for `words`.

    The same on every machine with the same files: line ends are a matter of how they were fetched.
    """
    found = hashlib.sha256(b"\0".join(words))
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in paths):
        found.update(name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return found.hexdigest()
