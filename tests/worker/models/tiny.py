"""Tiny random Hugging Face models, one or more per family: small, but with every trait that could go wrong.

Odd vocabularies, grouped heads, windows shorter than the prompts, soft caps that bite, norms far from 1, biases far
from 0. It knows nothing of Roadtrain's own models.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

BASE: Mapping[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5],
    "long_factor": [1.0, 2.0, 3.0, 5.0, 8.0, 13.0],
}


def llama(**changes: Any) -> LlamaConfig:
    return LlamaConfig(**{**BASE, **changes})


def gemma(kind: type[PreTrainedConfig], **changes: Any) -> PreTrainedConfig:
    own = {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 9, "tie_word_embeddings": True}
    return kind(**{**BASE, **own, **changes})


def phi3(**changes: Any) -> Phi3Config:
    return Phi3Config(**{**BASE, **changes})


# name -> config; the second part of a name says which trait the row adds
CONFIGS: Mapping[str, PreTrainedConfig] = {
    "llama": llama(head_dim=24),
    "llama-tied-biased": llama(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-rope-llama3": llama(rope_parameters=LLAMA3),
    "llama-rope-linear": llama(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}),
    "llama-rope-dynamic": llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}),
    "mistral": MistralConfig(**{**BASE, "sliding_window": 7}),
    "mistral-no-window": MistralConfig(**{**BASE, "sliding_window": None}),
    "qwen2": Qwen2Config(**BASE),
    "qwen2-window-yarn": Qwen2Config(
        **{**BASE, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "rope_parameters": YARN}
    ),
    "qwen3": Qwen3Config(**{**BASE, "head_dim": 32}),
    "qwen3-tied-biased": Qwen3Config(**{**BASE, "head_dim": 32, "tie_word_embeddings": True, "attention_bias": True}),
    "gemma2": gemma(Gemma2Config, attn_logit_softcapping=5.0, final_logit_softcapping=3.0),
    "gemma3": gemma(
        Gemma3TextConfig,
        num_hidden_layers=7,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "phi3": phi3(sliding_window=11),
    "phi3-longrope-short": phi3(
        head_dim=16, original_max_position_embeddings=128, partial_rotary_factor=0.75, rope_parameters=dict(LONGROPE)
    ),
    "phi3-longrope-long": phi3(original_max_position_embeddings=3, partial_rotary_factor=0.75, rope_parameters=dict(LONGROPE)),
}


def random_model(name: str, seed: int = 0) -> PreTrainedModel:
    """The model of CONFIGS[name] in float32, all weights random and of a size that makes them count."""
    return randomised(CONFIGS[name], seed)


def randomised(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A float32 model of this config; eager attention, since others ignore soft caps."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter_name.endswith("norm.weight"):
                parameter.add_(noise * 0.3)
            else:
                parameter.copy_(noise * (0.15 if parameter.dim() > 1 else 0.5))
    return model


def save(model: PreTrainedModel, directory: Path, dtype: torch.dtype = torch.float32, **options: Any) -> PreTrainedModel:
    """Writes the checkpoint in `dtype`; the model as transformers reads it back, in float32."""
    model.to(dtype).save_pretrained(directory, **options)
    if dtype == torch.float32:
        return model
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
