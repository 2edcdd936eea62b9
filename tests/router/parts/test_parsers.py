"""Parsers of calls: what each reads, the same in whatever chunks it comes, in linear time, and never a character lost."""

import json
import random
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.parsers import TOOLS as PARSERS
from services.router.parsers.pieces import Parser, Piece
from services.router.parts import CallArguments, CallBegun, Done, Part, Said
from shared.pb import types_pb2
from tests.router.parts.spelled import BEGIN, CALL, ILL, SEP, TOOLS, WELL, Spelled
from tests.router.parts.spoken import Spoken, delta, parts_of

FRAGMENTS = [
    *'{}[]()"\\:,=<> \n;`x1-',
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<function=f>", "</function>", BEGIN, CALL, SEP),
    *(
        "<parameter=s>",
        "<parameter=n>",
        "</parameter>",
        '{"name": "f", ',
        '"arguments": {',
        '"parameters":',
        "f(",
        "s='",
        "a=1",
        "\\u00",
        "ö",
    ),
    *(
        '"name"',
        '"f"',
        "null",
        "true",
        "12",
        "```json",
        "function",
        hermes := '<tool_call>{"name": "f", "arguments": {"a": "b"}}</tool_call>',
    ),
]


def new(name: str) -> Parser:
    return PARSERS[name].parser(types_pb2.Reading(tool_parser=name, tools=TOOLS))


def joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one kind as one; a call's name is a piece of its own."""
    made: list[Piece] = []
    for kind, text in pieces:
        if made and made[-1][0] == kind != "call":
            made[-1] = (kind, made[-1][1] + text)
        elif text or kind == "call":
            made.append((kind, text))
    return made


def read(name: str, chunks: list[str], *, ends: bool = True) -> list[Piece]:
    parser = new(name)
    pieces = [piece for chunk in chunks for piece in parser.feed(chunk)]
    return joined(pieces + parser.finish() if ends else pieces)


def cut(text: str, places: list[int]) -> list[str]:
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(borders)]


def told(parts: list[Part]) -> tuple[str, list[tuple[str, str]]]:
    """Content, and calls by name and arguments."""
    content = ""
    calls: list[tuple[str, str]] = []
    for part in parts:
        if isinstance(part, Said):
            content += part.text
        elif isinstance(part, CallBegun):
            assert part.call == len(calls)
            calls.append((part.name, ""))
        elif isinstance(part, CallArguments):
            calls[part.call] = (calls[part.call][0], calls[part.call][1] + part.text)
    return content, calls


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize("spelled", WELL, ids=lambda spelled: spelled.parser)
def test_calls_are_read(spelled: Spelled, size: int) -> None:
    parts = parts_of(spelled.reading, [spelled.text[at : at + size] for at in range(0, len(spelled.text), size)])
    content, calls = told(parts)
    assert content == spelled.content
    assert [(name, json.loads(text)) for name, text in calls] == [(name, json.loads(text)) for name, text in spelled.calls]
    assert isinstance(parts[-1], Done)
    assert parts[-1].reason == ("tool_calls" if spelled.calls else "stop")


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize(("name", "text"), ILL)
def test_what_is_no_call_is_content_to_the_last_character(name: str, text: str, size: int) -> None:
    assert read(name, [text[at : at + size] for at in range(0, len(text), size)]) == [("content", text)]


def test_arguments_that_break_off_are_given_as_far_as_they_are_valid() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": 1, oops}} tail'
    assert read("hermes", [text]) == [("call", "f"), ("arguments", '{"a": 1, '), ("content", "oops}} tail")]


def test_one_call_at_most_where_that_is_asked_for() -> None:
    spelled = next(one for one in WELL if len(one.calls) == 2)
    reading = spelled.reading
    reading.one_call = True
    assert [name for name, _ in told(parts_of(reading, [spelled.text]))[1]] == ["f"]


@pytest.mark.parametrize("spelled", WELL, ids=lambda spelled: spelled.parser)
def test_a_client_that_comes_back_gets_the_rest(spelled: Spelled) -> None:
    whole = told(parts_of(spelled.reading, [spelled.text]))
    ids = [part.id for part in parts_of(spelled.reading, [spelled.text]) if isinstance(part, CallBegun)]
    for place in range(len(spelled.text) + 1):
        first = Spoken().reader(spelled.reading).read(delta(spelled.text[:place]))
        rest = parts_of(spelled.reading, [spelled.text[place:]], begun=spelled.text[:place])
        assert told([*first, *rest]) == whole
        assert [part.id for part in [*first, *rest] if isinstance(part, CallBegun)] == ids


@pytest.mark.parametrize("name", sorted(PARSERS))
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_chunks_do_not_matter(name: str, data: st.DataObject) -> None:
    """Up to any place, the pieces that were given are the same; and after it, too."""
    text = "".join(data.draw(st.lists(st.sampled_from(FRAGMENTS), max_size=30)))
    chunks = cut(text, data.draw(st.lists(st.integers(0, 10**6), max_size=12)))
    for ends in (False, True):
        assert read(name, chunks, ends=ends) == read(name, [text], ends=ends) == read(name, list(text), ends=ends)


@pytest.mark.parametrize("name", sorted(PARSERS))
@given(text=st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join))
@settings(max_examples=80, deadline=None)
def test_without_a_call_nothing_is_lost_or_made_up(name: str, text: str) -> None:
    pieces = read(name, [text])
    if not any(kind == "call" for kind, _ in pieces):
        assert "".join(piece for _, piece in pieces) == text
    for kind, piece in pieces:
        piece.encode()
        assert kind != "call" or piece


UNITS = [
    *(
        "<",
        "<tool_call>",
        '<tool_call>{"',
        '<tool_call>{"name":"f","arguments":{',
        "[",
        "{",
        '{"name":',
        " ",
        "\n",
        '"',
        "\\",
        "=",
    ),
    *(";", '<tool_call>{"name":"f"}</tool_call>', "[TOOL_CALLS]", "[TOOL_CALLS][", "[TOOL_CALLS]f{", "[f(", "[f(a=", "[f(a='\\"),
    *("f(),", "</tool_call>", "<function=f>", "<function=f><parameter=s>", "<parameter=n>", "</parameter>", "</parameter"),
    *(CALL + "f" + SEP, "[],", '"a":1,', "{},", "(),"),
]
OPENINGS = {
    "hermes": '<tool_call>{"name": "f", "arguments": {"a": [',
    "llama3_json": '{"name": "f", "parameters": {"a": [',
    "mistral": '[TOOL_CALLS][{"name": "f", "arguments": {"a": [',
    "pythonic": "[f(a=[",
    "qwen3_xml": "<tool_call><function=f><parameter=n>",
    "deepseek": f'{CALL}f{SEP}{{"a": [',
}


def seconds(name: str, text: str, chunk: int) -> float:
    chunks = [text[at : at + chunk] for at in range(0, len(text), chunk)]
    best = float("inf")
    for _ in range(2):
        parser = new(name)
        begun = time.process_time()
        for piece in chunks:
            parser.feed(piece)
        parser.finish()
        best = min(best, time.process_time() - begun)
    return best


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(PARSERS))
def test_a_megabyte_of_anything_takes_a_tenth_of_a_second(name: str) -> None:
    slow = {}
    for unit in UNITS:
        for opening in ("", OPENINGS[name], OPENINGS[name] + '"'):
            text = (opening + unit * (2**20 // len(unit) + 1))[: 2**20]
            if (taken := seconds(name, text, 2**20)) > 0.1:
                slow[opening, unit] = taken
    assert not slow


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_twice_the_text_takes_no_more_than_twice_the_time(name: str) -> None:
    """Token by token, where what is held must not be looked at again and again."""
    for opening in ("", OPENINGS[name], OPENINGS[name] + '"'):
        for piece in (random.Random(name).choice(UNITS), " "):
            text = piece * (20_000 // len(piece))
            # Where it is not so, no luck with other processes makes it so.
            assert any(seconds(name, opening + text + text, 4) < 2.5 * seconds(name, opening + text, 4) for _ in range(5))
