"""Builds a decoder from a spec, asking the checkpoint for tensors by name.

Every size a tensor must have comes from the spec. It knows nothing of families, file formats or of running the model.
"""

from collections.abc import Mapping

from torch import Tensor

from kernels.step_ops import Norm, Place, Scores
from services.worker.backends.base import AttentionBackend
from services.worker.layers.attention import Attention
from services.worker.layers.linear import Embedding, Onto
from services.worker.layers.mlp import GatedMLP
from services.worker.layers.rope import RopeSpec, cos_sin_table
from services.worker.models.decoder import Block, Decoder
from services.worker.models.spec import LayerSpec, ModelSpec
from services.worker.weights.checkpoint import Weights

# Old checkpoints carry rotary frequencies; they follow from the config.
DERIVED = ("rotary_emb.inv_freq",)
HEAD = "lm_head"


def assemble(spec: ModelSpec, weights: Weights, backend: AttentionBackend, served: int) -> Decoder:
    """The decoder; sequences may be `served` tokens long. StartupError for tensors missing, mis-shaped or left over."""
    return _Assembly(spec, weights, backend, served).decoder()


class _Assembly:
    def __init__(self, spec: ModelSpec, weights: Weights, backend: AttentionBackend, served: int):
        self.spec = spec
        self.weights = weights
        self.backend = backend
        laws = {layer.rope for layer in spec.layers}
        self.tables: Mapping[RopeSpec, Tensor] = {law: cos_sin_table(law, served) for law in laws}

    def decoder(self) -> Decoder:
        spec, prefix = self.spec, self.spec.names.prefix
        table = self.weights.linear({f"{prefix}model.embed_tokens": spec.vocab_size}, spec.hidden_size)
        blocks = [self.block(f"{prefix}model.layers.{index}", layer) for index, layer in enumerate(spec.layers)]
        norm = self.norm(f"{prefix}model.norm")
        ignored = (*DERIVED, *spec.names.ignored)
        if spec.tied:
            head = table
            ignored += (f"{prefix}{HEAD}.weight",)  # some tied checkpoints store the same numbers twice
        else:
            head = self.weights.linear({f"{prefix}{HEAD}": spec.vocab_size}, spec.hidden_size)
        self.weights.finish(ignored)
        return Decoder(Embedding(table[0].weight, spec.embedding_scale), blocks, norm, head, spec.logit_softcap)

    def block(self, prefix: str, layer: LayerSpec) -> Block:
        names = self.spec.names
        return Block(
            self.norm(f"{prefix}.input_layernorm"),
            self.attention(prefix, layer),
            self.norm(f"{prefix}.{names.mlp_norm}"),
            self.mlp(prefix),
        )

    def attention(self, prefix: str, layer: LayerSpec) -> Attention:
        spec, place = self.spec, f"{prefix}.self_attn"
        queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        qkv = self.weights.linear(_shares(place, spec.names.qkv, (queries, keys, keys)), spec.hidden_size, bias=spec.qkv_bias)
        norms = (
            (self.norm(f"{place}.q_norm", spec.head_dim), self.norm(f"{place}.k_norm", spec.head_dim)) if spec.qk_norm else None
        )
        out = self.weights.linear({f"{place}.o_proj": spec.hidden_size}, queries, bias=spec.out_bias)
        heads = Place(spec.num_heads, spec.num_kv_heads, spec.head_dim, self.tables[layer.rope], norms)
        scores = Scores(spec.score_scale, layer.window, spec.score_softcap)
        return Attention(self.backend, qkv, heads, scores, Onto(out, self.after(prefix, spec.names.after_attention_norm)))

    def mlp(self, prefix: str) -> GatedMLP:
        spec, place = self.spec, f"{prefix}.mlp"
        inner = spec.intermediate_size
        shares = _shares(place, spec.names.gate_up, (inner, inner))
        gate_up = self.weights.linear(shares, spec.hidden_size, bias=spec.mlp_bias)
        down = self.weights.linear({f"{place}.down_proj": spec.hidden_size}, inner, bias=spec.mlp_bias)
        return GatedMLP(gate_up, spec.activation, Onto(down, self.after(prefix, spec.names.after_mlp_norm)))

    def after(self, prefix: str, norm: str | None) -> Norm | None:
        return None if norm is None else self.norm(f"{prefix}.{norm}")

    def norm(self, name: str, size: int | None = None) -> Norm:
        weight = self.weights.vector(f"{name}.weight", size or self.spec.hidden_size)
        return Norm(weight + self.spec.norm_offset, self.spec.norm_eps)


def _shares(place: str, names: tuple[str, ...], rows: tuple[int, ...]) -> dict[str, int]:
    """Module -> rows; a single name holds all of them."""
    shares = (sum(rows),) if len(names) == 1 else rows
    return {f"{place}.{name}": share for name, share in zip(names, shares, strict=True)}
