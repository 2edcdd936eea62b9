"""A model file that cannot be served ends in one line naming the file and the fault. It knows nothing of logits."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import kernels
from services.worker.models import build
from services.worker.weights import open_checkpoint
from shared.errors import StartupError
from shared.gguf import read_gguf
from tests.shared.gguf_writer import write_gguf
from tests.worker.models import tiny
from tests.worker.models.gguf_files import write_model

Tensors = dict[str, torch.Tensor]
GgufTensors = dict[str, tuple[tuple[int, ...], str, bytes]]


@pytest.fixture(scope="module")
def good_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hf")
    tiny.save(tiny.random_model("llama"), directory)
    return directory


@pytest.fixture(scope="module")
def good_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_model(tiny.random_model("llama"), path, lambda name: "Q8_0")
    return path


@pytest.fixture
def directory(good_directory: Path, tmp_path: Path) -> Path:
    shutil.copytree(good_directory, tmp_path / "model")
    return tmp_path / "model"


def fault(path: Path, ops: kernels.Ops) -> str:
    """The one line that building the model at `path` ends with; it names the path."""
    with pytest.raises(StartupError) as caught:
        build(path, ops)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line


def change_tensors(directory: Path, change: Callable[[Tensors], None]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(Q), (Q, "missing")),
        (lambda tensors: tensors.update(surprise=torch.ones(2)), ("surprise", "extra")),
        (lambda tensors: tensors.update({Q: torch.ones(8, 64)}), (Q, "shape", "[8, 64]", "[96, 64]", "config.json")),
        (lambda tensors: tensors.update({Q: torch.ones(96, 64, dtype=torch.float64)}), (Q, "F64", "not supported")),
    ],
    ids=["missing", "extra", "mis-shaped", "unsupported type"],
)
def test_wrong_tensors_in_safetensors(
    change: Callable[[Tensors], None], words: tuple[str, ...], directory: Path, ops: kernels.Ops
) -> None:
    change_tensors(directory, change)
    line = fault(directory, ops)
    assert all(word in line for word in words), line


def test_derived_and_doubled_tensors_are_no_fault(tmp_path: Path, ops: kernels.Ops) -> None:
    tiny.save(tiny.random_model("llama-tied-biased"), tmp_path)

    def add(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    change_tensors(tmp_path, add)
    build(tmp_path, ops)


@pytest.mark.parametrize("length", [0, 5, 100, -1000])
def test_truncated_safetensors(length: int, directory: Path, ops: kernels.Ops) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    assert "truncated or not a safetensors file" in fault(directory, ops)


def test_a_missing_shard(directory: Path, ops: kernels.Ops) -> None:
    names = dict.fromkeys(load_file(directory / "model.safetensors"), "model-00001-of-00002.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert "model-00001-of-00002.safetensors: is missing" in fault(directory, ops)


def test_no_weights(directory: Path, ops: kernels.Ops) -> None:
    (directory / "model.safetensors").unlink()
    assert "only safetensors and GGUF" in fault(directory, ops)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["BertModel"]}, ("unknown architecture 'BertModel'", "LlamaForCausalLM")),
        ({"architectures": None}, ("'architectures' is missing",)),
        ({"quantization_config": {"quant_method": "gptq"}}, ("quantisation 'gptq' is not supported",)),
        ({"hidden_size": "64"}, ("'hidden_size' is '64'", "whole number")),
        ({"num_key_value_heads": 3}, ("'num_key_value_heads' is '3'", "divisor")),
        ({"hidden_act": "relu"}, ("activation 'relu'",)),
        ({"rope_parameters": {"rope_type": "spiral"}}, ("rope type 'spiral'", "yarn")),
        ({"rope_parameters": {"rope_type": "linear"}}, ("'factor' is missing",)),
        ({"eos_token_id": "</s>"}, ("'eos_token_id'",)),
        ({"num_hidden_layers": 2}, ("extra tensor 'model.layers.2.",)),
        ({"num_hidden_layers": 4}, ("'model.layers.3.", "missing")),
    ],
)
def test_wrong_configs(change: Mapping[str, Any], words: tuple[str, ...], directory: Path, ops: kernels.Ops) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    (directory / "generation_config.json").unlink()
    line = fault(directory, ops)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_no_object(text: str, directory: Path, ops: kernels.Ops) -> None:
    (directory / "config.json").write_text(text)
    assert "JSON" in fault(directory, ops)


def test_nothing_there(tmp_path: Path, ops: kernels.Ops) -> None:
    assert "no such model" in fault(tmp_path / "absent", ops)
    assert "config.json: cannot be read" in fault(tmp_path, ops)


def rewrite(path: Path, source: Path, change: Callable[[dict[str, Any], GgufTensors], None]) -> None:
    """Copies a GGUF file with metadata or tensors changed."""
    header, data = read_gguf(source), source.read_bytes()
    tensors = {t.name: (t.shape, t.type, data[t.offset : t.offset + t.num_bytes]) for t in header.tensors.values()}
    metadata = dict(header.metadata)
    change(metadata, tensors)
    write_gguf(path, metadata, tensors)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda keys, tensors: tensors.pop("blk.1.attn_q.weight"), ("'blk.1.attn_q.weight'", "missing")),
        (lambda keys, tensors: tensors.pop("token_embd.weight"), ("'token_embd.weight'", "missing")),
        (lambda keys, tensors: tensors.update(odd=((4,), "F32", bytes(16))), ("extra tensor 'odd'",)),
        (
            lambda keys, tensors: tensors.update({"blk.0.ffn_down.weight": ((64, 32), "F16", bytes(4096))}),
            ("'blk.0.ffn_down.weight'", "[64, 32]", "[64, 96]"),
        ),
        (
            lambda keys, tensors: tensors.update({"blk.0.ffn_down.weight": ((64, 96), "Q5_0", bytes(64 * 3 * 22))}),
            ("'blk.0.ffn_down.weight'", "Q5_0", "not supported", "Q4_K"),
        ),
        (lambda keys, tensors: keys.update({"general.architecture": "rwkv"}), ("unknown architecture 'rwkv'", "llama")),
        (lambda keys, tensors: keys.pop("llama.block_count"), ("'llama.block_count' is missing",)),
        (lambda keys, tensors: keys.update({"llama.attention.head_count": 0}), ("'llama.attention.head_count' is 0",)),
        (lambda keys, tensors: keys.update({"split.count": 3}), ("one part of a split GGUF file", "merge")),
    ],
    ids=["missing", "no embedding", "extra", "mis-shaped", "unsupported", "architecture", "no key", "no heads", "split"],
)
def test_wrong_gguf(
    change: Callable[[dict[str, Any], GgufTensors], None],
    words: tuple[str, ...],
    good_gguf: Path,
    tmp_path: Path,
    ops: kernels.Ops,
) -> None:
    path = tmp_path / "bad.gguf"
    rewrite(path, good_gguf, change)
    line = fault(path, ops)
    assert all(word in line for word in words), line


def test_truncated_gguf_and_wrong_magic(good_gguf: Path, tmp_path: Path, ops: kernels.Ops) -> None:
    data, path = good_gguf.read_bytes(), tmp_path / "bad.gguf"
    path.write_bytes(data[:-1000])
    assert "truncated" in fault(path, ops)
    path.write_bytes(data[:200])
    fault(path, ops)
    path.write_bytes(b"GGML" + data[4:])
    assert "not a GGUF file" in fault(path, ops)


def test_a_model_served_for_longer_than_it_can(good_gguf: Path, ops: kernels.Ops) -> None:
    with pytest.raises(StartupError, match=r"max-model-len 300 exceeds the 256 tokens"):
        build(good_gguf, ops, max_model_len=300)
    assert build(good_gguf, ops, max_model_len=40).max_model_len == 40


def test_the_revision_tells_models_apart(good_gguf: Path, directory: Path, tmp_path: Path) -> None:
    """Of the same shapes and sizes: one changed number near the beginning of one tensor is another revision."""
    first = open_checkpoint(good_gguf).revision
    data, copied = bytearray(good_gguf.read_bytes()), tmp_path / "copy.gguf"
    copied.write_bytes(data)
    assert open_checkpoint(copied).revision == first
    data[read_gguf(good_gguf).tensors["blk.1.ffn_up.weight"].offset + 100] ^= 1
    copied.write_bytes(data)
    assert open_checkpoint(copied).revision != first
    before = open_checkpoint(directory).revision
    change_tensors(directory, lambda tensors: tensors[Q].add_(1))
    assert open_checkpoint(directory).revision != before


def test_progress_reaches_the_whole(good_gguf: Path, directory: Path, ops: kernels.Ops) -> None:
    for path in (good_gguf, directory):
        calls: list[tuple[int, int]] = []
        build(path, ops, lambda done, total, calls=calls: calls.append((done, total)))
        assert [done for done, _ in calls] == sorted(done for done, _ in calls)
        assert calls[-1][0] == calls[-1][1] > 0
        assert len(calls) > 20
