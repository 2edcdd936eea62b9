"""Every GGUF format and architecture, written from a tiny model and read back, against transformers 5 with the numbers
the file holds. Tolerance: compare.py.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma3TextConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

import kernels
from kernels.matmul.formats import FORMATS
from services.worker.models import build
from services.worker.weights.gguf_config import ARCHITECTURES
from tests.worker.models import tiny
from tests.worker.models.compare import assert_same_logits
from tests.worker.models.gguf_files import write_model

# Rows of whole blocks of 256; otherwise as odd as the others.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64, "vocab_size": 97}
GEMMA = {**WIDE, "query_pre_attn_scalar": 64}
FACTORS = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + i / 9 for i in range(24)]}
LONGROPE = {**FACTORS, "attention_factor": 1.19, "long_factor": [1.0 + i / 2 for i in range(24)]}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": tiny.llama(**WIDE),
    "llama-tied-biased": tiny.llama(**WIDE, tie_word_embeddings=True, attention_bias=True, out_bias=False),
    "llama-rope-llama3": tiny.llama(**WIDE, rope_parameters=dict(tiny.LLAMA3)),
    "llama-rope-linear": tiny.llama(**WIDE, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}),
    "mistral": MistralConfig(**{**tiny.BASE, **WIDE, "sliding_window": 7}),
    "qwen2": Qwen2Config(**{**tiny.BASE, **WIDE}),
    "qwen2-yarn": Qwen2Config(**{**tiny.BASE, **WIDE, "rope_parameters": {**tiny.YARN, "beta_fast": 32.0}}),
    "qwen3": Qwen3Config(**{**tiny.BASE, **WIDE, "head_dim": 128}),
    "gemma2": tiny.gemma(Gemma2Config, **GEMMA, attn_logit_softcapping=5.0, final_logit_softcapping=3.0),
    "gemma3": tiny.gemma(
        Gemma3TextConfig,
        **{**GEMMA, "num_hidden_layers": 7},
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "phi3": tiny.phi3(**WIDE, sliding_window=11),
    "phi3-longrope": tiny.phi3(
        **WIDE, original_max_position_embeddings=3, partial_rotary_factor=0.75, rope_parameters=copy.deepcopy(LONGROPE)
    ),
}


def only(fmt: str) -> Callable[[str], str]:
    return lambda name: fmt


def mixed(name: str) -> str:
    """As the popular Q4_K_M files: values and half of the downs finer than the rest."""
    return "Q6_K" if name.startswith("token_embd") or "attn_v" in name or "0.ffn_down" in name else "Q4_K"


CASES = {
    **{f"llama {fmt}": ("llama", only(fmt)) for fmt in FORMATS},
    "llama mixed": ("llama", mixed),
    "llama-tied-biased": ("llama-tied-biased", only("Q8_0")),
    "llama-rope-llama3": ("llama-rope-llama3", only("F16")),
    "llama-rope-linear": ("llama-rope-linear", only("BF16")),
    "mistral": ("mistral", only("Q4_1")),
    "qwen2": ("qwen2", mixed),
    "qwen2-yarn": ("qwen2-yarn", only("Q5_K")),
    "qwen3": ("qwen3", only("Q6_K")),
    "gemma2": ("gemma2", only("Q8_0")),
    "gemma3": ("gemma3", only("Q4_0")),
    "phi3": ("phi3", only("Q4_K")),
    "phi3-longrope": ("phi3-longrope", only("F32")),
}


@pytest.mark.parametrize("case", CASES)
def test_logits(case: str, tmp_path: Path, ops: kernels.Ops) -> None:
    name, choose = CASES[case]
    reference = write_model(tiny.randomised(CONFIGS[name]), tmp_path / "model.gguf", choose)
    model = build(tmp_path / "model.gguf", ops)
    assert model.eos_token_ids == (2,)
    assert_same_logits(model, reference)


def test_every_architecture_is_written_and_read() -> None:
    written = {"llama" if name == "mistral" else name.split("-")[0] for name, _ in CASES.values()}
    assert written == set(ARCHITECTURES)


def test_packed_rows_stay_packed(tmp_path: Path, ops: kernels.Ops) -> None:
    write_model(tiny.randomised(CONFIGS["llama"]), tmp_path / "model.gguf", mixed)
    model = build(tmp_path / "model.gguf", ops)
    assert model.formats == ("F32", "Q4_K", "Q6_K")
    assert model.decoder.embedding.weight.data.dtype == torch.uint8
    assert model.num_bytes < 1.1 * (tmp_path / "model.gguf").stat().st_size
