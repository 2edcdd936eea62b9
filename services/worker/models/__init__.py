"""From a path to a model that runs: the tables of architectures (encoders have theirs in bert.py), and build.

To add a model: a file beside llama.py that turns a config into a ModelSpec, a row here, a row in the logits test, and
for GGUF a row in weights/gguf_config.py. It knows nothing of batches, sampling or memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kernels import Ops
from kernels.build import Library
from kernels.matmul.layout import layout_version
from kernels.recorder_fast import can_be_fast, repacked
from services.worker.backends.paged import PagedBackend
from services.worker.models.assemble import assemble
from services.worker.models.bert import ENCODERS, EncoderSpec, assemble_encoder, encoder_spec
from services.worker.models.decoder import Decoder
from services.worker.models.encoder import Encoder
from services.worker.models.gemma import gemma2, gemma3, gemma3_with_vision
from services.worker.models.llama import llama
from services.worker.models.mistral import mistral
from services.worker.models.phi import phi3
from services.worker.models.qwen import qwen2, qwen3
from services.worker.models.sentence import max_tokens_of, pooling_of
from services.worker.models.spec import Config, ModelSpec
from services.worker.weights import open_checkpoint
from services.worker.weights.checkpoint import Checkpoint, Progress, Weights
from services.worker.weights.repacked import Repacked
from shared.errors import StartupError

ARCHITECTURES: Mapping[str, Callable[[Config], ModelSpec]] = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": mistral,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "Gemma2ForCausalLM": gemma2,
    "Gemma3ForCausalLM": gemma3,
    "Gemma3ForConditionalGeneration": gemma3_with_vision,
    "Phi3ForCausalLM": phi3,
}


@dataclass(frozen=True, slots=True)
class Model:
    """A model with its weights. All layers have spec.num_kv_heads heads of spec.head_dim in the KV cache.

    `numerics` is this model's part of the numerics fingerprint: two models with the same text, run by the same kernels
    over the same kind of cache, give the same logits.
    """

    spec: ModelSpec
    decoder: Decoder
    max_model_len: int  # the longest sequence, in tokens
    eos_token_ids: tuple[int, ...]
    num_bytes: int  # of weights, as stored
    formats: tuple[str, ...]  # of the tensors in use, sorted
    numerics: str
    ops: Ops
    compute: str  # "fast": weights are repacked and run by fast bodies; "exact"
    pooling: str  # which hidden states an embedding is made of, where nobody says

    @property
    def num_layers(self) -> int:
        return len(self.spec.layers)


@dataclass(frozen=True, slots=True)
class EncoderModel:
    """An encoder with its weights; `numerics` as in Model, pooling which hidden states an embedding is made of."""

    spec: EncoderSpec
    encoder: Encoder
    max_model_len: int
    num_bytes: int
    formats: tuple[str, ...]
    numerics: str
    ops: Ops
    pooling: str


def is_encoder(path: Path) -> bool:
    """Whether the model at `path` reads texts whole and writes none. StartupError as for build."""
    named = open_checkpoint(path).config.get("architectures")
    return isinstance(named, list) and len(named) == 1 and named[0] in ENCODERS


def build_encoder(path: Path, ops: Ops, progress: Progress | None = None, max_model_len: int | None = None) -> EncoderModel:
    """Reads the encoder at `path`; arguments and errors as for build. It is always computed exactly."""
    checkpoint = open_checkpoint(path)
    spec = encoder_spec(Config(checkpoint.config_source, checkpoint.config))
    most = max_tokens_of(path, spec.context_length)
    served = _served(path, max_model_len, most)
    weights = Weights(checkpoint, progress)
    encoder = assemble_encoder(spec, weights)
    formats = tuple(sorted(weights.formats))
    numerics = f"{checkpoint.revision} {'+'.join(formats)}"
    return EncoderModel(spec, encoder, served, weights.num_bytes, formats, numerics, ops, pooling_of(path, "mean"))


def _served(path: Path, asked: int | None, most: int) -> int:
    served = asked or most
    if served > most:
        raise StartupError(f"max-model-len {served} exceeds the {most} tokens of {path}; lower it")
    return served


def build(
    path: Path,
    ops: Ops,
    progress: Progress | None = None,
    max_model_len: int | None = None,
    compute: str = "exact",
    cache_dir: Path | None = None,
) -> Model:
    """Reads the model at `path`; sequences will be at most max_model_len tokens (None: all the model allows).

    compute "fast" is had where the ops have fast bodies for the model, "exact" elsewhere: the result says which.
    progress(bytes read, bytes in all) is called for every tensor. Weights whose repacking takes long are kept in cache_dir.
    StartupError names the file and the fault.
    """
    checkpoint = open_checkpoint(path)
    spec = spec_of(checkpoint)
    served = _served(path, max_model_len, spec.context_length)
    fast = compute == "fast" and can_be_fast(ops.library, spec.head_dim)
    weights = Weights(checkpoint, progress, _tiles(checkpoint, ops.library, cache_dir) if fast else None)
    decoder = assemble(spec, weights, PagedBackend(), served)
    formats = tuple(sorted(weights.formats))
    numerics = f"{checkpoint.revision} {'+'.join(formats)}"
    if any(layer.rope.depends_on_length() for layer in spec.layers):
        numerics += f" length {served}"
    return Model(
        spec,
        decoder,
        served,
        checkpoint.eos_token_ids,
        weights.num_bytes,
        formats,
        numerics,
        ops,
        "fast" if fast else "exact",
        pooling_of(path, "last"),
    )


def _tiles(checkpoint: Checkpoint, library: Library | None, cache_dir: Path | None) -> Repacked:
    file = None
    if cache_dir is not None and library is not None:
        file = cache_dir / f"{checkpoint.revision[:32]}-{library.variant}-{layout_version()}.tiles"
    return Repacked(partial(repacked, library), file)


def spec_of(checkpoint: Checkpoint) -> ModelSpec:
    """The numbers of the model in `checkpoint`. StartupError for an unknown architecture or a field that is wrong."""
    config = Config(checkpoint.config_source, checkpoint.config)
    named = config.values.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        config.wrong("architectures", "a list of one name")
    if named[0] not in ARCHITECTURES:
        raise StartupError(
            f"{config.source}: unknown architecture '{named[0]}'; those supported: {', '.join((*ARCHITECTURES, *ENCODERS))}"
        )
    return ARCHITECTURES[named[0]](config)
