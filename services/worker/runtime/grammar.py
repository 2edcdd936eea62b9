"""Grammars over one vocabulary: compiled off the engine's thread, followed token by token, and asked what may come next.

A Guide's state is a pure function of (grammar, output), so a sequence goes on elsewhere by replaying its output. The library
lets other threads run while it compiles and while it fills masks. It knows nothing of sampling, of steps or of requests.
"""

import ctypes
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from shared.errors import InternalError, InvalidRequest, StartupError
from shared.grammars import LIMITS, Grammar
from shared.vocabulary.files import Tokens

# Compiled grammars that are kept for a next request with the same text: how many, and the length of their texts.
MAX_KEPT, MAX_KEPT_BYTES = 64, 2**20

# How llguidance stops where a text satisfies its grammar; any other way is a limit of its own.
_WHOLE = frozenset({"NotStopped", "NoExtension", "NoExtensionBias", "EndOfSentence"})

logger = logging.getLogger(__name__)


class GrammarFailed(Exception):
    """A sequence's grammar cannot be followed any further."""


class Guide:
    """Where one sequence is in its grammar. Used by one thread at a time.

    matcher: the compiled grammar, which stays as it is: it is copied for each sequence.
    """

    def __init__(self, matcher: Any, output: Sequence[int]):
        self._compiled = matcher
        self._matcher: Any = None
        self._pending = list(output)

    def push(self, token_id: int) -> None:
        """The output grew by this token."""
        self._pending.append(token_id)

    def pop(self) -> None:
        """Undoes the last push, if no mask was filled since."""
        self._pending.pop()

    def fill(self, address: int, num_bytes: int, drafts: Sequence[int] = ()) -> None:
        """Writes the mask of the next token at `address`, and behind it, for each draft, that of the token after it.

        Raises GrammarFailed. A draft that may not come is not accepted, so what may come after it does not matter.
        """
        if self._matcher is None:
            self._matcher = self._compiled.deep_copy()
        matcher = self._matcher
        if self._pending:
            matcher.consume_tokens(self._pending)
            self._pending.clear()
        _fill(matcher, address, num_bytes)
        if drafts:
            ahead = matcher.deep_copy()
            for draft in drafts:
                address += num_bytes
                if ahead is not None and ahead.try_consume_tokens([draft]):
                    _fill(ahead, address, num_bytes)
                else:
                    ahead = None
                    ctypes.memset(address, 0xFF, num_bytes)


def _fill(matcher: Any, address: int, num_bytes: int) -> None:
    matcher.unsafe_compute_mask_ptr(address, num_bytes)
    if matcher.is_error() or matcher.stop_reason() not in _WHOLE:
        logger.warning("a grammar cannot be followed", extra={"cause": matcher.get_error() or matcher.stop_reason()})
        raise GrammarFailed


class Grammars:
    """Compiles grammars for one model; any thread may ask. Its vocabulary is read when the first grammar comes.

    vocab_size: the width of the model's logits. eos_token_ids: what may come where a grammar is satisfied.
    """

    def __init__(self, read_tokens: Callable[[], Tokens], vocab_size: int, eos_token_ids: tuple[int, ...]):
        self._read_tokens = read_tokens
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._limits: Any = None
        self._kept: OrderedDict[Grammar, Any] = OrderedDict()

    def compile(self, grammar: Grammar) -> Any:
        """What a Guide follows. Takes as long as it takes; raises InvalidRequest for a grammar that cannot be followed."""
        with self._lock:
            if grammar in self._kept:
                self._kept.move_to_end(grammar)
                return self._kept[grammar]
            if self._tokenizer is None:
                self._load()
        # Imported where it is used: most workers never see a grammar.
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(self._tokenizer, grammar.for_llguidance(), log_level=0, limits=self._limits)
        except BaseException as error:
            # A panic of the library is no Exception, and must end this request alone.
            raise grammar.wrong(f"it cannot be compiled ({type(error).__name__})") from error
        if matcher.is_error():
            raise grammar.wrong(" ".join(matcher.get_error().split())[:300])
        with self._lock:
            self._kept[grammar] = matcher
            while len(self._kept) > MAX_KEPT or sum(len(each.source) for each in self._kept) > MAX_KEPT_BYTES:
                self._kept.popitem(last=False)
        return matcher

    def _load(self) -> None:
        from llguidance import LLParserLimits, LLTokenizer, TokenizerWrapper

        if not self._eos_token_ids:
            raise InvalidRequest("This model has no end-of-text token, so it cannot end where a grammar does.", param="grammar")
        try:
            tokens = self._read_tokens()
        except StartupError as error:
            logger.error("the model's vocabulary cannot be read: no grammar can be followed", extra={"cause": str(error)})
            raise InternalError("This worker cannot follow grammars; it has been logged.") from error
        size, eos = self._vocab_size, self._eos_token_ids
        known = list(tokens.token_bytes[:size])

        class Words(TokenizerWrapper):  # type: ignore[misc]
            def __init__(self) -> None:
                self.tokens = known + [b""] * (size - len(known))
                self.special_token_ids = sorted({*tokens.control_ids, *eos})
                self.eos_token_id, self.bos_token_id = eos[0], None
                self.is_tokenizer_wrapper = True

            def __call__(self, text: str) -> list[int]:
                return []

        self._tokenizer = LLTokenizer(Words(), eos_token=list(eos))
        self._limits = LLParserLimits(**LIMITS)
