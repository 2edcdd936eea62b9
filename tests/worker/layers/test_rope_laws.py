"""Every rotary law against transformers' function of the same name, from the same config. Tolerance 1e-6, relative."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from services.worker.layers.rope import LAWS, RopeSpec, cos_sin_table
from services.worker.models.rope import rope_parameters, rope_spec, stretched_length
from services.worker.models.spec import Config

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
FACTORS = {"short_factor": [1.0 + i / 7 for i in range(32)], "long_factor": [1.0 + i for i in range(32)]}
YARN = {"factor": 4.0, "original_max_position_embeddings": 4096}

# law -> its numbers, and the served length to compare at
CASES: Mapping[str, tuple[dict[str, Any], int]] = {
    "linear": ({"factor": 4.0}, 100),
    "dynamic, short": ({"factor": 4.0}, 100),
    "dynamic, long": ({"factor": 4.0}, 60000),
    "llama3": (LLAMA3, 100),
    "yarn": (YARN, 100),
    "yarn, own scale and ramp": ({**YARN, "attention_factor": 0.9, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}, 100),
    "yarn, mscale": ({**YARN, "mscale": 0.7, "mscale_all_dim": 0.3}, 100),
    "longrope, short": ({**FACTORS, "original_max_position_embeddings": 4096}, 4096),
    "longrope, long": ({**FACTORS, "original_max_position_embeddings": 4096}, 4097),
}


@pytest.mark.parametrize("partial", [1.0, 0.5])
@pytest.mark.parametrize("case", CASES)
def test_frequencies_equal_transformers(case: str, partial: float) -> None:
    numbers, served = CASES[case]
    law, dim = case.split(",")[0], int(64 * partial)
    numbers = {key: value[: dim // 2] if isinstance(value, list) else value for key, value in numbers.items()}
    parameters = {"rope_type": law, "rope_theta": 50000.0, "partial_rotary_factor": partial, **numbers}
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=16384, rope_parameters=parameters)
    expected, scale = ROPE_INIT_FUNCTIONS[law](config, torch.device("cpu"), seq_len=served)
    ours = Config("config.json", config.to_dict())
    spec = rope_spec(ours, rope_parameters(ours))
    inverse, factor = LAWS[law](spec, served)
    torch.testing.assert_close(inverse, expected, rtol=1e-6, atol=0)
    assert factor == pytest.approx(scale)


def test_the_table_is_cosines_then_sines() -> None:
    table = cos_sin_table(RopeSpec("default", 10000.0, 8), 5)
    assert table.shape == (5, 8)
    angles = 3 * 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(table[3], torch.cat([angles.cos(), angles.sin()]))


def test_only_laws_that_depend_on_the_length_say_so() -> None:
    assert RopeSpec("dynamic", 1e4, 8).depends_on_length()
    assert RopeSpec("longrope", 1e4, 8, short_factors=(1.0,), long_factors=(2.0,)).depends_on_length()
    assert not RopeSpec("longrope", 1e4, 8, short_factors=(2.0,), long_factors=(2.0,)).depends_on_length()
    assert not RopeSpec("yarn", 1e4, 8).depends_on_length()


def test_stretched_contexts() -> None:
    config = Config("config.json", {"max_position_embeddings": 32768})
    assert stretched_length(config, RopeSpec("yarn", 1e6, 64, factor=4.0, original_length=32768)) == 131072
    assert stretched_length(config, RopeSpec("yarn", 1e6, 64, factor=4.0, original_length=8192)) == 32768
    assert stretched_length(config, RopeSpec("llama3", 5e5, 64, factor=8.0, original_length=8192)) == 32768
