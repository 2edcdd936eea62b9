"""Grammars that hurt servers elsewhere (security.md 1B 22, 23 and 1C 42 to 44), and such as are none. It knows no server."""

import json
from typing import Any

from shared.grammars import Grammar


def _schema(value: dict[str, Any]) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def _nested(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        made = {"type": "array", "items": made}
    return made


_KEYS = {f"p{i}": {"type": "string", "maxLength": 9} for i in range(900)}
_LOOP = {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}
_MANY = [{"anyOf": [{"properties": {f"{kind}{i}": {"type": "integer"}}} for kind in "ab"]} for i in range(20)]

REFUSED = {
    "unknown type": _schema({"type": "foo"}),
    "type of a wrong type": _schema({"type": 3}),
    "bad pattern": _schema({"type": "string", "pattern": "("}),
    "lookahead": Grammar("regex", "(?=a)b"),
    "open group": Grammar("regex", "("),
    "thirty thousand groups": Grammar("regex", "(" * 30_000 + ")" * 30_000),
    "sixty thousand open groups": Grammar("regex", "(" * 60_000),
    "keyword that cannot be enforced": _schema({"type": "array", "uniqueItems": True}),
    "nothing satisfies it": _schema(_LOOP),
    "unknown rule": Grammar("lark", "start: foo"),
    "no start": Grammar("lark", 'x: "a"'),
    "empty": Grammar("lark", ""),
    "deep groups": Grammar("lark", "start: " + "(" * 15_000 + '"a"' + ")" * 15_000),
    "many cases": _schema({"allOf": _MANY}),
    "no such token": Grammar("lark", "start: <|nope|>"),
}

HOSTILE = {
    "(a|a)*": Grammar("regex", "(a|a)*{1000}"),
    "nested repeats": Grammar("regex", "((((.{1,999}x){1,999}y){1,999}z){1,999})"),
    "exponential automaton": Grammar("regex", "(a|b)*a(a|b){30}"),
    "ten thousand stars": Grammar("regex", "[^a]*" * 10_000),
    "many conjunctions": Grammar("lark", "start: A\nA: " + " & ".join(f"/.*{i}.*/" for i in range(300))),
    "huge enum": _schema({"enum": [f"value {i}" for i in range(4_000)]}),
    "deep arrays": _schema(_nested(30)),
    "many optional keys": _schema(
        {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 9} for i in range(900)}}
    ),
    "endless minimum": _schema({"type": "string", "minLength": 10**6, "maxLength": 2 * 10**9}),
    "endless arrays": _schema({"type": "array", "minItems": 10**6, "items": {"type": "array", "minItems": 10**5}}),
    "huge multiple": _schema({"type": "integer", "multipleOf": 999_999_937, "minimum": 1}),
    "pattern of stars": _schema({"type": "string", "pattern": "^(a|a)*{1000}$"}),
    "doubling rules": Grammar("lark", "start: a0\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(900)) + '\na900: "x"'),
    "left recursion": Grammar("lark", 'start: start start | "a" | ""'),
    "repeats of repeats": Grammar("lark", 'start: x{100000}\nx: y{100000}\ny: "a" | "b"'),
}
