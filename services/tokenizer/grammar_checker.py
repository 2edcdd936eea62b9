"""Judges grammars in a process of its own: a grammar comes from anywhere, and may take for ever to compile.

Started by path, isolated (python -I), with nothing of ours imported. It reads messages from standard input and answers on
standard output: four bytes of length, then JSON. First the vocabulary, {"tokens" (as Latin-1), "control_ids", "eos_token_ids",
"limits"}, answered by {}; then grammars in llguidance's form, {"grammar"}, answered by {} or {"error"}. The system kills it
when one takes more than CPU_LIMIT_S of processor time; memory and stack are bounded too, less than a worker has. It ends when
standard input does. It knows nothing of what grammars are for.
"""

import json
import resource
import signal
import struct
import sys
import threading
from typing import IO, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

CPU_LIMIT_S = 1.0
MEMORY_LIMIT_BYTES = 1024 * 2**20
STACK_BYTES = 2 * 2**20
MAX_ERROR_CHARS = 300

_LENGTH = struct.Struct("<I")


class Words(TokenizerWrapper):
    """A vocabulary as llguidance takes it."""

    def __init__(self, tokens: list[bytes], control_ids: list[int], eos_token_ids: list[int]):
        self.tokens = tokens
        self.special_token_ids = control_ids
        self.eos_token_id, self.bos_token_id = eos_token_ids[0], None
        self.is_tokenizer_wrapper = True

    def __call__(self, text: str) -> list[int]:
        """Never needed: no text is forced on the model (shared/grammars.py)."""
        return []


class Checker:
    """One vocabulary and its limits."""

    def __init__(self, message: dict[str, Any]):
        tokens = [token.encode("latin-1") for token in message["tokens"]]
        words = Words(tokens, message["control_ids"], message["eos_token_ids"])
        self._tokenizer = LLTokenizer(words, eos_token=message["eos_token_ids"])
        self._limits = LLParserLimits(**message["limits"])

    def fault_of(self, grammar: str) -> str | None:
        """What is wrong with a grammar: it does not compile, or nothing could ever come first."""
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if not matcher.is_error():
            return None
        return " ".join(matcher.get_error().split()).removesuffix("<non-verbose/>").strip()[:MAX_ERROR_CHARS]


def read_message(stream: IO[bytes]) -> Any:
    """The next message; EOFError at the end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    body = stream.read(length)
    if len(body) < length:
        raise EOFError
    return json.loads(body)


def write_message(stream: IO[bytes], message: Any) -> None:
    """Sends one message."""
    body = json.dumps(message).encode()
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def serve() -> None:
    """Answers until standard input ends."""
    try:
        checker = Checker(read_message(sys.stdin.buffer))
        write_message(sys.stdout.buffer, {})
        while True:
            grammar = read_message(sys.stdin.buffer)["grammar"]
            signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
            fault = checker.fault_of(grammar)
            signal.setitimer(signal.ITIMER_PROF, 0)
            write_message(sys.stdout.buffer, {} if fault is None else {"error": fault})
    except (EOFError, BrokenPipeError):
        return


def main() -> None:
    """Bounds this process, and serves in a thread, whose stack can be bounded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
