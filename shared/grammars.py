"""What an output may be told to match: a grammar's text, its bounds, and how llguidance reads it.

The same text is judged in the tokenizer and followed in workers, so how it is read is written down here, once. It knows
nothing of tokens, of who asks, or of what a grammar means.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from shared.errors import InvalidRequest

MAX_SOURCE_BYTES = 64 * 2**10
MAX_DEPTH = 64

Kind = Literal["json_schema", "regex", "lark"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# A small model may write white space for ever. This is what llama.cpp allows between the parts of a JSON text.
WHITE_SPACE = r"[ ]|\n{1,2}[ \t]{0,20}"

_WRONG = {"json_schema": "invalid_json_schema", "regex": "invalid_regex", "lark": "invalid_grammar"}
TOO_COMPLEX = "schema_too_complex"

# What llguidance may spend on one grammar, the same where it is judged and where it is followed: steps of its lexer and parser
# at the start and per token, and states of the lexer, which take one or two KiB each. Its errors repeat nothing of the grammar.
LIMITS: Mapping[str, int | bool] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 500_000,
    "verbose_errors": False,
}

# Forced text is not put in front of the model as tokens of the library's choice, for which it would call a tokenizer back.
_OPTIONS = '%llguidance {"no_forcing": true}'

# What ends a regular expression between slashes; a backslash takes the character after it along.
_SLASH_OR_LINE = re.compile(r"\\(?s:.)|[/\n\r]")
_PLAIN = {"/": r"\/", "\n": r"\n", "\r": r"\r"}


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar in one of the languages of `Kind`."""

    kind: Kind
    source: str

    def wrong(self, what: str, name: str = "grammar", code: str | None = None) -> InvalidRequest:
        """The error that says what is wrong with it; `name` is what the caller called it."""
        return InvalidRequest(f"Invalid '{name}': {what}.", param=name, code=code or _WRONG.get(self.kind))

    def validate(self, name: str = "grammar") -> None:
        """Raises InvalidRequest for what can be seen without compiling it."""
        if self.kind not in KINDS:
            raise self.wrong(f"its kind must be one of {', '.join(KINDS)}", name, "invalid_value")
        if len(self.source.encode("utf-8", "surrogatepass")) > MAX_SOURCE_BYTES:
            raise self.wrong(f"it is longer than {MAX_SOURCE_BYTES // 1024} KiB", name, TOO_COMPLEX)
        if "\0" in self.source:
            raise self.wrong("it holds a NUL character", name)
        if self.kind == "json_schema":
            self._walk(self._schema(name), name)

    def _schema(self, name: str = "grammar") -> dict[str, Any]:
        try:
            schema = json.loads(self.source)
        except RecursionError:
            raise self.wrong(f"it is nested deeper than {MAX_DEPTH} levels", name, TOO_COMPLEX) from None
        except ValueError:
            raise self.wrong("it is not valid JSON", name) from None
        if type(schema) is not dict:
            raise self.wrong("it must be a JSON object", name)
        return schema

    def _walk(self, schema: dict[str, Any], name: str) -> None:
        level: list[Any] = [schema]
        for _ in range(MAX_DEPTH):
            for node in level:
                reference = node.get("$ref") if type(node) is dict else None
                if type(reference) is str and not reference.startswith("#"):
                    raise self.wrong("only references within the schema ('#/...') are followed", name)
            inner = (child for node in level for child in (node.values() if type(node) is dict else node))
            level = [child for child in inner if type(child) in (dict, list)]
            if not level:
                return
        raise self.wrong(f"it is nested deeper than {MAX_DEPTH} levels", name, TOO_COMPLEX)

    def for_llguidance(self) -> str:
        """The grammar as llguidance takes it, a text in its dialect of Lark; it must be valid."""
        if self.kind == "json_schema":
            schema = self._schema()
            given = schema.get("x-guidance")
            options = given if type(given) is dict else {}
            body = f"start: %json {json.dumps({**schema, 'x-guidance': {'whitespace_pattern': WHITE_SPACE, **options}})}"
        elif self.kind == "regex":
            escaped = _SLASH_OR_LINE.sub(lambda found: _PLAIN.get(found[0], found[0]), self.source)
            body = f"start: /{escaped}/"
        else:
            body = self.source
        return json.dumps({"grammars": [{"lark_grammar": f"{_OPTIONS}\n{body}"}]})
