"""Writes a transformers model as a GGUF file the way llama.cpp's converter does, and says what the file then holds.

Sources: github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py. It knows nothing of Roadtrain's reader: names,
permutation and offsets are written down a second time on purpose.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.shared.gguf_writer import Entry, write_gguf
from tests.worker.weights.gguf_encoders import encode

ARCHITECTURE = {"mistral": "llama", "gemma3_text": "gemma3"}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
Choose = Callable[[str], str]  # GGUF name of a matrix -> its format


def write_model(model: PreTrainedModel, path: Path, choose: Choose) -> PreTrainedModel:
    """Writes `path`; gives back the model, its matrices as they now are in the file."""
    config = model.config
    architecture = ARCHITECTURE.get(config.model_type, config.model_type)
    tensors: dict[str, tuple[tuple[int, ...], str, bytes]] = {}
    with torch.no_grad():
        for hf_name, parameter in model.named_parameters():
            name = gguf_name(hf_name, architecture)
            order = row_order(name, parameter, config) if architecture == "llama" else None
            stored = parameter if order is None else parameter[order]
            if architecture.startswith("gemma") and name.endswith("norm.weight"):
                stored = stored + 1
            fmt = choose(name) if parameter.dim() > 1 else "F32"
            data = encode(stored, fmt)
            tensors[name] = (tuple(parameter.shape), fmt, data)
            if parameter.dim() > 1:
                read = decode(data, fmt, parameter.shape)
                parameter[order if order is not None else slice(None)] = read
    write_gguf(path, metadata(model, architecture, tensors), tensors)
    return model


def decode(data: bytes, fmt: str, shape: torch.Size) -> Tensor:
    """By the gguf package, so that the kernels' own unpacking is judged too."""
    packed = np.frombuffer(data, dtype=np.uint8).reshape(shape[0], -1)
    return torch.from_numpy(gguf.dequantize(packed, gguf.GGMLQuantizationType[fmt]).copy())


def gguf_name(name: str, architecture: str) -> str:
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    module, _, kind = name.rpartition(".")
    if module in top:
        return f"{top[module]}.{kind}"
    _, _, layer, part = module.split(".", 3)
    if architecture.startswith("gemma") and part == "post_attention_layernorm":
        return f"blk.{layer}.post_attention_norm.{kind}"
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def row_order(name: str, parameter: Tensor, config: object) -> Tensor | None:
    """Which row of the Hugging Face tensor stands at each row of the file: halves of a head become pairs."""
    part = name.split(".")[-2]
    if part not in ("attn_q", "attn_k"):
        return None
    heads = getattr(config, "num_attention_heads" if part == "attn_q" else "num_key_value_heads")
    return torch.arange(len(parameter)).reshape(heads, 2, -1).swapaxes(1, 2).flatten()


def metadata(
    model: PreTrainedModel, architecture: str, tensors: dict[str, tuple[tuple[int, ...], str, bytes]]
) -> Mapping[str, Entry]:
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys: dict[str, Entry] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    window = getattr(config, "sliding_window", None)
    if window:
        keys["attention.sliding_window"] = window
    for field in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, field, None):
            keys[field] = getattr(config, field)
    keys |= rope(model, head_dim, tensors)
    return {
        "general.architecture": architecture,
        "tokenizer.ggml.eos_token_id": 2,
        **{f"{architecture}.{key}": value for key, value in keys.items()},
    }


def rope(model: PreTrainedModel, head_dim: int, tensors: dict[str, tuple[tuple[int, ...], str, bytes]]) -> dict[str, Entry]:
    config = model.config
    numbers = config.rope_parameters.get("full_attention", config.rope_parameters)
    law, partial = numbers["rope_type"], numbers.get("partial_rotary_factor") or 1.0
    keys: dict[str, Entry] = {"rope.freq_base": float(numbers["rope_theta"]), "rope.dimension_count": int(head_dim * partial)}
    if law in ("linear", "yarn"):
        keys |= {"rope.scaling.type": law, "rope.scaling.factor": float(numbers["factor"])}
    if law in ("yarn", "longrope"):
        keys["rope.scaling.original_context_length"] = numbers["original_max_position_embeddings"]
    if law == "longrope":
        keys |= {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": numbers["attention_factor"]}
        for kind in ("long", "short"):
            factors = torch.tensor(numbers[f"{kind}_factor"])
            tensors[f"rope_factors_{kind}.weight"] = (tuple(factors.shape), "F32", encode(factors, "F32"))
    if law == "llama3":
        plain = numbers["rope_theta"] ** (-torch.arange(0, head_dim, 2) / head_dim)
        factors = plain / model.model.rotary_emb.inv_freq
        tensors["rope_freqs.weight"] = (tuple(factors.shape), "F32", encode(factors, "F32"))
    return keys
