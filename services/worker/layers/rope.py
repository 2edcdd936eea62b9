"""Rotary frequencies: one function per law, and the table of cosines and sines a model is served with.

A law gives inverse frequencies [R / 2] and a factor on cosines and sines. Laws that depend on the length in other
programs (longrope, dynamic) depend here on `served`, the longest sequence this worker takes: a token's numbers must
not change while its sequence grows, or with the sequences beside it. It knows nothing of models' config files.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Frequencies = tuple[Tensor, float]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """A law and its numbers; lengths in tokens. Fields beyond the first three are used by the laws that name them."""

    law: str  # a key of LAWS
    base: float
    dim: int  # R, elements of each head that turn
    factor: float = 1.0  # linear, dynamic, llama3, yarn: how far the context was stretched
    original_length: int = 0  # dynamic, llama3, yarn, longrope: context before stretching
    attention_factor: float = 1.0  # yarn, longrope: on cosines and sines
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn
    short_factors: tuple[float, ...] = ()  # longrope, [R / 2]: served length up to the original
    long_factors: tuple[float, ...] = ()  # longrope, [R / 2]: served length above it

    def depends_on_length(self) -> bool:
        """Whether another served length might give other numbers."""
        return self.law == "dynamic" or (self.law == "longrope" and self.short_factors != self.long_factors)


def _powers(base: float, dim: int) -> Tensor:
    return base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def default(spec: RopeSpec, served: int) -> Frequencies:
    """base^(-2i/R) (Su et al. 2021)."""
    return 1.0 / _powers(spec.base, spec.dim), 1.0


def linear(spec: RopeSpec, served: int) -> Frequencies:
    """Positions divided by a factor (Chen et al. 2023)."""
    return default(spec, served)[0] / spec.factor, 1.0


def dynamic(spec: RopeSpec, served: int) -> Frequencies:
    """NTK-aware: a larger base once the served length exceeds the original."""
    length = max(served, spec.original_length)
    stretch = spec.factor * length / spec.original_length - (spec.factor - 1)
    return 1.0 / _powers(spec.base * stretch ** (spec.dim / (spec.dim - 2)), spec.dim), 1.0


def llama3(spec: RopeSpec, served: int) -> Frequencies:
    """Long waves divided by the factor, short ones kept, a linear blend between (Llama 3.1)."""
    plain = default(spec, served)[0]
    waves = 2 * math.pi / plain
    low, high = spec.low_freq_factor, spec.high_freq_factor
    blend = ((spec.original_length / waves - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * plain / spec.factor + blend * plain, 1.0


def yarn(spec: RopeSpec, served: int) -> Frequencies:
    """Dimensions that turn often are kept, those that turn seldom divided, a ramp between (Peng et al. 2023)."""

    def dimension(rotations: float) -> float:
        waves = spec.original_length / (rotations * 2 * math.pi)
        return spec.dim * math.log(waves) / (2 * math.log(spec.base))

    low, high = dimension(spec.beta_fast), dimension(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.dim - 1)
    ramp = (torch.arange(spec.dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    stretched = ramp.clamp(0, 1)
    plain = default(spec, served)[0]
    return plain / spec.factor * stretched + plain * (1 - stretched), spec.attention_factor


def longrope(spec: RopeSpec, served: int) -> Frequencies:
    """Every dimension divided by a factor of its own (Ding et al. 2024; also the rope_freqs of a GGUF file)."""
    factors = spec.long_factors if served > spec.original_length else spec.short_factors
    return 1.0 / (torch.tensor(factors, dtype=torch.float32) * _powers(spec.base, spec.dim)), spec.attention_factor


LAWS: Mapping[str, Callable[[RopeSpec, int], Frequencies]] = {
    "default": default,
    "linear": linear,
    "dynamic": dynamic,
    "llama3": llama3,
    "yarn": yarn,
    "longrope": longrope,
}


def cos_sin_table(spec: RopeSpec, served: int) -> Tensor:
    """float32 [served, R]: row p the R / 2 cosines, then the R / 2 sines, of position p."""
    inverse, scale = LAWS[spec.law](spec, served)
    angles = torch.outer(torch.arange(served, dtype=torch.float32), inverse)
    return torch.cat([angles.cos(), angles.sin()], dim=-1) * scale
