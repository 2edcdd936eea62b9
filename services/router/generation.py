"""One accepted request as its client sees it: text in order, ends, an error, a cancel.

It knows nothing of HTTP or gRPC, nor of which worker computes.
"""

from collections.abc import AsyncIterator
from typing import Literal

import msgspec

from shared.pb import types_pb2

EndReason = Literal["stop", "length"]
CancelReason = Literal["client", "disconnect"]


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """New text of one choice, and the tokens whose text has wholly been given with it.

    `token_ids` and `num_tokens` (all given so far in this choice) may lag behind `text` by a token whose text is partly
    held back. `logprobs` has one row per entry of `token_ids`, or is None if none were asked for. `position` is the
    event id to resume after: `rid:i0.i1…:h`. With `echo`, the first delta of a choice is the prompt's text, without tokens.
    """

    choice: int
    text: str
    token_ids: list[int]
    num_tokens: int
    logprobs: types_pb2.Logprobs | None
    position: str


class ChoiceEnd(msgspec.Struct, frozen=True, gc=False):
    """One choice ended, after its last TextDelta; `num_tokens` are its output tokens, the stop token included.

    With reason "stop", at most one of `stop_string` and `stop_token_id` says what ended it.
    """

    choice: int
    reason: EndReason
    num_tokens: int
    stop_string: str | None
    stop_token_id: int | None
    position: str


Event = TextDelta | ChoiceEnd


class Generation:
    """One accepted request. Exactly one task may iterate `events()`; `cancel` may be called from any, any number of times.

    `created` is in seconds since 1970. `prompt_logprobs` (rows for the prompt's tokens from the second on) is there
    before the first event if it was asked for. Whoever iterates must either exhaust `events()` or call `cancel`.
    """

    rid: str
    model: str
    created: int
    prompt_token_ids: list[int]
    prompt_logprobs: types_pb2.Logprobs | None

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt as rendered."""
        raise NotImplementedError

    @property
    def position(self) -> str:
        """Event id before anything was given: `rid:0.0…:h`; later events carry their own."""
        raise NotImplementedError

    @property
    def usage(self) -> types_pb2.Usage:
        """What it cost so far; final once `events()` ended. Output counts what the client was given."""
        raise NotImplementedError

    def events(self) -> AsyncIterator[list[Event]]:
        """Everything that happened since the last list, coalesced: at most one TextDelta per choice and list.

        Ends after every choice's ChoiceEnd. Raises RoadtrainError if the request failed: DeadlineExceeded, Quarantined,
        InternalError, Unavailable, or InvalidRequest (code "request_cancelled") if its client ended it elsewhere.
        Coming back for more tells that the last list was written: a slow caller is buffered for, then paused,
        then cancelled after 60 s.
        """
        raise NotImplementedError

    async def cancel(self, why: CancelReason) -> bool:
        """End it now; True if this call ended it. "disconnect": nobody listens. "client": it was asked for, and is final.

        "disconnect" returns at once and never raises. "client" returns when the queue has confirmed it, and raises
        Unavailable if that takes longer than 2 s (it is retried until it is through).
        """
        raise NotImplementedError
