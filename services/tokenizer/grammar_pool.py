"""Keeps the processes that judge grammars, and their verdicts: one grammar each at a time, a new process for one that died.

It knows nothing of what grammars say.
"""

import contextlib
import hashlib
import queue
import subprocess
import sys
import threading
from collections import OrderedDict
from typing import Any

from services.tokenizer import grammar_checker
from services.tokenizer.vocab import Vocabulary
from shared.errors import InternalError, InvalidRequest
from shared.grammars import LIMITS, TOO_COMPLEX, Grammar

# Of one grammar, whatever else the machine does; the process itself ends after less of processor time.
WALL_LIMIT_S = 2.0
START_LIMIT_S = 60.0
MAX_VERDICT_BYTES = 2**20
# What a verdict takes besides its text.
VERDICT_BYTES = 300


class GrammarPool:
    """Blocking: call `check` from threads; at most `num_processes` grammars are judged at once.

    Processes start when they are needed: most servers never see a grammar.
    """

    def __init__(self, vocabulary: Vocabulary, num_processes: int):
        self._vocabulary = vocabulary
        self._running: set[_Process] = set()
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(num_processes):
            self._idle.put(None)
        self._verdicts = Verdicts()

    def check(self, grammar: Grammar) -> None:
        """Raises InvalidRequest for a grammar that cannot be followed."""
        key = hashlib.sha256(f"{grammar.kind}\0{grammar.source}".encode("utf-8", "surrogatepass")).digest()
        known, verdict = self._verdicts.get(key)
        if not known:
            verdict, final = self._judge(grammar)
            if final:
                self._verdicts.put(key, verdict)
        if verdict == TOO_COMPLEX:
            raise grammar.wrong("it takes too much time or memory to follow; make it smaller", code=TOO_COMPLEX)
        if verdict is not None:
            raise grammar.wrong(verdict)

    def close(self) -> None:
        """Ends the processes."""
        for process in list(self._running):
            process.end()
        self._running.clear()

    def _judge(self, grammar: Grammar) -> tuple[str | None, bool]:
        """What is wrong with it, and whether that is so whenever it is asked."""
        process = self._idle.get()
        answer: dict[str, str] | None = None
        try:
            if process is None:
                process = self._start()
            answer = process.ask({"grammar": grammar.for_llguidance()}, WALL_LIMIT_S)
        except (EOFError, BrokenPipeError):
            return TOO_COMPLEX, process is None or not process.timed_out
        finally:
            if process is not None and (answer is None or process.timed_out):
                self._running.discard(process)
                process.end()
                process = None
            self._idle.put(process)
        return answer.get("error"), True

    def _start(self) -> "_Process":
        if not self._vocabulary.source.eos_token_ids:
            raise InvalidRequest("This model has no end-of-text token, so it cannot end where a grammar does.", param="grammar")
        try:
            process = _Process()
        except OSError as error:
            raise InternalError("the process that judges grammars cannot be started") from error
        self._running.add(process)
        try:
            process.ask(_first_message(self._vocabulary), START_LIMIT_S)
        except (EOFError, BrokenPipeError) as error:
            self._running.discard(process)
            process.end()
            raise InternalError("the process that judges grammars cannot be started") from error
        return process


class Verdicts:
    """What was found of grammars, by their digests: the ones asked for last, up to MAX_VERDICT_BYTES."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[bytes, str | None] = OrderedDict()
        self.num_bytes = 0

    def get(self, key: bytes) -> tuple[bool, str | None]:
        """Whether it is known, and what is wrong with it."""
        with self._lock:
            if key not in self._held:
                return False, None
            self._held.move_to_end(key)
            return True, self._held[key]

    def put(self, key: bytes, verdict: str | None) -> None:
        """Remembers one."""
        with self._lock:
            if key in self._held:
                return
            self._held[key] = verdict
            self.num_bytes += _size(verdict)
            while self.num_bytes > MAX_VERDICT_BYTES:
                self.num_bytes -= _size(self._held.popitem(last=False)[1])


def _size(verdict: str | None) -> int:
    return VERDICT_BYTES + len(verdict or "")


class _Process:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", grammar_checker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.timed_out = False

    def ask(self, message: Any, limit_s: float) -> dict[str, str]:
        if self._process.stdin is None or self._process.stdout is None:
            raise EOFError
        timer = threading.Timer(limit_s, self._expire)
        timer.start()
        try:
            grammar_checker.write_message(self._process.stdin, message)
            answer: dict[str, str] = grammar_checker.read_message(self._process.stdout)
        finally:
            timer.cancel()
            timer.join()
        return answer

    def _expire(self) -> None:
        self.timed_out = True
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _first_message(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "tokens": [token.decode("latin-1") for token in vocabulary.token_bytes],
        "control_ids": sorted(vocabulary.control_ids),
        "eos_token_ids": list(vocabulary.source.eos_token_ids),
        "limits": dict(LIMITS),
    }
