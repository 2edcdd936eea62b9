"""The hash chain over full blocks of tokens: worker caches and router affinity must agree on it.

key(i) = SHA-256(key(i-1), tokens of block i); key(-1) = SHA-256(salt). It knows nothing of blocks' contents.
"""

import hashlib
from array import array
from collections.abc import Sequence


def root_key(salt: bytes) -> bytes:
    """Parent of a chain's first block, 32 bytes. The salt says who may share: tenant, model revision, lora, cache_salt."""
    return hashlib.sha256(b"roadtrain.prefix\0" + salt).digest()


def block_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Key of one full block of token ids after `parent`, 32 bytes."""
    return hashlib.sha256(parent + array("I", tokens).tobytes()).digest()


def block_keys(salt: bytes, tokens: Sequence[int], block_size: int) -> list[bytes]:
    """Keys of every full block of `tokens`."""
    keys: list[bytes] = []
    parent = root_key(salt)
    for start in range(0, len(tokens) - block_size + 1, block_size):
        parent = block_key(parent, tokens[start : start + block_size])
        keys.append(parent)
    return keys
