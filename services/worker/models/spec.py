"""ModelSpec: all the numbers a decoder is built from, and how they are read from a config.

A config is the mapping of a Hugging Face config.json (GGUF metadata arrive in the same words). Every reader raises
StartupError naming the file and the field. It knows nothing of tensors or files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from services.worker.layers.rope import RopeSpec
from shared.errors import StartupError


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What may differ between the layers of one model. window: tokens a query sees, itself included; 0: all."""

    window: int
    rope: RopeSpec


@dataclass(frozen=True, slots=True)
class TensorNames:
    """The modules of a layer whose names differ between families, relative to the layer or to its attention or MLP."""

    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")  # one name: stored fused
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    mlp_norm: str = "post_attention_layernorm"
    after_attention_norm: str | None = None  # before the residual is added; None: there is none
    after_mlp_norm: str | None = None
    prefix: str = ""  # before every name
    ignored: tuple[str, ...] = ()  # beginnings and ends of names the decoder has no use for


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One decoder. Sizes in elements, context_length in tokens."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    norm_eps: float
    norm_offset: float  # what is added to every norm weight as stored
    layers: tuple[LayerSpec, ...]
    activation: str  # "silu" or "gelu" (tanh form)
    score_scale: float
    score_softcap: float  # 0: none
    logit_softcap: float  # 0: none
    embedding_scale: float
    qk_norm: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    tied: bool
    names: TensorNames


@dataclass(frozen=True, slots=True)
class Config:
    """A config with typed answers; `source` is the file named in errors."""

    source: str
    values: Mapping[str, Any]

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number above 0."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.wrong(key, "a whole number above 0")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number of at least 0."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            self.wrong(key, "a number of at least 0")
        return float(value)

    def optional(self, key: str, default: float | None = None) -> float:
        """A number of at least 0; 0 for null."""
        return 0.0 if self.values.get(key, default) is None else self.number(key, default)

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            self.wrong(key, "true or false")
        return value

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of `count` numbers above 0."""
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) != count or not all(isinstance(x, int | float) and x > 0 for x in value):
            self.wrong(key, f"a list of {count} numbers above 0")
        return tuple(float(x) for x in value)

    def part(self, key: str) -> "Config":
        """The mapping at `key`, empty if there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, Mapping):
            self.wrong(key, "an object")
        return Config(self.source, value or {})

    def over(self, defaults: Mapping[str, Any]) -> "Config":
        """This config, with `defaults` where it says nothing."""
        return Config(self.source, {**defaults, **self.values})

    def with_value(self, key: str, value: Any) -> "Config":
        """This config, saying `value` at `key`."""
        return Config(self.source, {**self.values, key: value})

    def wrong(self, key: str, wanted: str) -> NoReturn:
        found = f"is {str(self.values[key])[:60]!r}" if self.values.get(key) is not None else "is missing"
        raise StartupError(f"{self.source}: '{key}' {found}; it must be {wanted}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value
