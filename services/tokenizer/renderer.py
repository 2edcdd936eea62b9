"""Renders chat templates in a process of its own: a template is code that came with a model, and may never end.

Started by path, isolated (python -I), with nothing of ours imported. It reads messages from standard input and answers on
standard output: four bytes of length, then JSON. First the templates by name, answered by {} or {"error"}; then requests
{"template", "variables"}, answered by {"text"} or {"error"}. The system kills it when one rendering takes more than
CPU_LIMIT_S of processor time; memory and output are bounded too. It ends when standard input does.
It knows nothing of tokens.
"""

import json
import resource
import signal
import struct
import sys
from collections.abc import Callable
from datetime import datetime
from typing import IO, Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

CPU_LIMIT_S = 1.0
MEMORY_LIMIT_BYTES = 512 * 2**20
MAX_OUTPUT_CHARS = 8 * 2**20

_LENGTH = struct.Struct("<I")


class GenerationBlock(jinja2.ext.Extension):
    """{% generation %}: marks what the assistant wrote for those who train; it renders as what it holds."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The block's own nodes."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> jinja2.Environment:
    """The environment that templates on the Hugging Face Hub are written for (transformers, chat_template_utils.py)."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which models were not trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """The text, at most MAX_OUTPUT_CHARS long."""
    parts, length = [], 0
    for part in template.generate(variables):
        parts.append(part)
        length += len(part)
        if length > MAX_OUTPUT_CHARS:
            raise jinja2.TemplateError(f"the output is longer than {MAX_OUTPUT_CHARS} characters")
    return "".join(parts)


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


def _answer(work: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What `work` returns, or the error that the template or its input caused."""
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
    try:
        return work()
    except MemoryError:
        return {"error": "it needs too much memory"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as error:  # A template may fail in any way; the caller is told how.
        line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        return {"error": f"{str(error) or type(error).__name__}{line}"}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Serves until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    made = environment()
    templates: dict[str, jinja2.Template] = {}

    def compile_all(sources: dict[str, str]) -> dict[str, str]:
        templates.update({name: made.from_string(source) for name, source in sources.items()})
        return {}

    try:
        sources = read_message(sys.stdin.buffer)
        write_message(sys.stdout.buffer, _answer(lambda: compile_all(sources)))
        while True:
            request = read_message(sys.stdin.buffer)
            template, variables = templates[request["template"]], request["variables"]
            write_message(sys.stdout.buffer, _answer(lambda t=template, v=variables: {"text": render(t, v)}))  # type: ignore[misc]
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    main()
