"""GGUF metadata in the words of a Hugging Face config.json, so that a model family is described once.

Keys: github.com/ggml-org/ggml, docs/gguf.md; what llama.cpp hard-codes per architecture stands in the functions below
with its reason. It knows nothing of tensor data but the small tables of rotary factors.
"""

from collections.abc import Callable, Mapping
from typing import Any

from shared.errors import StartupError
from shared.gguf import Gguf

Config = dict[str, Any]
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
EOS_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
# Ends of turn by their text, as in llama.cpp: many files name only one end in their metadata.
END_TEXTS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")
CONTROL_TOKEN = 3


def hf_config(header: Gguf, rope_tensors: Mapping[str, list[float]]) -> Config:
    """The config of the model in `header`. StartupError for an architecture not in the table, or a key missing."""
    architecture = header.string("general.architecture")
    if architecture not in ARCHITECTURES:
        raise StartupError(
            f"{header.path}: unknown architecture '{architecture}'; those supported in GGUF files: {', '.join(ARCHITECTURES)}"
        )
    keys = _Keys(header, architecture)
    num_heads = keys.integer("attention.head_count")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise StartupError(f"{header.path}: tensor 'token_embd.weight' is missing; the file is damaged")
    if num_heads < 1:
        raise StartupError(f"{header.path}: key '{architecture}.attention.head_count' is {num_heads}; it must be positive")
    config: Config = {
        "vocab_size": embedding.shape[0],
        "hidden_size": keys.integer("embedding_length"),
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", num_heads),
        "head_dim": keys.integer("attention.key_length", keys.integer("embedding_length") // num_heads),
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "sliding_window": keys.integer("attention.sliding_window", 0) or None,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "norm_offset": 0.0,  # Gemma's 1 is already added
    }
    config["rope_parameters"] = _rope(keys, config, rope_tensors)
    ARCHITECTURES[architecture](keys, config)
    return config


def eos_token_ids(header: Gguf) -> tuple[int, ...]:
    """Every token that ends an answer: those named in the metadata, and control tokens with a known text."""
    found = {header.integer(key) for key in EOS_KEYS if key in header.metadata}
    if "tokenizer.ggml.tokens" in header.metadata and "tokenizer.ggml.token_type" in header.metadata:
        kinds = header.numbers("tokenizer.ggml.token_type")
        for token_id, text in enumerate(header.strings("tokenizer.ggml.tokens")[: len(kinds)]):
            if text in END_TEXTS and kinds[token_id] == CONTROL_TOKEN:
                found.add(token_id)
    return tuple(sorted(found))


class _Keys:
    """Metadata under the architecture's prefix."""

    def __init__(self, header: Gguf, architecture: str):
        self.header = header
        self.prefix = architecture + "."

    def integer(self, key: str, default: int | None = None) -> int:
        return self.header.integer(self.prefix + key, default)

    def number(self, key: str, default: float | None = None) -> float:
        return self.header.number(self.prefix + key, default)

    def value(self, key: str) -> Any:
        return self.header.metadata.get(self.prefix + key)

    def string(self, key: str, default: str) -> str:
        return self.header.string(self.prefix + key, default)


def _rope(keys: _Keys, config: Config, tensors: Mapping[str, list[float]]) -> Config:
    """rope_parameters. Factor tensors divide the frequencies, which is what longrope does."""
    context = config["max_position_embeddings"]
    law = keys.string("rope.scaling.type", "none")
    rope: Config = {
        "rope_type": "default" if law == "none" else law,
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "partial_rotary_factor": keys.integer("rope.dimension_count", config["head_dim"]) / config["head_dim"],
        "original_max_position_embeddings": keys.integer("rope.scaling.original_context_length", context),
        "factor": keys.number("rope.scaling.factor", 1.0),
    }
    if "rope_freqs.weight" in tensors:
        both = tensors["rope_freqs.weight"]
        rope |= {"rope_type": "longrope", "short_factor": both, "long_factor": both, "attention_factor": 1.0}
    elif "rope_factors_long.weight" in tensors:
        rope |= {
            "rope_type": "longrope",
            "long_factor": tensors["rope_factors_long.weight"],
            "short_factor": tensors.get("rope_factors_short.weight", []),
            "attention_factor": keys.number("rope.scaling.attn_factor", 1.0),
        }
    elif law == "longrope":
        rope["rope_type"] = "default"  # Phi-3 files of short context name the law but carry no factors
    return rope


def _llama(keys: _Keys, config: Config) -> None:
    """Mistral is written as llama; only the window tells."""
    config["architectures"] = ["MistralForCausalLM" if config["sliding_window"] else "LlamaForCausalLM"]
    if config["rope_parameters"]["partial_rotary_factor"] != 1:
        raise StartupError(f"{keys.header.path}: a llama model with partly rotated heads is not supported")


def _named(architecture: str) -> Callable[[_Keys, Config], None]:
    def complete(keys: _Keys, config: Config) -> None:
        config["architectures"] = [architecture]

    return complete


def _qwen2(keys: _Keys, config: Config) -> None:
    """Windows are never in the file: no published Qwen 2 model uses them."""
    config |= {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False}


def _gemma2(keys: _Keys, config: Config) -> None:
    """llama.cpp scales scores by the head size, except in the 27B model, told by its 46 layers."""
    config |= {
        "architectures": ["Gemma2ForCausalLM"],
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _score_size(config, large=46),
    }


def _gemma3(keys: _Keys, config: Config) -> None:
    """Local layers turn with base 10000 and no scaling; the 27B model is told by its 62 layers."""
    local = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", 10000.0)}
    config |= {
        "architectures": ["Gemma3ForCausalLM"],
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
        "query_pre_attn_scalar": _score_size(config, large=62),
        "rope_parameters": {"full_attention": config["rope_parameters"], "sliding_attention": local},
    }
    pattern = keys.value("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        config["layer_types"] = ["sliding_attention" if windowed else "full_attention" for windowed in pattern]
    elif pattern:
        config["sliding_window_pattern"] = pattern


def _score_size(config: Config, large: int) -> int:
    per_head: int = config["hidden_size"] // config["num_attention_heads"]
    size: int = per_head if config["num_hidden_layers"] == large else config["head_dim"]
    return size


ARCHITECTURES: Mapping[str, Callable[[_Keys, Config], None]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _named("Qwen3ForCausalLM"),
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _named("Phi3ForCausalLM"),
}
