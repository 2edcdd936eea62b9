"""Llama 2 and 3, SmolLM, and the parts of a spec that every family here shares. The file to copy for a new model.

It knows nothing of tensors: a spec is numbers and names.
"""

from dataclasses import replace
from typing import Any

from services.worker.models.rope import head_dim_of, rope_parameters, rope_spec, stretched_length
from services.worker.models.spec import Config, LayerSpec, ModelSpec, TensorNames
from shared.errors import StartupError

SILU = ("silu", "swish")


def llama(config: Config) -> ModelSpec:
    """LlamaForCausalLM."""
    bias = config.flag("attention_bias", False)
    return dense(config, qkv_bias=bias, out_bias=config.flag("out_bias", bias), mlp_bias=config.flag("mlp_bias", False))


def dense(config: Config, **differences: Any) -> ModelSpec:
    """Llama's spec from a config's common fields, with `differences` (fields of ModelSpec) in place of Llama's own."""
    heads, layers = config.integer("num_attention_heads"), config.integer("num_hidden_layers")
    kv_heads, head_dim = config.integer("num_key_value_heads", heads), head_dim_of(config)
    if heads % kv_heads:
        config.wrong("num_key_value_heads", f"a divisor of the {heads} query heads")
    rope = rope_spec(config, rope_parameters(config))
    spec = ModelSpec(
        architecture=config.values["architectures"][0],
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        intermediate_size=config.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        context_length=stretched_length(config, rope),
        norm_eps=config.number("rms_norm_eps", 1e-6),
        norm_offset=0.0,
        layers=(LayerSpec(0, rope),) * layers,
        activation="silu",
        score_scale=head_dim**-0.5,
        score_softcap=0.0,
        logit_softcap=0.0,
        embedding_scale=1.0,
        qk_norm=False,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        tied=config.flag("tie_word_embeddings", False),
        names=TensorNames(),
    )
    spec = replace(spec, **differences)
    _check_activation(config, spec)
    return spec


def windows(config: Config, default_types: list[str], window: int) -> tuple[int, ...]:
    """Each layer's window: `layer_types` of the config, or `default_types`, where "sliding_attention" means `window`."""
    types = config.values.get("layer_types") or default_types
    known = {"sliding_attention": window, "full_attention": 0}
    if not isinstance(types, list) or len(types) != len(default_types) or not all(kind in known for kind in types):
        config.wrong("layer_types", f"a list of {len(default_types)} of {', '.join(known)}")
    return tuple(known[kind] for kind in types)


def _check_activation(config: Config, spec: ModelSpec) -> None:
    known = SILU if spec.activation == "silu" else ("gelu_pytorch_tanh",)
    named = config.values.get("hidden_activation") or config.values.get("hidden_act") or known[0]
    if named not in known:
        raise StartupError(f"{config.source}: activation {named!r} is not supported for {spec.architecture}; {known[0]!r} is")
