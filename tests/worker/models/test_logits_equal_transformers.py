"""Every family of models/__init__.ARCHITECTURES, read from a Hugging Face directory, against transformers 5.

Tolerance: compare.py. It knows nothing of GGUF.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import kernels
from services.worker.models import ARCHITECTURES, build
from tests.worker.models import tiny
from tests.worker.models.compare import assert_same_logits

# Laws that depend on the length are compared where the reference has not begun to stretch: see layers/rope.py.
SERVED = {"phi3-longrope-short": 128, "llama-rope-dynamic": 256}


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_float32(name: str, tmp_path: Path, ops: kernels.Ops) -> None:
    reference = tiny.save(tiny.random_model(name), tmp_path)
    assert_same_logits(build(tmp_path, ops, max_model_len=SERVED.get(name)), reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "phi3"])
def test_sixteen_bit_files_in_shards(name: str, dtype: torch.dtype, tmp_path: Path, ops: kernels.Ops) -> None:
    reference = tiny.save(tiny.random_model(name), tmp_path, dtype, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    model = build(tmp_path, ops)
    assert model.formats == ("F16" if dtype == torch.float16 else "BF16",)
    assert_same_logits(model, reference)


FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}


def test_every_architecture_is_compared() -> None:
    for name in tiny.CONFIGS:
        assert type(tiny.random_model(name)).__name__ == FAMILIES[name.split("-")[0]]
    assert {*FAMILIES.values(), "Gemma3ForConditionalGeneration"} == set(ARCHITECTURES)


def scaling(numbers: Mapping[str, object], **changes: object) -> dict[str, object]:
    """rope_parameters without what old configs kept elsewhere."""
    return {key: value for key, value in {**numbers, **changes}.items() if key != "rope_theta" and value is not None}


OLD_STYLE: Mapping[str, dict[str, object]] = {
    "llama-rope-llama3": {"rope_theta": 500000.0, "rope_scaling": scaling(tiny.LLAMA3)},
    "qwen2-window-yarn": {"rope_theta": 10000.0, "rope_scaling": scaling(tiny.YARN, rope_type=None, type="yarn")},
    "phi3-longrope-long": {"rope_scaling": scaling(tiny.LONGROPE, rope_type=None, type="su"), "partial_rotary_factor": 0.75},
    "gemma3": {
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "layer_types": None,
        "sliding_window_pattern": 6,
    },
}


@pytest.mark.parametrize("name", OLD_STYLE)
def test_configs_written_before_transformers_5(name: str, tmp_path: Path, ops: kernels.Ops) -> None:
    reference = tiny.save(tiny.random_model(name), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_parameters": None, **OLD_STYLE[name]}))
    assert_same_logits(build(tmp_path, ops), reference)


def test_the_text_side_of_a_gemma_3_with_vision(tmp_path: Path, ops: kernels.Ops) -> None:
    """As published: text numbers nested and sparse, tensors under `language_model.`, a tower that is not read."""
    from safetensors.torch import load_file, save_file

    config = tiny.gemma(tiny.Gemma3TextConfig, vocab_size=67, num_hidden_layers=6)
    reference = tiny.save(tiny.randomised(config), tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())
    both = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "eos_token_id": [1, 106]}
    (tmp_path / "config.json").write_text(json.dumps(both))
    (tmp_path / "generation_config.json").unlink()
    tensors = {f"language_model.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    tensors["vision_tower.weight"] = torch.ones(3)
    save_file(tensors, tmp_path / "model.safetensors")
    model = build(tmp_path, ops)
    assert model.eos_token_ids == (1, 106)
    assert_same_logits(model, reference)
