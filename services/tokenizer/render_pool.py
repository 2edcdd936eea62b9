"""Keeps the renderer processes: one rendering each at a time, a new process for one that died.

It knows nothing of what templates say.
"""

import contextlib
import queue
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from services.tokenizer import renderer
from shared.errors import InternalError, InvalidRequest, StartupError


class RenderPool:
    """Blocking: call `render` from threads; at most `num_processes` render at once."""

    def __init__(self, path: Path, templates: Mapping[str, str], num_processes: int):
        """Starts one process, others when they are needed. Raises StartupError naming `path` if a template does not compile."""
        self._path = path
        self._templates = dict(templates)
        self._running: set[_Process] = set()
        # None: a process to be started when it is needed, which is when no idle one lies above it.
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        try:
            if templates:
                for _ in range(num_processes - 1):
                    self._idle.put(None)
                self._idle.put(self._start())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RenderPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """The text. Raises InvalidRequest when the template refuses the input, or takes too long over it."""
        process = self._idle.get()
        answer: dict[str, str] | None = None
        try:
            process = process or self._start()
            answer = process.ask({"template": template, "variables": variables})
        except (EOFError, BrokenPipeError):
            answer = {"error": f"it took more than {renderer.CPU_LIMIT_S:g} s of processor time or too much memory"}
        except (StartupError, OSError) as error:
            raise InternalError("the process that renders chat templates cannot be started") from error
        finally:
            if process is not None and (answer is None or not process.alive):
                self._running.discard(process)
                process.end()
                process = None
            self._idle.put(process)
        if "error" in answer:
            raise InvalidRequest(f"The model's chat template refused the messages: {answer['error']}", param="messages")
        return answer["text"]

    def close(self) -> None:
        """Ends the processes."""
        for process in self._running:
            process.end()
        self._running.clear()

    def _start(self) -> "_Process":
        process = _Process()
        try:
            answer = process.ask(self._templates)
        except (EOFError, BrokenPipeError):
            answer = {"error": "the process that compiles it ended"}
        if "error" in answer:
            process.end()
            raise StartupError(f"{self._path}: the chat template is broken: {answer['error']}")
        self._running.add(process)
        return process


class _Process:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", renderer.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=-1
        )

    def ask(self, message: Any) -> dict[str, str]:
        if self._process.stdin is None or self._process.stdout is None:
            raise EOFError
        try:
            renderer.write_message(self._process.stdin, message)
            answer: dict[str, str] = renderer.read_message(self._process.stdout)
        except (EOFError, BrokenPipeError):
            self._process.wait()
            raise
        return answer

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
