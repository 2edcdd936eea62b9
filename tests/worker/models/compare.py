"""Compares a model's logits with transformers' over ragged prefill in chunks and decoding.

Tolerance 1e-4 on float32 logits of size 1 to 10, whatever type the file stores: both sides compute in float32 from the
same stored numbers. It knows nothing of files.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from services.worker.models import Model
from tests.worker.models.paged import PagedLoop

TOLERANCE = 1e-4
LENGTHS = (37, 1, 20)


def prompts(vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, vocab_size, (length + 3,), generator=generator).tolist() for length in LENGTHS]


def expected(reference: PreTrainedModel, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        return reference(torch.tensor([tokens]), use_cache=False).logits[0]


def assert_same_logits(model: Model, reference: PreTrainedModel) -> None:
    """Ragged prefill in two chunks, then three steps of decoding with the KV cache, every token's logits compared."""
    rows = prompts(model.spec.vocab_size)
    wanted = [expected(reference, row) for row in rows]
    loop = PagedLoop(model, len(rows), 64)
    got: list[list[Tensor]] = [[] for _ in rows]
    cuts = [(0, 11), (11, LENGTHS[0]), *((LENGTHS[0] + i, LENGTHS[0] + i + 1) for i in range(3))]
    for begin, end in cuts:
        fed = {index: row[begin:end] for index, row in enumerate(rows) if row[begin:end]}
        parts = loop.step(fed, every=True).split([len(tokens) for tokens in fed.values()])
        for index, part in zip(fed, parts, strict=True):
            got[index].append(part)
    for logits, truth in zip(got, wanted, strict=True):
        torch.testing.assert_close(torch.cat(logits), truth, atol=TOLERANCE, rtol=TOLERANCE)
