"""A minimal paged loop for tests: lays ragged rows out as the runtime does and runs a model over them.

Blocks are handed out in an odd order, so that nothing works by blocks lying side by side. It knows nothing of sampling.
"""

import torch
from torch import Tensor

from services.worker.batch import Batch
from services.worker.models import Model
from services.worker.runtime.forward import Capacity, forwarding
from tests.kernels.caches import unwritten

BLOCK_SIZE = 16


class PagedLoop:
    """Sequences over one KV cache; `step` feeds tokens to some of them."""

    def __init__(self, model: Model, num_rows: int, max_tokens: int, dtype: torch.dtype = torch.float32):
        spec = model.spec
        self.model = model
        self.blocks_per_row = -(-max_tokens // BLOCK_SIZE)
        num_blocks = num_rows * self.blocks_per_row
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(7))
        self.tables = order.reshape(num_rows, -1).to(torch.int32)
        self.kv = [unwritten(num_blocks, spec.num_kv_heads, spec.head_dim, dtype) for _ in range(model.num_layers)]
        self.lengths = [0] * num_rows
        capacity = Capacity(num_rows * max_tokens, num_rows, self.blocks_per_row)
        self.forward = forwarding(model, self.kv, capacity)

    def step(self, rows: dict[int, list[int]], *, every: bool = False) -> Tensor:
        """Feeds rows (row -> tokens); logits of each row's last token, or of every token, in order."""
        token_ids, positions, slots, starts, wanted = [], [], [], [0], []
        for row, tokens in rows.items():
            begin, end = self.lengths[row], self.lengths[row] + len(tokens)
            places = torch.arange(begin, end)
            token_ids += tokens
            positions.append(places)
            slots.append(self.tables[row, places // BLOCK_SIZE].long() * BLOCK_SIZE + places % BLOCK_SIZE)
            starts.append(len(token_ids))
            wanted += range(starts[-2], starts[-1]) if every else [starts[-1] - 1]
            self.lengths[row] = end
        batch = Batch(
            token_ids=torch.tensor(token_ids),
            positions=torch.cat(positions),
            query_start=torch.tensor(starts, dtype=torch.int32),
            seq_lens=torch.tensor([self.lengths[row] for row in rows], dtype=torch.int32),
            block_tables=self.tables[list(rows)],
            slots=torch.cat(slots),
            logit_indices=torch.tensor(wanted),
        )
        with torch.inference_mode():
            return self.forward(batch).clone()


def greedy(model: Model, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """num_tokens of each prompt, all in one batch, the likeliest each time."""
    loop = PagedLoop(model, len(prompts), max(map(len, prompts)) + num_tokens)
    rows = dict(enumerate(prompts))
    outputs: list[list[int]] = [[] for _ in prompts]
    for _ in range(num_tokens):
        for row, token in enumerate(loop.step(rows).argmax(-1).tolist()):
            outputs[row].append(token)
            rows[row] = [token]
    return outputs
