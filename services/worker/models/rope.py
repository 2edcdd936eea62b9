"""Which rotary law a config asks for, with its numbers. The laws themselves are in layers/rope.py.

It knows nothing of families: one that keeps its rotary numbers elsewhere says so itself.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from services.worker.layers.rope import RopeSpec
from services.worker.models.spec import Config
from shared.errors import StartupError

Fields = dict[str, Any]


def head_dim_of(config: Config) -> int:
    """Elements of one head; where a config does not say, the heads share the hidden size."""
    return config.integer("head_dim", config.integer("hidden_size") // config.integer("num_attention_heads"))


def rope_parameters(config: Config) -> Config:
    """The rotary numbers, from `rope_parameters` (transformers 5) or `rope_scaling` and the fields beside it (before)."""
    beside = {key: config.values[key] for key in ("rope_theta", "partial_rotary_factor") if config.values.get(key) is not None}
    within = config.part("rope_parameters") if config.values.get("rope_parameters") else config.part("rope_scaling")
    return within.over(beside)


def rope_spec(config: Config, parameters: Config) -> RopeSpec:
    """The law in `parameters`, which lie within `config`."""
    law = parameters.values.get("rope_type") or parameters.values.get("type") or "default"
    law = {"su": "longrope"}.get(law, law)
    head_dim, base = head_dim_of(config), parameters.number("rope_theta", 10000.0)
    dim = int(head_dim * parameters.number("partial_rotary_factor", 1.0))
    if law not in _FIELDS:
        raise StartupError(f"{config.source}: rope type {law!r} is not supported; supported: {', '.join(_FIELDS)}")
    if dim < 2 or dim % 2 or dim > head_dim or base <= 1:
        raise StartupError(f"{config.source}: heads of {head_dim} cannot turn {dim} elements with base {base}")
    return RopeSpec(law, base, dim, **_FIELDS[law](config, parameters, dim))


def stretched_length(config: Config, spec: RopeSpec) -> int:
    """Tokens the model is good for. A yarn or dynamic config may still name the length before stretching."""
    length = config.integer("max_position_embeddings")
    return max(length, int(spec.original_length * spec.factor)) if spec.law in ("yarn", "dynamic") else length


def _original_length(config: Config, parameters: Config) -> int:
    """transformers lets the field beside rope_parameters win over the one within."""
    key = "original_max_position_embeddings"
    within = parameters.integer(key, config.integer("max_position_embeddings"))
    return config.integer(key, within)


def _factor(parameters: Config) -> float:
    factor = parameters.number("factor")
    return factor if factor > 0 else parameters.wrong("factor", "above 0")


def _default(config: Config, parameters: Config, dim: int) -> Fields:
    return {}


def _linear(config: Config, parameters: Config, dim: int) -> Fields:
    return {"factor": _factor(parameters)}


def _dynamic(config: Config, parameters: Config, dim: int) -> Fields:
    return {"factor": _factor(parameters), "original_length": config.integer("max_position_embeddings")}


def _llama3(config: Config, parameters: Config, dim: int) -> Fields:
    low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
    if not 0 < low < high:
        parameters.wrong("high_freq_factor", "above 'low_freq_factor', and both above 0")
    length = _original_length(config, parameters)
    return {"factor": _factor(parameters), "original_length": length, "low_freq_factor": low, "high_freq_factor": high}


def _yarn(config: Config, parameters: Config, dim: int) -> Fields:
    factor = _factor(parameters)
    mscale, mscale_all = parameters.optional("mscale"), parameters.optional("mscale_all_dim")
    inferred = _yarn_scale(factor, mscale) / _yarn_scale(factor, mscale_all) if mscale and mscale_all else _yarn_scale(factor, 1)
    return {
        "factor": factor,
        "original_length": _original_length(config, parameters),
        "attention_factor": parameters.number("attention_factor", inferred),
        "beta_fast": parameters.number("beta_fast", 32.0),
        "beta_slow": parameters.number("beta_slow", 1.0),
        "truncate": parameters.flag("truncate", True),
    }


def _yarn_scale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def _longrope(config: Config, parameters: Config, dim: int) -> Fields:
    original = _original_length(config, parameters)
    factor = parameters.number("factor", config.integer("max_position_embeddings") / original)
    inferred = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return {
        "original_length": original,
        "attention_factor": parameters.number("attention_factor", inferred),
        "short_factors": parameters.numbers("short_factor", dim // 2),
        "long_factors": parameters.numbers("long_factor", dim // 2),
    }


_FIELDS: Mapping[str, Callable[[Config, Config, int], Fields]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
