"""The workers of this model as the registry tells it, and what they can take. It knows nothing of what they run now."""

from collections.abc import Mapping
from typing import Any

from services.router.validate import ModelLimits
from shared.errors import Unavailable
from shared.queue.registry import Registry


class Workers:
    """Who serves `model`; `refresh` now and then."""

    def __init__(self, registry: Registry, model: str):
        self._registry = registry
        self._model = model
        self._facts: list[Mapping[str, Any]] = []

    async def refresh(self) -> None:
        """Asks the registry. Raises Unavailable if Redis cannot be asked; then what was known stays known."""
        found = await self._registry.workers()
        self._facts = [worker.facts for worker in found if worker.facts["model"] == self._model]

    @property
    def any(self) -> bool:
        """Whether there is a worker."""
        return bool(self._facts)

    @property
    def fingerprint(self) -> str:
        """What the workers' numbers depend on besides the request; empty if there is none."""
        return str(self._facts[0]["fingerprint"]) if self._facts else ""

    @property
    def fingerprints(self) -> frozenset[str]:
        """Those of all workers."""
        return frozenset(str(facts["fingerprint"]) for facts in self._facts)

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and output that every worker can take; 0 if there is none."""
        return min((int(facts["max_model_len"]) for facts in self._facts), default=0)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the model can do; empty if there is no worker. Those of a release before vectors say nothing of it."""
        return tuple(self._facts[0].get("kinds", ("generate",))) if self._facts else ()

    def limits(self) -> ModelLimits:
        """What bounds a request. Raises Unavailable if there is no worker."""
        if not self._facts:
            raise Unavailable("No worker is running; try again.", code="no_worker", retry_after_s=2.0)
        vocab_size = min(int(facts["vocab_size"]) for facts in self._facts)
        one = self._facts[0]
        size, pooling = int(one.get("vector_size", 0)), str(one.get("pooling", "last"))
        return ModelLimits(self.max_model_len, vocab_size, self.kinds, size, pooling)
