"""The decoder's forward pass: embed, blocks, norm, head.

Letters: T tokens of the step, S rows whose logits are wanted, V vocabulary. Every layer adds its result to the residual
stream. The pass runs on whatever ops it is given: computed at once, or recorded. It knows nothing of specs, tensor names or
block tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kernels.step_ops import KVCache, Norm, StepOps
from kernels.weight import Linear
from services.worker.batch import Batch
from services.worker.layers.attention import Attention
from services.worker.layers.linear import Embedding
from services.worker.layers.mlp import GatedMLP


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: normalise, attend, normalise, feed forward."""

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: GatedMLP


@dataclass(frozen=True, slots=True)
class Decoder:
    """A model's forward pass."""

    embedding: Embedding
    blocks: Sequence[Block]
    norm: Norm
    head: Linear
    logit_softcap: float

    def forward(self, ops: StepOps, batch: Batch, kv: Sequence[KVCache]) -> tuple[Tensor, Tensor]:
        """Logits [S, V] float32 of batch.logit_indices, and of every token what stands before the last norm [T, hidden].

        Writes the step's keys and values into kv, one cache a layer.
        """
        residual = self.embedding(ops, batch.token_ids)
        for block, cache in zip(self.blocks, kv, strict=True):
            block.attention(ops, ops.norm(residual, block.attention_norm), residual, cache, batch)
            block.mlp(ops, ops.norm(residual, block.mlp_norm), residual)
        logits = ops.linear(ops.norm(residual, self.norm, batch.logit_indices), self.head)
        if self.logit_softcap:
            ops.softcap(logits, self.logit_softcap)
        return logits, residual
