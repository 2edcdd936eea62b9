"""The pool of KV blocks: who refers to each, what full ones hold, and which may be taken next.

Every block is in exactly one of three states, by its count of references and its key:

    references   key     state       where
    > 0          any     in use      in the block tables of that many sequences
    0            none    empty       free list, front: taken first
    0            some    cached      free list, behind: taken in the order released (LRU), until then a hit revives it

    free list + in use = all blocks; a key names at most one block; only full blocks have keys and nobody writes to them.

It knows nothing of sequences, and blocks are numbers to it: the KV itself is the runner's.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class IntegrityError(Exception):
    """The pool contradicts itself or its users: a bug, and no KV can be trusted any more."""


class BlockPool:
    """`num_blocks` blocks of `block_size` slots. All operations are O(1) per block."""

    def __init__(self, num_blocks: int, block_size: int):
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._references = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._by_key: dict[bytes, int] = {}
        self._held: list[tuple[bytes, list[int]] | None] = [None] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks nobody refers to, cached ones included."""
        return len(self._free)

    @property
    def num_referenced(self) -> int:
        """Blocks in use, each counted once."""
        return self.num_blocks - len(self._free)

    def allocate(self) -> int:
        """A block for one new owner, its old content forgotten. KeyError when none is free: look at num_free first."""
        block = self._free.popitem(last=False)[0]
        held = self._held[block]
        if held is not None:
            del self._by_key[held[0]]
            self._held[block] = None
        self._references[block] = 1
        return block

    def find(self, keys: Sequence[bytes], tokens: Sequence[int]) -> list[int]:
        """The blocks that hold the longest cached beginning of `tokens`, by its blocks' keys. Refers to none of them.

        The tokens are compared, so that two prompts with one key cannot share.
        """
        found: list[int] = []
        for start, key in zip(range(0, len(keys) * self.block_size, self.block_size), keys, strict=True):
            block = self._by_key.get(key)
            if block is None:
                break
            held = self._held[block]
            if held is None or held[1] != tokens[start : start + self.block_size]:
                break
            found.append(block)
        return found

    def count_free(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` nobody refers to: those that `share` would take off the free list."""
        return sum(not self._references[block] for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Adds an owner to each of `blocks`, which `find` gave just now."""
        for block in blocks:
            if not self._references[block]:
                del self._free[block]
            self._references[block] += 1

    def publish(self, block: int, key: bytes, tokens: list[int]) -> None:
        """Makes a full block that is in use findable. If another block has the key already, this one stays private."""
        if self._held[block] is None and key not in self._by_key:
            self._by_key[key] = block
            self._held[block] = (key, tokens)

    def release(self, blocks: Sequence[int]) -> None:
        """Takes one owner from each block of a table. Its tail is forgotten before its head, which more may share."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if not self._references[block]:
                self._free[block] = None
                if self._held[block] is None:
                    self._free.move_to_end(block, last=False)

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Raises IntegrityError unless the states drawn above hold and `tables` are exactly the owners. O(all blocks)."""
        owners = Counter(block for table in tables for block in table)
        for block, references in enumerate(self._references):
            if references != owners[block]:
                raise IntegrityError(f"block {block}: {references} references, but in {owners[block]} block tables")
            if (references == 0) != (block in self._free):
                raise IntegrityError(f"block {block}: {references} references, but free is {block in self._free}")
            held = self._held[block]
            if held is not None and (self._by_key.get(held[0]) != block or len(held[1]) != self.block_size):
                raise IntegrityError(f"block {block}: holds a key that does not name it, or is not full")
        if len(self._by_key) != sum(held is not None for held in self._held) or len(owners) > self.num_blocks:
            raise IntegrityError("a key names a block that does not hold it, or a block table names no block")
