"""Gemma 2 and the text side of Gemma 3: norms around every part, alternating windows, soft caps, two rotary bases.

Sources: the technical reports (arXiv 2408.00118, 2503.19786) and transformers' models of the same names.
It knows nothing of tensors.
"""

from typing import Any

from services.worker.models.llama import dense, windows
from services.worker.models.rope import rope_parameters, rope_spec
from services.worker.models.spec import Config, LayerSpec, ModelSpec, TensorNames

COMMON = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True}
NAMES: dict[str, Any] = {
    "mlp_norm": "pre_feedforward_layernorm",
    "after_attention_norm": "post_attention_layernorm",
    "after_mlp_norm": "post_feedforward_layernorm",
}


def gemma2(config: Config) -> ModelSpec:
    """Gemma2ForCausalLM."""
    config = config.over({**COMMON, "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0})
    count = config.integer("num_hidden_layers")
    types = ["full_attention" if index % 2 else "sliding_attention" for index in range(count)]
    rope = rope_spec(config, rope_parameters(config))
    sizes = windows(config, types, int(config.optional("sliding_window")))
    return _gemma(config, layers=tuple(LayerSpec(size, rope) for size in sizes), names=TensorNames(**NAMES))


def gemma3(config: Config) -> ModelSpec:
    """Gemma3ForCausalLM."""
    return _gemma3(config, TensorNames(**NAMES))


def gemma3_with_vision(config: Config) -> ModelSpec:
    """Gemma3ForConditionalGeneration, its text side: the tensors of the vision tower stay unread."""
    text = config.part("text_config").over({"architectures": config.values["architectures"], "vocab_size": 262208})
    ignored = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
    return _gemma3(text, TensorNames(**NAMES, prefix="language_model.", ignored=ignored))


def _gemma3(config: Config, names: TensorNames) -> ModelSpec:
    config = config.over({**COMMON, "sliding_window": 4096, "max_position_embeddings": 131072})
    count, pattern = config.integer("num_hidden_layers"), config.integer("sliding_window_pattern", 6)
    types = ["sliding_attention" if (index + 1) % pattern else "full_attention" for index in range(count)]
    far, near = _bases(config)
    ropes = {False: rope_spec(config, far), True: rope_spec(config, near)}
    sizes = windows(config, types, config.integer("sliding_window"))
    # dense reads one rotary law for the whole model; here it is the global one.
    config = config.with_value("rope_parameters", far.values)
    return _gemma(config, qk_norm=True, layers=tuple(LayerSpec(size, ropes[size > 0]) for size in sizes), names=names)


def _bases(config: Config) -> tuple[Config, Config]:
    """Rotary numbers of the global and of the local layers; a scaling without names is of the global ones."""
    nested = config.part("rope_parameters")
    near = nested.part("sliding_attention").over({"rope_theta": config.number("rope_local_base_freq", 10_000.0)})
    far = nested.part("full_attention") if "full_attention" in nested.values else config.part("rope_scaling")
    return far.over({"rope_theta": config.number("rope_theta", 1_000_000.0)}), near


def _gemma(config: Config, **differences: Any) -> ModelSpec:
    if config.values.get("use_bidirectional_attention"):
        config.wrong("use_bidirectional_attention", "false: only text is generated, left to right")
    bias = config.flag("attention_bias", False)
    return dense(
        config,
        norm_offset=config.number("norm_offset", 1.0),
        activation="gelu",
        score_scale=config.number("query_pre_attn_scalar", 256) ** -0.5,
        score_softcap=config.optional("attn_logit_softcapping"),
        logit_softcap=config.optional("final_logit_softcapping"),
        embedding_scale=config.integer("hidden_size") ** 0.5,
        qkv_bias=bias,
        out_bias=bias,
        **differences,
    )
