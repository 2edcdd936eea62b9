"""The secret file: the keys that sign what stands in the queue. It knows nothing of what is signed."""

import secrets
from pathlib import Path

from shared.errors import StartupError

MIN_KEY_BYTES = 32


def new_key() -> str:
    """A line for a new secret file."""
    return secrets.token_hex(MIN_KEY_BYTES)


def read_keys(path: Path) -> tuple[bytes, ...]:
    """The keys in a secret file, one a line, the signing one first; a second is accepted while keys are rotated.

    Raises StartupError if there is none, more than two, or one of fewer than 32 characters.
    """
    try:
        keys = tuple(line.strip().encode() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except OSError as error:
        raise StartupError(f"cannot read the secret file {path}: {error.strerror}") from error
    if not 1 <= len(keys) <= 2:
        raise StartupError(f"the secret file {path} holds {len(keys)} keys; put one or two in it, one a line")
    if min(len(key) for key in keys) < MIN_KEY_BYTES:
        raise StartupError(f"the secret file {path} holds a key under {MIN_KEY_BYTES} characters; try `openssl rand -hex 32`")
    return keys
