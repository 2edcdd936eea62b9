"""BERT, RoBERTa and XLM-RoBERTa: how a config becomes an encoder's numbers, and which tensors it is made of.

They differ in their names' prefix, where positions begin, and in the head of a cross-encoder. It knows nothing of
batches or of how an encoder computes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kernels.weight import Weight
from services.worker.models.encoder import Encoder, EncoderLayer, Head, LayerNorm
from services.worker.models.spec import Config
from services.worker.weights.checkpoint import Weights
from shared.errors import StartupError

# What is trained beside the encoder, or follows from the config. A pooler is wanted by a head alone.
UNUSED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")
UNUSED_HEADS = ("cls.", "lm_head.")


@dataclass(frozen=True, slots=True)
class Family:
    """What an architecture's name says: the prefix its encoder's names may have, and whether a head scores pairs."""

    prefix: str
    scores: bool = False
    offset: bool = False  # positions begin after the padding token's id


ENCODERS: Mapping[str, Family] = {
    "BertModel": Family("bert."),
    "BertForMaskedLM": Family("bert."),
    "BertForSequenceClassification": Family("bert.", scores=True),
    "RobertaModel": Family("roberta.", offset=True),
    "RobertaForMaskedLM": Family("roberta.", offset=True),
    "RobertaForSequenceClassification": Family("roberta.", scores=True, offset=True),
    "XLMRobertaModel": Family("roberta.", offset=True),
    "XLMRobertaForMaskedLM": Family("roberta.", offset=True),
    "XLMRobertaForSequenceClassification": Family("roberta.", scores=True, offset=True),
}


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """An encoder's numbers. first_position: of a text's first token; sigmoid: what a head says is brought to 0..1."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_layers: int
    num_positions: int
    num_types: int
    norm_eps: float
    first_position: int
    scores: bool
    sigmoid: bool

    @property
    def context_length(self) -> int:
        """Most tokens of a text."""
        return self.num_positions - self.first_position


def encoder_spec(config: Config) -> EncoderSpec:
    """The numbers that a config gives. Raises StartupError for a field that is wrong, or that this encoder does not know."""
    name = config.values["architectures"][0]
    family = ENCODERS[name]
    for field, known in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if config.values.get(field) not in (None, known):
            config.wrong(field, repr(known))
    heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
    if hidden % heads:
        config.wrong("num_attention_heads", f"a divisor of the hidden size {hidden}")
    if family.scores and _num_labels(config) != 1:
        raise StartupError(f"{config.source}: a classifier of {_num_labels(config)} labels is not supported; one that scores is")
    # sentence-transformers' cross-encoders say so where theirs is another than the sigmoid; older ones in a field of their own.
    older = config.values.get("sbert_ce_default_activation_function")
    named = str(config.part("sentence_transformers").values.get("activation_fn", older))
    return EncoderSpec(
        architecture=name,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        num_heads=heads,
        num_layers=config.integer("num_hidden_layers"),
        num_positions=config.integer("max_position_embeddings"),
        num_types=config.integer("type_vocab_size", 2),
        norm_eps=config.number("layer_norm_eps", 1e-12),
        first_position=int(config.number("pad_token_id", 1)) + 1 if family.offset else 0,
        scores=family.scores,
        sigmoid=not named.endswith("Identity"),
    )


def _num_labels(config: Config) -> int:
    labels = config.values.get("id2label")
    return len(labels) if isinstance(labels, Mapping) else config.integer("num_labels", 2)


def assemble_encoder(spec: EncoderSpec, weights: Weights) -> Encoder:
    """The encoder. StartupError for tensors missing, mis-shaped or left over."""
    family = ENCODERS[spec.architecture]
    prefix = family.prefix if f"{family.prefix}embeddings.word_embeddings.weight" in weights.unused else ""
    return _Assembly(spec, weights, prefix, classifies=family.offset).encoder()


class _Assembly:
    """`classifies`: the head is RoBERTa's, of the classifier alone, not BERT's pooler and classifier."""

    def __init__(self, spec: EncoderSpec, weights: Weights, prefix: str, *, classifies: bool):
        self.spec = spec
        self.weights = weights
        self.prefix = prefix
        self.classifies = classifies

    def encoder(self) -> Encoder:
        spec, place = self.spec, f"{self.prefix}embeddings"

        def table(name: str, rows: int) -> Weight:
            return self.weights.linear({f"{place}.{name}": rows}, spec.hidden_size)[0].weight

        words, positions = table("word_embeddings", spec.vocab_size), table("position_embeddings", spec.num_positions)
        types = table("token_type_embeddings", spec.num_types)
        norm = self.norm(f"{place}.LayerNorm")
        layers = [self.layer(f"{self.prefix}encoder.layer.{index}") for index in range(spec.num_layers)]
        head = self.head() if spec.scores else None
        self.weights.finish((*(f"{self.prefix}{name}" for name in UNUSED), *UNUSED_HEADS))
        return Encoder(words, positions, types, norm, layers, spec.num_heads, spec.hidden_size // spec.num_heads, head)

    def layer(self, place: str) -> EncoderLayer:
        hidden, inner = self.spec.hidden_size, self.spec.intermediate_size
        qkv = {f"{place}.attention.self.{name}": hidden for name in ("query", "key", "value")}
        return EncoderLayer(
            self.weights.linear(qkv, hidden, bias=True),
            self.weights.linear({f"{place}.attention.output.dense": hidden}, hidden, bias=True),
            self.norm(f"{place}.attention.output.LayerNorm"),
            self.weights.linear({f"{place}.intermediate.dense": inner}, hidden, bias=True),
            self.weights.linear({f"{place}.output.dense": hidden}, inner, bias=True),
            self.norm(f"{place}.output.LayerNorm"),
        )

    def head(self) -> Head:
        dense = "classifier.dense" if self.classifies else f"{self.prefix}pooler.dense"
        out = "classifier.out_proj" if self.classifies else "classifier"
        hidden = self.spec.hidden_size
        return Head(self.weights.linear({dense: hidden}, hidden, bias=True), self.weights.linear({out: 1}, hidden, bias=True))

    def norm(self, name: str) -> LayerNorm:
        size = self.spec.hidden_size
        return LayerNorm(
            self.weights.vector(f"{name}.weight", size), self.weights.vector(f"{name}.bias", size), self.spec.norm_eps
        )
