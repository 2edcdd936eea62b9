"""What bodies may ask their output to match, in each dialect's words: one grammar comes of it, or a clear 400."""

import json
from typing import Any

import httpx
import pytest

from services.router.structural_tags import lark_of_tags
from shared.grammars import Grammar
from tests.router.doors.fake_plane import FakePlane

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def format_of(**fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "it", **fields}}}


@pytest.mark.parametrize(
    ("fields", "kind", "source"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", {"type": "object"}),
        (format_of(schema=SCHEMA, strict=True), "json_schema", SCHEMA),
        (format_of(schema=SCHEMA), "json_schema", SCHEMA | {"x-guidance": {"lenient": True}}),
        (format_of(), "json_schema", {"type": "object", "x-guidance": {"lenient": True}}),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", SCHEMA),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json_schema", SCHEMA),
        ({"structured_outputs": {"json_object": True}}, "json_schema", {"type": "object"}),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True, "disable_additional_properties": False}},
            "json_schema",
            SCHEMA | {"x-guidance": {"whitespace_pattern": ""}},
        ),
        (
            {"structured_outputs": {"json": json.dumps(SCHEMA), "whitespace_pattern": "[ ]?"}},
            "json_schema",
            SCHEMA | {"x-guidance": {"whitespace_pattern": "[ ]?"}},
        ),
        ({"structured_outputs": {"regex": "[ab]/c"}}, "regex", "[ab]/c"),
        ({"structured_outputs": {"grammar": 'start: "x"'}}, "lark", 'start: "x"'),
        ({"structured_outputs": {"choice": ["a", 'b"\n']}}, "lark", r'start: "a" | "b\"\n"'),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_one_grammar(
    client: httpx.AsyncClient, plane: FakePlane, path: str, fields: dict[str, Any], kind: str, source: Any
) -> None:
    body = CHAT if "chat" in path else {"model": "tiny", "prompt": "x"}
    answer = await client.post(path, json=body | fields)
    assert answer.status_code == 200, answer.text
    grammar = plane.generations[-1].request.sampling.grammar
    assert grammar is not None
    assert grammar.kind == kind
    assert (json.loads(grammar.source) if kind == "json_schema" else grammar.source) == source


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"response_format": None},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False, "regex": None}},
        {"allowed_token_ids": [], "bad_words": []},
    ],
)
async def test_what_asks_for_nothing(client: httpx.AsyncClient, plane: FakePlane, fields: dict[str, Any]) -> None:
    answer = await client.post("/v1/chat/completions", json=CHAT | fields)
    assert answer.status_code == 200, answer.text
    assert not plane.generations[-1].request.sampling.is_constrained


TAGS = {"structures": [{"begin": "<f=a>", "schema": SCHEMA, "end": "</f>"}], "triggers": ["<f="]}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": {}}, "response_format.type", "missing_required_parameter"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        (format_of(schema=[]), "response_format.json_schema.schema", "invalid_type"),
        (format_of(schema={"$ref": "http://x/y"}), "response_format.json_schema.schema", "invalid_json_schema"),
        (format_of(schema={"const": "x" * 70_000}), "response_format.json_schema.schema", "schema_too_complex"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"backend": "x"}}, "structured_outputs.backend", "unknown_parameter"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice", "empty_string"),
        ({"structured_outputs": {"choice": ["a"] * 1025}}, "structured_outputs.choice", "array_above_max_length"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "invalid_json_schema"),
        ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex", "invalid_type"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
            "invalid_value",
        ),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos", "invalid_value"),
        ({"structured_outputs": {"structural_tag": "{"}}, "structured_outputs.structural_tag", "invalid_value"),
        ({"structured_outputs": {"structural_tag": {"format": {}}}}, "structured_outputs.structural_tag", "invalid_value"),
        ({"response_format": {"type": "structural_tag"}}, "response_format", "invalid_value"),
        ({"response_format": {"type": "structural_tag", **TAGS, "triggers": ["g"]}}, "response_format", "invalid_value"),
        ({"guided_regex": "a"}, "guided_regex", "unsupported_parameter"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids[0]", "invalid_token_id"),
        ({"allowed_token_ids": [1, 10**9]}, "allowed_token_ids[1]", "invalid_token_id"),
        ({"bad_words": ["ok", ""]}, "bad_words[1]", "invalid_value"),
        ({"bad_words": ["x"] * 65}, "bad_words", "array_above_max_length"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, fields: dict[str, Any], param: str, code: str) -> None:
    answer = await client.post("/v1/chat/completions", json=CHAT | fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)


async def test_the_old_names_say_which_is_new(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/chat/completions", json=CHAT | {"guided_json": SCHEMA})
    assert "structured_outputs" in answer.json()["error"]["message"]


async def test_structural_tags_over_both_fields(client: httpx.AsyncClient, plane: FakePlane) -> None:
    for fields in (
        {"response_format": {"type": "structural_tag", **TAGS}},
        {"structured_outputs": {"structural_tag": TAGS}},
        {"structured_outputs": {"structural_tag": json.dumps(TAGS)}},
    ):
        answer = await client.post("/v1/chat/completions", json=CHAT | fields)
        assert answer.status_code == 200, answer.text
        assert plane.generations[-1].request.sampling.grammar == Grammar("lark", lark_of_tags(TAGS, "x"))
