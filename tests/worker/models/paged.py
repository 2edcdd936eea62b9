"""A minimal paged loop for tests: lays ragged rows out as the runtime does and runs a model over them.

Blocks are handed out in an odd order, so that nothing works by blocks lying side by side. It knows nothing of sampling.
"""

import torch
from torch import Tensor

from services.worker.engine.step import BLOCK_SIZE, Row
from services.worker.models import Model
from services.worker.runtime.forward import forwarding
from services.worker.runtime.in_place import Capacity
from tests.kernels.caches import unwritten


class PagedLoop:
    """Sequences over one KV cache; `step` feeds tokens to some of them."""

    def __init__(self, model: Model, num_rows: int, max_tokens: int, dtype: torch.dtype = torch.float32):
        spec = model.spec
        self.model = model
        self.blocks_per_row = -(-max_tokens // BLOCK_SIZE)
        num_blocks = num_rows * self.blocks_per_row
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(7))
        self.tables = order.reshape(num_rows, -1).tolist()
        self.kv = [unwritten(num_blocks, spec.num_kv_heads, spec.head_dim, dtype) for _ in range(model.num_layers)]
        self.lengths = [0] * num_rows
        capacity = Capacity(num_rows * max_tokens, num_rows, self.blocks_per_row)
        self.forward = forwarding(model, self.kv, capacity, "cpu")

    def step(self, rows: dict[int, list[int]], *, every: bool = False) -> Tensor:
        """Feeds rows (row -> tokens); logits of each row's last token, or of every token, in order."""
        given = []
        for row, tokens in rows.items():
            given.append(Row(row, self.lengths[row], tokens, self.tables[row], sample=True, prompt_logprobs=every))
            self.lengths[row] += len(tokens)
        with torch.inference_mode():
            return self.forward(given).clone()


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
