"""The Runner that computes: batch, forward, sample, on one device. See engine/step.py for the contract.

Tokens depend on the request alone where the ops do not let rows see each other (kernels.Ops says which do not).
It knows nothing of requests, of time or of why a step was put together.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence

import torch

from kernels.step_ops import KVCache
from services.worker.engine.step import BLOCK_SIZE, Row, RunnerLimits, Start, Step, StepResult
from services.worker.models import Model
from services.worker.runtime.forward import Forward, forwarding
from services.worker.runtime.grammar import Grammars
from services.worker.runtime.in_place import Capacity
from services.worker.runtime.kv_cache import KVShape, allocate
from services.worker.runtime.masks import Masks
from services.worker.runtime.numerics import release
from services.worker.runtime.pooling import Pooler
from services.worker.runtime.sampler import Sampler
from shared.errors import InvalidRequest, StartupError
from shared.sampling import SamplingParams
from shared.vocabulary.files import Tokens

PROBE_TOKENS = 128

# Of the KV cache, where nobody asks for another. What int8 costs in accuracy, and gives: docs/performance.md, "KV cache".
KV_DTYPE = {"fast": "int8", "exact": "float32"}
EXACT_DTYPES = ("float16", "float32")  # fast kernels know every one of DTYPES


def shape_of(model: Model, kv_dtype: str) -> KVShape:
    """What a token of `model` takes in the KV cache. StartupError if its kernels do not know kv_dtype."""
    if kv_dtype not in EXACT_DTYPES and model.compute == "exact":
        raise StartupError(
            f"kv-dtype {kv_dtype} is for fast kernels, and this model is computed exact: set --compute fast where the processor "
            f"has them, else --kv-dtype {' or '.join(EXACT_DTYPES)}"
        )
    return KVShape(model.num_layers, model.spec.num_kv_heads, model.spec.head_dim, kv_dtype)


def fingerprint(model: Model, kv_dtype: str) -> str:
    """All that the numbers depend on besides the request (DESIGN 1.4): runs that agree in it give the same tokens."""
    return f"{model.numerics} {model.compute} kv-{kv_dtype} {model.ops.variant} {release()} tp1"


class ModelRunner:
    """A model with its KV cache. Build it anywhere; `run` belongs to one thread, whose compute threads it sets.

    read_tokens gives the vocabulary that grammars are followed over; without it none can be.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_blocks: int,
        kv_dtype: str,
        max_num_seqs: int,
        max_step_tokens: int,
        num_threads: int | None,
        device: str,
        read_tokens: Callable[[], Tokens] | None = None,
    ):
        self.limits = RunnerLimits(
            num_blocks=num_blocks,
            max_model_len=model.max_model_len,
            vocab_size=model.spec.vocab_size,
            eos_token_ids=model.eos_token_ids,
            fingerprint=fingerprint(model, kv_dtype),
            kinds=("generate", "embed"),
            vector_size=model.spec.hidden_size,
            pooling=model.pooling,
        )
        kv: Sequence[KVCache] = allocate(shape_of(model, kv_dtype), num_blocks, device)
        capacity = Capacity(max_step_tokens, max_num_seqs, -(-model.max_model_len // BLOCK_SIZE) + 1)
        self.forward: Forward | None = forwarding(model, kv, capacity, device)
        num_cores = len(os.sched_getaffinity(0))
        masks = Masks(beside=device != "cpu" or (num_threads or num_cores) < num_cores)
        self._sampler = Sampler(model.ops, model.eos_token_ids, model.spec.vocab_size, device, masks)
        self._grammars = Grammars(read_tokens, model.spec.vocab_size, model.eos_token_ids) if read_tokens is not None else None
        self._pooler = Pooler(model.ops, model.decoder.norm)
        self._num_threads = num_threads
        self._thread = 0

    def run(self, step: Step) -> StepResult:
        """Computes one step."""
        if self._thread != threading.get_ident():
            # OpenMP keeps the number per calling thread.
            self._thread = threading.get_ident()
            if self._num_threads is not None:
                torch.set_num_threads(self._num_threads)
        self._sampler.begin(step)
        if self.forward is None:
            raise RuntimeError("the runner was closed")
        self._pooler.update(step)
        results = self._sampler.sample(step.rows, self.forward(step.rows))
        self._pooler.pool(step.rows, results, self.forward.states)
        return StepResult(results)

    def prepare(self, params: SamplingParams) -> object:
        """The compiled grammar, if there is one."""
        if params.grammar is None:
            return None
        if self._grammars is None:
            raise InvalidRequest("This worker knows no vocabulary, so it follows no grammar.", param="grammar")
        return self._grammars.compile(params.grammar)

    def close(self) -> None:
        """Frees the KV cache."""
        self._sampler.close()
        self.forward = None


def probe(runner: ModelRunner, max_step_tokens: int) -> float:
    """Seconds that a step of max_step_tokens takes, from a shorter one that also shows that the model computes numbers.

    For a runner that no engine uses yet. Raises StartupError if the model's output is not a number.
    """
    num_tokens = min(PROBE_TOKENS, max_step_tokens, runner.limits.max_model_len - 1)
    prompt = [index % runner.limits.vocab_size for index in range(num_tokens)]
    blocks = range(-(-num_tokens // BLOCK_SIZE))
    start = Start(0, 0, SamplingParams(temperature=0.0, seed=0, max_tokens=1), prompt, ())
    started_at = time.monotonic()
    result = runner.run(Step([Row(0, 0, prompt, blocks, sample=True)], [start]))
    took_s = time.monotonic() - started_at
    if result.rows[0].error is not None:
        raise StartupError(f"the model does not work: {result.rows[0].error}; are its files whole?")
    runner.run(Step([Row(1, 0, prompt[:1], blocks[:1], sample=False)], ends=[0]))
    return took_s * max_step_tokens / num_tokens
