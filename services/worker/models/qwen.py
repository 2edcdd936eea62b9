"""Qwen 2, 2.5 and 3, dense: biased projections in the second, normalised heads in the third. It knows nothing of tensors."""

from services.worker.models.llama import dense, windows
from services.worker.models.rope import rope_parameters, rope_spec
from services.worker.models.spec import Config, LayerSpec, ModelSpec


def qwen2(config: Config) -> ModelSpec:
    """Qwen2ForCausalLM, also Qwen 2.5."""
    return dense(config, qkv_bias=True, layers=_layers(config))


def qwen3(config: Config) -> ModelSpec:
    """Qwen3ForCausalLM."""
    config = config.over({"head_dim": 128})
    bias = config.flag("attention_bias", False)
    return dense(config, qkv_bias=bias, out_bias=bias, qk_norm=True, layers=_layers(config))


def _layers(config: Config) -> tuple[LayerSpec, ...]:
    """A window only where `use_sliding_window` is set, then on the layers from `max_window_layers` on."""
    count, first = config.integer("num_hidden_layers"), int(config.number("max_window_layers", 28))
    window = int(config.optional("sliding_window", 4096)) if config.flag("use_sliding_window", False) else 0
    default = ["sliding_attention" if window and index >= first else "full_attention" for index in range(count)]
    rope = rope_spec(config, rope_parameters(config))
    return tuple(LayerSpec(size, rope) for size in windows(config, default, window))
