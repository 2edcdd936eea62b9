"""Builds a decoder from a spec, asking the checkpoint for tensors by name.

Every size a tensor must have comes from the spec. It knows nothing of families, file formats or of running the model.
"""

from collections.abc import Mapping

from torch import Tensor

from kernels import Ops
from services.worker.backends.base import AttentionBackend, Scores
from services.worker.layers.attention import Attention, Heads, NormedRotated, Rotated
from services.worker.layers.linear import Layer
from services.worker.layers.mlp import GatedMLP
from services.worker.layers.norm import RMSNorm, Then
from services.worker.layers.rope import RopeSpec, cos_sin_table
from services.worker.models.decoder import Block, Decoder
from services.worker.models.spec import LayerSpec, ModelSpec
from services.worker.weights.checkpoint import Weights

# Old checkpoints carry rotary frequencies; they follow from the config.
DERIVED = ("rotary_emb.inv_freq",)
HEAD = "lm_head"


def assemble(spec: ModelSpec, weights: Weights, ops: Ops, backend: AttentionBackend, served: int) -> Decoder:
    """The decoder; sequences may be `served` tokens long. StartupError for tensors missing, mis-shaped or left over."""
    return _Assembly(spec, weights, ops, backend, served).decoder()


class _Assembly:
    def __init__(self, spec: ModelSpec, weights: Weights, ops: Ops, backend: AttentionBackend, served: int):
        self.spec = spec
        self.weights = weights
        self.ops = ops
        self.backend = backend
        laws = {layer.rope for layer in spec.layers}
        self.tables: Mapping[RopeSpec, Tensor] = {law: cos_sin_table(law, served) for law in laws}

    def decoder(self) -> Decoder:
        spec, prefix = self.spec, self.spec.names.prefix
        table = self.weights.weight(f"{prefix}model.embed_tokens.weight", spec.vocab_size, spec.hidden_size)
        blocks = [self.block(f"{prefix}model.layers.{index}", layer) for index, layer in enumerate(spec.layers)]
        norm = self.norm(f"{prefix}model.norm")
        ignored = (*DERIVED, *spec.names.ignored)
        if spec.tied:
            head: Layer = table.linear(self.ops)
            ignored += (f"{prefix}{HEAD}.weight",)  # some tied checkpoints store the same numbers twice
        else:
            head = self.weights.linear({f"{prefix}{HEAD}": spec.vocab_size}, spec.hidden_size)
        self.weights.finish(ignored)
        embedding = table.embedding(self.ops, spec.embedding_scale)
        return Decoder(self.backend, embedding, blocks, norm, head, spec.logit_softcap)

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
        rotated: Rotated | NormedRotated = Rotated(self.ops, self.tables[layer.rope])
        if spec.qk_norm:
            norms = [self.norm(f"{place}.{name}", spec.head_dim) for name in ("q_norm", "k_norm")]
            rotated = NormedRotated(norms[0], norms[1], Rotated(self.ops, self.tables[layer.rope]))
        out = self.weights.linear({f"{place}.o_proj": spec.hidden_size}, queries, bias=spec.out_bias)
        heads = Heads(spec.num_heads, spec.num_kv_heads, spec.head_dim)
        scores = Scores(spec.score_scale, layer.window, spec.score_softcap)
        return Attention(self.backend, heads, scores, qkv, rotated, self.followed(out, prefix, spec.names.after_attention_norm))

    def mlp(self, prefix: str) -> Layer:
        spec, place = self.spec, f"{prefix}.mlp"
        inner = spec.intermediate_size
        shares = _shares(place, spec.names.gate_up, (inner, inner))
        gate_up = self.weights.linear(shares, spec.hidden_size, bias=spec.mlp_bias)
        down = self.weights.linear({f"{place}.down_proj": spec.hidden_size}, inner, bias=spec.mlp_bias)
        activate = {"silu": self.ops.silu_mul, "gelu": self.ops.gelu_mul}[spec.activation]
        return self.followed(GatedMLP(gate_up, activate, down), prefix, spec.names.after_mlp_norm)

    def followed(self, layer: Layer, prefix: str, norm: str | None) -> Layer:
        return layer if norm is None else Then(layer, self.norm(f"{prefix}.{norm}"))

    def norm(self, name: str, size: int | None = None) -> RMSNorm:
        weight = self.weights.vector(f"{name}.weight", size or self.spec.hidden_size)
        return RMSNorm(self.ops, weight + self.spec.norm_offset, self.spec.norm_eps)


def _shares(place: str, names: tuple[str, ...], rows: tuple[int, ...]) -> dict[str, int]:
    """Module -> rows; a single name holds all of them."""
    shares = (sum(rows),) if len(names) == 1 else rows
    return {f"{place}.{name}": share for name, share in zip(names, shares, strict=True)}
