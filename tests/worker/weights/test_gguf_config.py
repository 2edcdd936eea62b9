"""What GGUF metadata say in a config's words, where llama.cpp hard-codes or infers. Whole models: tests/worker/models."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from services.worker.models import spec_of
from services.worker.models.spec import ModelSpec
from services.worker.weights import open_checkpoint
from tests.shared.gguf_writer import Entry, write_gguf


def keys(architecture: str, **changes: Entry) -> dict[str, Entry]:
    numbers: dict[str, Entry] = {
        "block_count": 12,
        "context_length": 8192,
        "embedding_length": 96,
        "feed_forward_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 32,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": 1024,
    }
    return {f"{architecture}.{key.replace('__', '.')}": value for key, value in {**numbers, **changes}.items()}


def spec(path: Path, architecture: str, metadata: Mapping[str, Entry]) -> ModelSpec:
    tensors = {"token_embd.weight": ((7, 96), "F16", bytes(7 * 96 * 2))}
    return spec_of(open_checkpoint(write_gguf(path / "m.gguf", {"general.architecture": architecture, **metadata}, tensors)))


@pytest.mark.parametrize(("architecture", "large"), [("gemma2", 46), ("gemma3", 62)])
def test_the_27b_gemmas_scale_scores_by_hidden_size_per_head(architecture: str, large: int, tmp_path: Path) -> None:
    assert spec(tmp_path, architecture, keys(architecture)).score_scale == 32**-0.5
    assert spec(tmp_path, architecture, keys(architecture, block_count=large)).score_scale == 24**-0.5


def test_gemma_layers_alternate(tmp_path: Path) -> None:
    second = spec(tmp_path, "gemma2", keys("gemma2"))
    assert [layer.window for layer in second.layers[:4]] == [1024, 0, 1024, 0]
    third = spec(tmp_path, "gemma3", keys("gemma3", rope__freq_base=1e6))
    assert [layer.window for layer in third.layers] == [1024] * 5 + [0] + [1024] * 5 + [0]
    assert {(layer.window, layer.rope.base) for layer in third.layers} == {(1024, 1e4), (0, 1e6)}
    listed = [True, False] * 6
    named = spec(tmp_path, "gemma3", keys("gemma3", attention__sliding_window_pattern=listed))
    assert [layer.window > 0 for layer in named.layers] == listed
    numbered = spec(tmp_path, "gemma3", keys("gemma3", attention__sliding_window_pattern=3))
    assert [layer.window > 0 for layer in numbered.layers] == [True, True, False] * 4


def test_a_llama_with_a_window_is_a_mistral(tmp_path: Path) -> None:
    assert spec(tmp_path, "llama", keys("llama")).architecture == "MistralForCausalLM"
    plain = spec(tmp_path, "llama", keys("llama", attention__sliding_window=0))
    assert plain.architecture == "LlamaForCausalLM"
    assert {layer.window for layer in plain.layers} == {0}


def test_phi_3_of_short_context_names_longrope_without_factors(tmp_path: Path) -> None:
    named = spec(tmp_path, "phi3", keys("phi3", rope__scaling__type="longrope"))
    assert {layer.rope.law for layer in named.layers} == {"default"}


def test_every_end_of_turn_is_found(tmp_path: Path) -> None:
    tokens = {
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 4,
        "tokenizer.ggml.tokens": ["a", "</s>", "<|im_end|>", "<|eot_id|>", "x"],
        "tokenizer.ggml.token_type": [1, 3, 1, 3, 3],
    }
    tensors = {"token_embd.weight": ((7, 96), "F16", bytes(7 * 96 * 2))}
    path = write_gguf(tmp_path / "m.gguf", {"general.architecture": "qwen2", **keys("qwen2"), **tokens}, tensors)
    assert open_checkpoint(path).eos_token_ids == (1, 3, 4)  # 2 is text that looks like an end, not a control token
