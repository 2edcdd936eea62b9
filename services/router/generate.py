"""The one path of every request that produces tokens: check, encode, put on the queue, and hand back what comes.

Doors import everything they need from here. It knows nothing of HTTP, gRPC doors or SSE.
"""

from services.router.choice import ChoiceEnd, EndReason, Event, TextDelta
from services.router.generation import CancelReason, Generation
from services.router.request import DEFAULT_BAND, GenerateRequest, Prompt

__all__ = [
    "DEFAULT_BAND",
    "CancelReason",
    "ChoiceEnd",
    "EndReason",
    "Event",
    "GenerateRequest",
    "Generation",
    "Generator",
    "Prompt",
    "TextDelta",
]


class Generator:
    """Starts requests."""

    async def start(self, request: GenerateRequest) -> Generation:
        """Accept one request: validate, render and encode, check lengths, put on the queue.

        Raises InvalidRequest (`param` named as the door calls it; code "context_length_exceeded" with the numbers),
        NotFound (code "model_not_found"), Unavailable (no worker, no Redis, no tokenizer, overloaded; within 2 s, with
        `retry_after_s`) or RateLimited. Nothing is left behind when it raises or is cancelled.
        """
        raise NotImplementedError

    async def cancel(self, rid: str, tenant: str) -> bool:
        """End a tenant's own request, wherever it runs; True if this call ended it, False if it had ended before.

        Raises NotFound for a rid the tenant does not have, Unavailable if the queue does not answer.
        """
        raise NotImplementedError
