"""GGUF files: packed rows mapped from disk, under the tensor names of Hugging Face.

Two things differ from Hugging Face beyond names. The llama architecture stores the rows of each query and key head in
the order of neighbouring pairs; they are put back into halves, row by row, packed as they are. Gemma's norms
already have their 1 added (gguf_config.py says so in `norm_offset`). It knows nothing of what the metadata mean.
"""

import hashlib
import json
import mmap
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from services.worker.weights.checkpoint import Checkpoint, Entry
from services.worker.weights.gguf_config import ROPE_TENSORS, eos_token_ids, hf_config
from shared.errors import StartupError
from shared.gguf import Gguf, GgufTensor, read_gguf

SAMPLE_BYTES = 4096
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OF_ARCHITECTURE = {"gemma2": GEMMA, "gemma3": GEMMA, "phi3": {"ffn_up": "mlp.gate_up_proj"}}
PAIRED = ("llama",)  # architectures whose query and key rows come in neighbouring pairs


def open_gguf(path: Path) -> Checkpoint:
    """The checkpoint in the file at `path`; tensor data stay on disk until asked for."""
    header = read_gguf(path)
    if header.integer("split.count", 1) > 1:
        raise StartupError(f"{path}: is one part of a split GGUF file; join the parts with `llama-gguf-split --merge`")
    with path.open("rb") as file:
        # Copy on write: torch wants writable memory, the file must never change.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    rope = {name: _rows(data, header.tensors[name]) for name in ROPE_TENSORS if name in header.tensors}
    config = hf_config(header, {name: factors.tolist() for name, factors in rope.items()})
    architecture = header.string("general.architecture")
    blocks = {**BLOCK, **OF_ARCHITECTURE.get(architecture, {})}
    entries = {}
    for name, tensor in header.tensors.items():
        if name not in rope:
            read = _reader(data, tensor, config if architecture in PAIRED else {})
            entries[_hf_name(name, blocks)] = Entry(path, name, tensor.shape, tensor.type, tensor.num_bytes, read)
    file_name = partial(_file_name, blocks=blocks)
    revision = _revision(header, data)
    return Checkpoint(path, config, str(path), entries, file_name, revision, eos_token_ids(header))


def _hf_name(name: str, blocks: dict[str, str]) -> str:
    """The Hugging Face name of a tensor; a name no architecture knows stays as it is, to be refused as extra."""
    module, _, kind = name.rpartition(".")
    if module in TOP:
        return f"{TOP[module]}.{kind}"
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)", module)
    if found is None or found[2] not in blocks:
        return name
    return f"model.layers.{found[1]}.{blocks[found[2]]}.{kind}"


def _file_name(name: str, blocks: dict[str, str]) -> str:
    """The other way round, for messages."""
    names = {hf: f"blk.{{}}.{own}" for own, hf in blocks.items()} | {hf: own for own, hf in TOP.items()}
    found = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.(\w+)", name)
    if found is None or found[2] not in names:
        return name
    return f"{names[found[2]].format(found[1])}.{found[3]}"


def _reader(data: mmap.mmap, tensor: GgufTensor, paired: dict[str, int]) -> Callable[[], Tensor]:
    for part, heads in (("attn_q", "num_attention_heads"), ("attn_k", "num_key_value_heads")):
        if f".{part}." in tensor.name and paired:
            return partial(_halved, data, tensor, paired[heads])
    return partial(_rows, data, tensor)


def _rows(data: mmap.mmap, tensor: GgufTensor) -> Tensor:
    """[N, K] (or the file's own shape) for float types, uint8 [N, row_bytes] for packed ones; a view of the file."""
    dtype = DTYPES.get(tensor.type, torch.uint8)
    flat = torch.frombuffer(data, dtype=dtype, count=tensor.num_bytes // dtype.itemsize, offset=tensor.offset)
    return flat.reshape(*tensor.shape[:-1], -1)


def _halved(data: mmap.mmap, tensor: GgufTensor, num_heads: int) -> Tensor:
    """Rows (head, i, half) of the file in the order (head, half, i)."""
    rows = _rows(data, tensor)
    if len(rows) % (2 * num_heads):
        return rows  # mis-shaped: refused by its shape, not here
    order = torch.arange(len(rows)).reshape(num_heads, -1, 2).transpose(1, 2).flatten()
    return rows[order]


def _revision(header: Gguf, data: mmap.mmap) -> str:
    table = [[name, tensor.shape, tensor.type, tensor.offset] for name, tensor in header.tensors.items()]
    digest = hashlib.sha256(json.dumps([dict(header.metadata), table, len(data)], sort_keys=True).encode())
    for tensor in header.tensors.values():
        digest.update(data[tensor.offset : tensor.offset + min(SAMPLE_BYTES, tensor.num_bytes)])
    return digest.hexdigest()
