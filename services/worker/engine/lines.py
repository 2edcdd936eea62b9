"""Where sequences stand, and which blocks each holds.

Three lines, each in order of (band, tag, seq_id): running (has a seat), waiting, paused. Any sequence may hold blocks.
When they run out, paused sequences lose theirs first (the last in line before the others), then waiting ones, then the
last running one, which goes back to waiting and is recomputed, mostly from the cache: its blocks stay findable for as
long as nobody takes them. So the first running sequence can always get what it needs, unless it outgrew the pool.

It knows nothing of budgets, steps or results.
"""

from bisect import bisect_left, insort

from services.worker.engine.blocks import BlockPool, IntegrityError
from services.worker.engine.sequence import Sequence
from shared.prefix import block_key


def _order(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.order


class Lines:
    """All sequences that have not ended, and the pool. cached tokens: those found instead of computed."""

    def __init__(self, pool: BlockPool):
        self.pool = pool
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.paused: list[Sequence] = []
        self.num_preemptions = 0
        self.num_cached_tokens = 0

    def move(self, sequence: Sequence, line: list[Sequence]) -> None:
        """Puts a sequence where it belongs in `line`, out of the one it is in."""
        if sequence.line is not None:
            del sequence.line[bisect_left(sequence.line, sequence.order, key=_order)]
        insort(line, sequence, key=_order)
        sequence.line = line

    def leave(self, sequence: Sequence) -> None:
        """Takes a sequence that has ended out of its line and frees its blocks."""
        if sequence.line is not None:
            del sequence.line[bisect_left(sequence.line, sequence.order, key=_order)]
            sequence.line = None
        self._drop(sequence)

    def num_promised(self) -> int:
        """Blocks that running sequences need for the tokens they owe, and one more each to go on."""
        size = self.pool.block_size
        return sum(max(0, -(-len(each.tokens) // size) - len(each.blocks)) + 1 for each in self.running[:])

    def slots(self) -> tuple[int, int]:
        """Slots of referenced blocks that hold nothing yet, and all slots of referenced blocks.

        Shared blocks are full, so what sequences lack in their own tables adds up without counting any twice.
        """
        size, unused = self.pool.block_size, 0
        for line in (self.running, self.waiting, self.paused):
            for each in line:
                unused += len(each.blocks) * size - each.num_computed
        return unused, self.pool.num_referenced * size

    def fits(self, sequence: Sequence) -> bool:
        """Whether the whole pool could hold what a sequence owes."""
        return len(sequence.tokens) <= self.pool.num_blocks * self.pool.block_size

    def grow(self, sequence: Sequence, num_slots: int) -> None:
        """Lengthens a sequence's block table to that many slots; the blocks must be free."""
        allocate = self.pool.allocate
        for _ in range(-(-num_slots // self.pool.block_size) - len(sequence.blocks)):
            sequence.blocks.append(allocate())

    def extend(self, sequence: Sequence, num_slots: int) -> bool:
        """Grows a running sequence that fits, taking others' blocks if need be.

        False if it is the last in line and nobody else has a block to lose: it sits this step out.
        """
        lacking = -(-num_slots // self.pool.block_size) - len(sequence.blocks)
        while self.pool.num_free < lacking:
            if self._reclaim(sequence):
                continue
            last = self.running[-1]
            if last is sequence:
                return False
            self.num_preemptions += 1
            self._drop(last)
            self.move(last, self.waiting)
        self.grow(sequence, num_slots)
        return True

    def seat(self, sequence: Sequence) -> bool:
        """Moves a waiting sequence that fits to running, with cached blocks of its beginning if it has none.

        False if there is no room for all that it owes beside what running ones are promised.
        """
        kept_free = self.num_promised() + 1 if self.running else 0
        while True:
            hits = [] if sequence.blocks else self._find(sequence)
            lacking = -(-len(sequence.tokens) // self.pool.block_size) - len(sequence.blocks) - len(hits)
            if self.pool.num_free >= lacking + self.pool.count_free(hits) + kept_free:
                break
            if not self._reclaim(sequence):
                return False
        if hits:
            self.pool.share(hits)
            sequence.blocks = hits
            sequence.num_published = len(hits)
            sequence.num_computed = len(hits) * self.pool.block_size
            self.num_cached_tokens += sequence.num_computed
        self.move(sequence, self.running)
        return True

    def publish(self, sequence: Sequence) -> None:
        """Makes a sequence's newly full blocks findable."""
        size = self.pool.block_size
        num_full = sequence.num_computed // size
        for index in range(sequence.num_published, num_full):
            self._make_keys(sequence, index + 1)
            held = sequence.tokens[index * size : (index + 1) * size]
            self.pool.publish(sequence.blocks[index], sequence.keys[index], held)
        sequence.num_published = num_full

    def check_integrity(self) -> None:
        """Raises IntegrityError if pool, block tables and lines contradict one another."""
        lines = (self.running, self.waiting, self.paused)
        everyone = [sequence for line in lines for sequence in line]
        self.pool.check_integrity(sequence.blocks for sequence in everyone)
        for line in lines:
            if any(each.line is not line for each in line) or line != sorted(line, key=_order):
                raise IntegrityError("a sequence is not where it thinks it is, or out of order")
        for each in everyone:
            num_slots = len(each.blocks) * self.pool.block_size
            published = each.num_published * self.pool.block_size
            if not published <= each.num_computed <= min(num_slots, published + self.pool.block_size - 1, len(each.tokens) - 1):
                raise IntegrityError(
                    f"sequence {each.seq_id}: {published} published, {each.num_computed} computed, "
                    f"{len(each.tokens)} known, {num_slots} slots"
                )

    def _find(self, sequence: Sequence) -> list[int]:
        """Cached blocks of its beginning: never that of the last token, which is always computed to get its logits.

        While prompt logprobs are gathered, only as far as they have come; of what is pooled over all tokens, none.
        """
        if sequence.pooling is not None and sequence.pooling.needs_all:
            return []
        most = (len(sequence.tokens) - 1) // self.pool.block_size
        if sequence.prompt_logprobs is not None:
            most = min(most, len(sequence.prompt_logprobs) // self.pool.block_size)
        if not sequence.keys:
            request = sequence.request
            sequence.keys = request.first.keys[: request.num_shareable // self.pool.block_size]
        self._make_keys(sequence, most)
        return self.pool.find(sequence.keys[:most], sequence.tokens)

    def _make_keys(self, sequence: Sequence, most: int) -> None:
        size, keys = self.pool.block_size, sequence.keys
        for index in range(len(keys), most):
            parent = keys[-1] if keys else sequence.request.root
            keys.append(block_key(parent, sequence.tokens[index * size : (index + 1) * size]))

    def _reclaim(self, sequence: Sequence) -> bool:
        """Frees the blocks of one paused sequence, else of one waiting behind `sequence`; False if there is none."""
        for line in (self.paused, self.waiting):
            for victim in reversed(line):
                if victim is sequence:
                    break
                if victim.blocks:
                    self.num_preemptions += 1
                    self._drop(victim)
                    return True
        return False

    def _drop(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = sequence.num_published = 0
