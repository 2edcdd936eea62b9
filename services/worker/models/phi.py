"""Phi-3: Llama with projections stored fused, partial rotation, and LongRoPE. It knows nothing of tensors."""

from services.worker.models.llama import dense
from services.worker.models.rope import rope_parameters, rope_spec
from services.worker.models.spec import Config, LayerSpec, ModelSpec, TensorNames


def phi3(config: Config) -> ModelSpec:
    """Phi3ForCausalLM. Early configs call their LongRoPE "yarn"."""
    config = config.over({"rms_norm_eps": 1e-5})
    parameters = rope_parameters(config)
    if (parameters.values.get("rope_type") or parameters.values.get("type")) == "yarn":
        parameters = parameters.with_value("rope_type", "longrope")
        config = config.with_value("rope_parameters", parameters.values)
    layer = LayerSpec(int(config.optional("sliding_window")), rope_spec(config, parameters))
    names = TensorNames(qkv=("qkv_proj",), gate_up=("gate_up_proj",))
    return dense(config, layers=(layer,) * config.integer("num_hidden_layers"), names=names)
