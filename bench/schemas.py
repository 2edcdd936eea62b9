"""A thousand JSON schemas, each answered by the server: `roadtrain bench schemas --url http://127.0.0.1:8000`.

Schemas are drawn from a seed, behind those that use every keyword and format that llguidance's documentation names. Every
completion must parse, and satisfy its schema in the eyes of the `jsonschema` package. It knows nothing of the server but its URL.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
from jsonschema import Draft202012Validator

Schema = dict[str, Any]

_WORDS = ("name", "age", "city", "tags", "price", "kind", "notes", "items", "owner", "size", "color", "active", "score", "id")
_PATTERNS = ("^[a-z]{2,8}$", "^[A-Z][a-z]+( [A-Z][a-z]+)?$", r"^\d{3}-\d{4}$", "^(red|green|blue)+$", "^x?y{1,3}z$")
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_TEXT = {"type": "string", "maxLength": 12}
_BIT = {"enum": [0, 1]}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


# One or more per keyword and format of docs/json_schema.md of llguidance 1.9.1, and its two examples of x-guidance.
DOCUMENTED: tuple[Schema, ...] = (
    {"anyOf": [{"type": "integer", "maximum": 9, "minimum": 0}, {"const": "none"}]},
    {"oneOf": [_object(a={"type": "boolean"}), _object(b={"type": "null"})]},
    {"oneOf": [{"const": "a"}, {"type": "null"}]},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}, _object(a={"const": True})]},
    {"$defs": {"point": _object(x=_BIT, y=_BIT)}, "type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 3},
    {"$defs": {"a": _object(b={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/c"}]}), "c": _BIT}, "$ref": "#/$defs/a"},
    {"const": {"a": [1, 2.5, None, True, "x"]}},
    {"enum": ["red", 3, None, False, {"a": 1}]},
    {"type": ["integer", "null"], "minimum": 0, "maximum": 99},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": ["a"]}], "items": False, "minItems": 2},
    {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 3, "maxItems": 3},
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 2},
    {"type": "object", "patternProperties": {"^k[0-9]$": {"enum": [1, 2]}}, "additionalProperties": False, "maxProperties": 2},
    {"type": "string", "minLength": 3, "maxLength": 6},
    *({"type": "string", "pattern": pattern, "maxLength": 24} for pattern in _PATTERNS),
    *({"type": "string", "format": name, "maxLength": 60} for name in _FORMATS),
    {"type": "integer", "minimum": -5, "maximum": 17},
    {"type": "integer", "exclusiveMinimum": 10, "exclusiveMaximum": 13},
    {"type": "number", "minimum": 1.5, "maximum": 2.25, "multipleOf": 0.25},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "multipleOf": 0.01},
    {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
    {**_object(a={"type": "boolean"}, b={"type": "null"}), "x-guidance": {"whitespace_flexible": False}},
    {
        **_object(a={"enum": [1, 2]}, b={"enum": [3]}),
        "x-guidance": {"item_separator": r"\s{0,2},\s{0,2}", "key_separator": r"\s{0,2}:\s{0,2}", "whitespace_flexible": False},
    },
    {"oneOf": [{"type": "integer", "maximum": 5, "minimum": 0}, {"type": "boolean"}], "x-guidance": {"coerce_one_of": True}},
    {**_TEXT, "x-guidance": {"json_allowed_escapes": 'nrbtf\\"'}},
    {**_TEXT, "x-guidance": {"json_allow_general_unicode_escapes": True}},
)  # fmt: skip


def drawn(rng: random.Random, depth: int = 3) -> Schema:
    """A random schema whose texts are of bounded length."""
    makers = [_string, _number, _choice] if depth == 0 else [_string, _number, _choice, _array, _record, _record, _record, _union]
    return rng.choice(makers)(rng, depth)


def _string(rng: random.Random, depth: int) -> Schema:
    kind = rng.randrange(5)
    if kind == 0:
        return {"type": "string", "pattern": rng.choice(_PATTERNS), "maxLength": 20}
    if kind == 1:
        return {"type": "string", "format": rng.choice((*_FORMATS[:4], "ipv4", "uuid")), "maxLength": 40}
    least = rng.randrange(4)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randrange(1, 16)}


def _number(rng: random.Random, depth: int) -> Schema:
    low = rng.randrange(-1000, 1000)
    bounds = {"minimum": low, "maximum": low + rng.randrange(1, 10_000)}
    if rng.random() < 0.3:
        return {"type": "number", "multipleOf": rng.choice((0.5, 0.25, 0.1, 0.01)), **bounds}
    return {"type": "integer", **bounds}


def _choice(rng: random.Random, depth: int) -> Schema:
    kind = rng.randrange(4)
    if kind == 0:
        return {"type": "boolean"}
    if kind == 1:
        return {"type": "null"}
    if kind == 2:
        return {"const": rng.choice(("yes", 7, None, [1, "a"], {"k": "v"}, 'quote " and \\', "naïve 日本"))}
    return {"enum": rng.sample(["red", "green", "blue", 1, 2.5, None, True, "with space", ""], rng.randrange(1, 6))}


def _array(rng: random.Random, depth: int) -> Schema:
    least = rng.randrange(3)
    made: Schema = {"type": "array", "items": drawn(rng, depth - 1), "minItems": least, "maxItems": least + rng.randrange(1, 3)}
    if rng.random() < 0.2:
        made["prefixItems"] = [drawn(rng, 0)]
    return made


def _record(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(_WORDS, rng.randrange(1, 6))
    properties = {name: drawn(rng, depth - 1) for name in names}
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in names if rng.random() < 0.7],
        "additionalProperties": False,
    }


def _union(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [drawn(rng, depth - 1) for _ in range(rng.randrange(2, 4))]}


def schemas(seed: int, count: int) -> Iterator[Schema]:
    """The documented ones, then drawn ones, so many in all."""
    rng = random.Random(seed)
    yield from DOCUMENTED[:count]
    for number in range(count - len(DOCUMENTED)):
        made = drawn(rng)
        if number % 10 == 0:
            made = {"$defs": {"it": made}, "type": "array", "items": {"$ref": "#/$defs/it"}, "minItems": 1, "maxItems": 2}
        yield made


async def judge(client: httpx.AsyncClient, number: int, schema: Schema, max_tokens: int) -> tuple[str, str]:
    """How one schema went: "valid", "length" (cut off at max_tokens), "refused" or "invalid"; and what there is to say of it."""
    question = f"Give an example of this as JSON: {', '.join(sorted(_words_of(schema))) or 'a value'}."
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": question}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": schema}},
        "seed": number,
        "temperature": 0.8,
        "max_tokens": max_tokens,
    }
    answer = await client.post("/v1/chat/completions", json=body)
    if answer.status_code != 200:
        return "refused", f"{answer.status_code} {answer.text}"
    choice = answer.json()["choices"][0]
    text = choice["message"]["content"]
    if choice["finish_reason"] != "stop":
        return "length", text
    try:
        # In binary fractions 1024.1 is no multiple of 0.1.
        exact = json.loads(json.dumps(schema), parse_float=Decimal)
        faults = [error.message for error in Draft202012Validator(exact).iter_errors(json.loads(text, parse_float=Decimal))]
    except ValueError as error:
        faults = [str(error)]
    return ("invalid", f"{faults[0]} in {text}") if faults else ("valid", text)


def _words_of(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return {word for each in schema for word in _words_of(each)}
    if not isinstance(schema, dict):
        return set()
    own = set(schema.get("properties", ()))
    return own | {word for each in schema.values() for word in _words_of(each)}


async def run(url: str, seed: int, count: int, num_clients: int, max_tokens: int) -> Counter[str]:
    """Asks all, num_clients at a time; prints those that are not valid."""
    found: Counter[str] = Counter()
    waiting = enumerate(schemas(seed, count))
    async with httpx.AsyncClient(base_url=url, timeout=300) as http:

        async def client() -> None:
            for number, schema in waiting:
                how, what = await judge(http, number, schema, max_tokens)
                found[how] += 1
                if found.total() % 50 == 0:
                    print(f"{found.total()} so far: {dict(found)}", flush=True)
                if how != "valid":
                    print(f"{number} {how}: {what[:300]}\n    {json.dumps(schema)[:500]}", flush=True)

        await asyncio.gather(*(client() for _ in range(num_clients)))
    return found


def main() -> None:
    """The command."""
    made = argparse.ArgumentParser(prog="roadtrain bench schemas", description=(__doc__ or "").splitlines()[0])
    made.add_argument("--url", default="http://127.0.0.1:8000", help="server to ask (default %(default)s)")
    made.add_argument("--count", type=int, default=1000, help="how many schemas (default %(default)s)")
    made.add_argument("--seed", type=int, default=0, help="of the drawn ones (default %(default)s)")
    made.add_argument("--clients", type=int, default=8, help="asked at a time (default %(default)s)")
    made.add_argument("--max-tokens", type=int, default=1024, help="of one completion (default %(default)s)")
    args = made.parse_args()
    began_at = time.monotonic()
    found = asyncio.run(run(args.url, args.seed, args.count, args.clients, args.max_tokens))
    counts = ", ".join(f"{found[how]} {how}" for how in ("valid", "invalid", "length", "refused"))
    print(f"{found.total()} schemas ({len(DOCUMENTED)} documented) in {time.monotonic() - began_at:.0f} s: {counts}")
    sys.exit(bool(found.total() - found["valid"]))


if __name__ == "__main__":
    main()
