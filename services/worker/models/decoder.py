"""The decoder's forward pass: embed, blocks, norm, head.

Letters: T tokens of the step, S rows whose logits are wanted, V vocabulary. The residual stream is carried beside the
hidden state, so that adding and normalising are one op. It knows nothing of specs, tensor names or block tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.worker.backends.base import AttentionBackend, KVCache
from services.worker.batch import Batch
from services.worker.layers.attention import Attention
from services.worker.layers.linear import Embedding, Layer
from services.worker.layers.norm import RMSNorm


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: normalise, attend, normalise, feed forward."""

    attention_norm: RMSNorm
    attention: Attention
    mlp_norm: RMSNorm
    mlp: Layer


@dataclass(frozen=True, slots=True)
class Decoder:
    """A model's forward pass."""

    backend: AttentionBackend
    embedding: Embedding
    blocks: Sequence[Block]
    norm: RMSNorm
    head: Layer
    logit_softcap: float

    def forward(self, batch: Batch, kv: Sequence[KVCache]) -> Tensor:
        """Logits [S, V] float32 of batch.logit_indices; writes the step's keys and values into kv, one cache a layer."""
        plan = self.backend.plan(batch)
        x = self.embedding(batch.token_ids)
        residual = torch.zeros_like(x)
        for block, cache in zip(self.blocks, kv, strict=True):
            x, residual = block.attention_norm.add(x, residual)
            x = block.attention(x, batch.positions, cache, plan)
            x, residual = block.mlp_norm.add(x, residual)
            x = block.mlp(x)
        wanted = batch.logit_indices
        x, _ = self.norm.add(x[wanted], residual[wanted])
        logits = self.head(x)
        if self.logit_softcap:
            logits = torch.tanh(logits / self.logit_softcap) * self.logit_softcap
        return logits
