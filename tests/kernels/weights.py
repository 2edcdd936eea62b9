"""Random packed weights for tests: any bytes, with sane scales."""

import torch
from torch import Tensor

from kernels.matmul.formats import FORMATS, row_bytes

PACKED = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K")
_HALVES = {"Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def random_weights(fmt: str, n: int, k: int) -> Tensor:
    """n rows of k weights in `fmt`, laid out as the kernels want them."""
    if fmt in _FLOATS:
        return torch.randn(n, k).to(_FLOATS[fmt])
    data = torch.randint(0, 256, (n, row_bytes(fmt, k)), dtype=torch.uint8)
    blocks = data.view(-1, FORMATS[fmt].block_bytes)
    for at in _HALVES[fmt]:
        blocks[:, at + 1] = blocks[:, at + 1] & 0x83 | 0x20
    return data
