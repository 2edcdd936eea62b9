"""What the doors need of the plane below them, and nothing more; `plane.py` provides it, tests fake it.

It knows nothing of queues, workers or tokenizers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.router.auth import Identity
from services.router.generate import GenerateRequest, Generation
from services.router.limiter import Limiter
from services.router.store import Store
from services.router.tokenizer import Encoded
from services.router.validate import ModelLimits
from shared.pb import tokenizer_pb2, types_pb2


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model behind this router. `names`: all it answers to, the shown one first.

    `created` is in seconds since 1970. `max_model_len` counts tokens of prompt and output together; 0: not known yet.
    `kinds`: what it can do, of "generate", "embed", "score"; empty: not known yet.
    `fingerprint` names model files and arithmetic: equal fingerprints give equal tokens.
    """

    names: tuple[str, ...]
    created: int
    max_model_len: int
    fingerprint: str
    kinds: tuple[str, ...] = ("generate",)


class Vocabulary(Protocol):
    """What each token id stands for."""

    @property
    def special(self) -> frozenset[int]:
        """Ids that stand for no text."""
        ...

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes a token adds to the text; empty for an id beyond the vocabulary."""
        ...


class Starter(Protocol):
    """Starts and ends requests: `Generator` in generate.py."""

    async def start(self, request: GenerateRequest) -> Generation:
        """See Generator.start."""
        ...

    def check(self, request: GenerateRequest) -> ModelLimits:
        """See Generator.check."""
        ...

    async def encode(self, texts: Sequence[tokenizer_pb2.Text], max_tokens: int) -> list[Encoded]:
        """See Generator.encode."""
        ...

    async def num_prompt_tokens(self, request: GenerateRequest) -> int:
        """See Generator.num_prompt_tokens."""
        ...

    async def resume(self, rid: str, after: str, identity: Identity) -> tuple[Generation, types_pb2.Shape]:
        """See Generator.resume."""
        ...

    async def cancel(self, rid: str, tenant: str) -> bool:
        """See Generator.cancel."""
        ...


class Texts(Protocol):
    """The model's text side: `Tokenizers` in tokenizer.py."""

    async def describe(self) -> tokenizer_pb2.Description:
        """See Tokenizers.describe."""
        ...

    async def encode(self, request: tokenizer_pb2.EncodeRequest) -> list[list[int]]:
        """See Tokenizers.encode."""
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """See Tokenizers.detokenize."""
        ...

    async def tokens(self, token_ids: Sequence[int]) -> list[str]:
        """See Tokenizers.tokens."""
        ...


class Plane(Protocol):
    """Everything below the doors of one router process."""

    @property
    def generator(self) -> Starter:
        """The one path for requests."""
        ...

    @property
    def limiter(self) -> Limiter:
        """The rate limits of keys."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """Token bytes, for log-probabilities."""
        ...

    @property
    def texts(self) -> Texts:
        """Texts to ids and back, for those who ask for no more."""
        ...

    @property
    def model(self) -> ServedModel:
        """What is served now."""
        ...

    @property
    def store(self) -> Store:
        """Records that outlive this process."""
        ...

    @property
    def num_protocol_errors(self) -> int:
        """Calls to and from other services that ended because of what was said on them."""
        ...

    @property
    def num_refused_peers(self) -> int:
        """Calls of other services that their certificates are not for."""
        ...

    def not_ready(self) -> str | None:
        """Why a request would be refused now (no Redis, no tokenizer, no worker), or None. Must return at once."""
        ...

    async def close(self) -> None:
        """Ends what is left of open requests and every connection."""
        ...
