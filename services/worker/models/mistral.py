"""Mistral: Llama with a sliding window over all layers. It knows nothing of tensors."""

from services.worker.models.llama import dense
from services.worker.models.rope import rope_parameters, rope_spec
from services.worker.models.spec import Config, LayerSpec, ModelSpec


def mistral(config: Config) -> ModelSpec:
    """MistralForCausalLM; a window of null means none, no entry means the 4096 of the first release."""
    config = config.over({"sliding_window": 4096, "num_key_value_heads": 8})
    layer = LayerSpec(int(config.optional("sliding_window")), rope_spec(config, rope_parameters(config)))
    return dense(config, layers=(layer,) * config.integer("num_hidden_layers"))
