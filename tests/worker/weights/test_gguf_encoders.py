"""The encoders of the tests, judged by the gguf package: what they write, it must read as nearly the same numbers."""

import gguf
import numpy as np
import pytest
import torch

from kernels.matmul.formats import row_bytes
from tests.worker.weights.gguf_encoders import ENCODERS, encode

# Largest error of normal numbers, from the width of a step.
STEPS = {"F32": 0, "F16": 0.002, "BF16": 0.02, "Q8_0": 0.02, "Q4_0": 0.6, "Q4_1": 0.3, "Q4_K": 0.35, "Q5_K": 0.2, "Q6_K": 0.1}


@pytest.mark.parametrize("fmt", ENCODERS)
def test_encoded_weights_are_near_the_original(fmt: str) -> None:
    weights = torch.randn(6, 512, generator=torch.Generator().manual_seed(5))
    weights[1] = 0
    packed = np.frombuffer(bytearray(encode(weights, fmt)), dtype=np.uint8).reshape(6, row_bytes(fmt, 512))
    read = torch.from_numpy(gguf.dequantize(packed, gguf.GGMLQuantizationType[fmt]))
    assert (read - weights).abs().max() <= STEPS[fmt]
    assert read[1].abs().max() == 0
