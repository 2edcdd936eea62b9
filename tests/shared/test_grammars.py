"""What a grammar's text must satisfy before anybody compiles it, and how llguidance reads it. It knows nothing of doors."""

import json
import re

import pytest
from llguidance import LLMatcher, LLTokenizer

from shared.errors import InvalidRequest
from shared.grammars import MAX_DEPTH, MAX_SOURCE_BYTES, Grammar

pytestmark = pytest.mark.optimized


@pytest.mark.parametrize(
    ("grammar", "code"),
    [
        (Grammar("json_schema", "{"), "invalid_json_schema"),
        (Grammar("json_schema", "[]"), "invalid_json_schema"),
        (Grammar("json_schema", '{"$ref": "http://example.com/a.json"}'), "invalid_json_schema"),
        (Grammar("json_schema", '{"items": [{"$ref": "file:///etc/passwd"}]}'), "invalid_json_schema"),
        (Grammar("json_schema", '{"const": "\0"}'), "invalid_json_schema"),
        (Grammar("json_schema", '{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH + " " * 0), None),
        (Grammar("json_schema", '{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1)), "schema_too_complex"),
        (Grammar("json_schema", '{"a":' * 12_000 + "1" + "}" * 12_000), "schema_too_complex"),
        (Grammar("json_schema", '{"a":' + "[" * 30_000 + "]" * 30_000 + "}"), "schema_too_complex"),
        (Grammar("regex", "a" * MAX_SOURCE_BYTES), None),
        (Grammar("regex", "a" * (MAX_SOURCE_BYTES + 1)), "schema_too_complex"),
        (Grammar("regex", "é" * (MAX_SOURCE_BYTES // 2 + 1)), "schema_too_complex"),
        (Grammar("regex", "a\0"), "invalid_regex"),
        (Grammar("lark", "start: \0"), "invalid_grammar"),
        (Grammar("ebnf", "x"), "invalid_value"),  # type: ignore[arg-type]
    ],
)
def test_what_can_be_seen_at_once(grammar: Grammar, code: str | None) -> None:
    if code is None:
        grammar.validate()
        return
    with pytest.raises(InvalidRequest) as caught:
        grammar.validate("response_format")
    assert (caught.value.code, caught.value.param) == (code, "response_format")


def matches(grammar: Grammar, text: str) -> bool:
    """Whether llguidance takes `text` as a whole, over a vocabulary of single bytes."""
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, grammar.for_llguidance(), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    taken = matcher.try_consume_tokens(list(text.encode()))
    return bool(taken == len(text.encode()) and matcher.is_accepting())


@pytest.mark.parametrize("pattern", ["a/b", r"a\/b", "a\nb", r"a\nb", r"[/]+", r"\\/", "^a/b$", "(?i)A/B", "é/+"])
def test_a_regular_expression_survives_the_way(pattern: str) -> None:
    grammar = Grammar("regex", pattern)
    for text in ("a/b", "a\nb", "//", "\\/", "A/B", "é//", "", "x"):
        assert matches(grammar, text) == bool(re.fullmatch(pattern, text)), (pattern, text)


def test_a_schema_keeps_its_order_and_bounds_white_space() -> None:
    schema = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "integer"}}, "required": ["b", "a"]}
    grammar = Grammar("json_schema", json.dumps(schema))
    assert matches(grammar, '{"b":1,"a":2}')
    assert matches(grammar, '{\n    "b": 1,\n    "a": 2\n}')
    assert not matches(grammar, '{"a":2,"b":1}')
    assert not matches(grammar, '{"b":' + " " * 40 + '1,"a":2}')
    compact = Grammar("json_schema", json.dumps(schema | {"x-guidance": {"whitespace_pattern": ""}}))
    assert not matches(compact, '{ "b":1,"a":2}')


def test_lark() -> None:
    grammar = Grammar("lark", 'start: "yes" | "no" /[!]*/')
    assert [matches(grammar, text) for text in ("yes", "no!!", "yes!", "")] == [True, True, False, False]
