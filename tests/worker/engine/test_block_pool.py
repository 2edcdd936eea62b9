"""The block pool against a plain model: references, cached content, eviction order. It knows nothing of sequences."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from services.worker.engine.blocks import BlockPool, IntegrityError
from shared.prefix import block_keys

SIZE = 4


class PoolMachine(RuleBasedStateMachine):
    """The model: a list of tables, the content of each block, and the free blocks in the order they will be taken."""

    tables = Bundle("tables")

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(6, SIZE)
        self.free = list(range(6))
        self.content: dict[int, bytes] = {}
        self.owned: list[list[int]] = []

    def _references(self, block: int) -> int:
        return sum(block in table for table in self.owned)

    @rule(target=tables, tokens=st.lists(st.integers(0, 1), max_size=20))
    def fill(self, tokens: list[int]) -> tuple[list[int], list[int]]:
        """A new table for `tokens`: what is cached is shared, the rest allocated, computed and published."""
        keys = block_keys(b"salt", tokens, SIZE)
        hits = self.pool.find(keys, tokens)
        expected = []
        for key in keys:
            owner = [block for block, held in self.content.items() if held == key]
            if not owner:
                break
            expected += owner
        assert hits == expected
        assert self.pool.count_free(hits) == sum(block in self.free for block in hits)
        table = list(hits)
        self.pool.share(hits)
        self.free = [block for block in self.free if block not in hits]
        while len(table) * SIZE < len(tokens) and self.free:
            block = self.pool.allocate()
            assert block == self.free.pop(0)
            self.content.pop(block, None)
            table.append(block)
        self.owned.append(table)
        for index in range(len(hits), min(len(keys), len(table))):
            self.pool.publish(table[index], keys[index], tokens[index * SIZE : (index + 1) * SIZE])
            if keys[index] not in self.content.values():
                self.content[table[index]] = keys[index]
        return table, tokens

    @rule(filled=consumes(tables))
    def release(self, filled: tuple[list[int], list[int]]) -> None:
        table = filled[0]
        self.pool.release(table)
        del self.owned[next(index for index, each in enumerate(self.owned) if each is table)]
        for block in reversed(table):
            if not self._references(block):
                if block in self.content:
                    self.free.append(block)
                else:
                    self.free.insert(0, block)

    @precondition(lambda self: not self.free)
    @rule()
    def exhausted(self) -> None:
        with pytest.raises(KeyError):
            self.pool.allocate()

    @invariant()
    def agrees(self) -> None:
        self.pool.check_integrity(self.owned)
        assert self.pool.num_free == len(self.free)
        assert self.pool.num_referenced == 6 - len(self.free)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_hit_compares_tokens_not_only_keys():
    pool = BlockPool(4, 2)
    block = pool.allocate()
    pool.publish(block, b"key", [1, 2])
    assert pool.find([b"key"], [1, 2, 3]) == [block]
    assert pool.find([b"key"], [1, 9, 3]) == []


def test_the_audit_names_a_leak_a_double_owner_and_a_bad_key():
    pool = BlockPool(4, 2)
    block = pool.allocate()
    pool.check_integrity([[block]])
    with pytest.raises(IntegrityError, match=r"block 0: 1 references, but in 0"):
        pool.check_integrity([])
    with pytest.raises(IntegrityError, match=r"in 2 block tables"):
        pool.check_integrity([[block], [block]])
    with pytest.raises(IntegrityError, match=r"in 1 block tables"):
        pool.check_integrity([[block, 3]])
    pool.publish(block, b"key", [1])
    with pytest.raises(IntegrityError, match="not full"):
        pool.check_integrity([[block]])
