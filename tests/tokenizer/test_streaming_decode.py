"""Streaming decode against the whole text: any split, any stop strings, any point of interruption."""

import time
from array import array
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.tokenizer.detokenize import Detokenizer, TextStream
from services.tokenizer.stop_strings import StopStrings
from shared.errors import InvalidRequest
from shared.pb import tokenizer_pb2 as pb

PIECES = [b"ab", b"a", b"b", b"ba", b" the", b"\n", "é".encode(), "日".encode(), "😀".encode(), b"", b"aab", b"<x>"]
TABLE = [bytes([byte]) for byte in range(256)] + PIECES
SPECIAL = frozenset({len(TABLE) - 1})
PARTS = [0xE6, 0x97, 0xA5, 0xF0, 0x9F, 0x98, 0x80, 0xC3, 0xA9, 0xFF, 0xED, 0xA0]  # of 日, 😀, é, and of nothing

ids_lists = st.lists(st.sampled_from([*range(256, 256 + len(PIECES)), *PARTS, ord("a"), ord("b"), 9999]), max_size=40)
stop_lists = st.lists(st.text("ab日\n�", min_size=1, max_size=5), max_size=4)
cuts = st.lists(st.integers(0, 40), max_size=6)


def split(ids: list[int], points: list[int]) -> list[list[int]]:
    borders = [0, *sorted(min(point, len(ids)) for point in points), len(ids)]
    return [ids[start:end] for start, end in pairwise(borders)]


def whole_text(ids: list[int], skipped: frozenset[int] = frozenset()) -> str:
    return b"".join(TABLE[i] for i in ids if i < len(TABLE) and i not in skipped).decode("utf-8", "replace")


def brute_force(text: str, stops: list[str], include: bool) -> tuple[str, int | None]:
    """The text up to the first match to end, and which; the longest, then the first, of those that end together."""
    for end in range(1, len(text) + 1):
        done = [index for index, stop in enumerate(stops) if text[:end].endswith(stop)]
        if done:
            hit = min(done, key=lambda index: (-len(stops[index]), index))
            return text[: end if include else end - len(stops[hit])], hit
    return text, None


@pytest.mark.optimized
@settings(max_examples=150, deadline=None)
@given(ids_lists, cuts, st.booleans())
def test_any_split_gives_the_whole_text(ids: list[int], points: list[int], skip: bool) -> None:
    skipped = SPECIAL if skip else frozenset()
    stream = TextStream(TABLE, skipped_ids=skipped)
    text = "".join(stream.feed(part) for part in split(ids, points)) + stream.flush()
    assert text == whole_text(ids, skipped)
    assert stream.num_tokens == len(ids)


@pytest.mark.optimized
@settings(max_examples=250, deadline=None)
@given(ids_lists, cuts, stop_lists, st.booleans())
def test_stop_strings_equal_brute_force(ids: list[int], points: list[int], stops: list[str], include: bool) -> None:
    stream = TextStream(TABLE, stops=stops, include_stop=include)
    text = "".join(stream.feed(part) for part in split(ids, points)) + stream.flush()
    expected, hit = brute_force(whole_text(ids), stops, include)
    assert text == expected
    assert (stream.ended.stop_index if stream.ended else None) == hit
    if stream.ended:
        # One token fewer does not complete it, or only by ending where a character was still incomplete.
        shorter = TextStream(TABLE, stops=stops)
        shorter.feed(ids[: stream.ended.num_tokens - 1])
        assert shorter.ended is None


@settings(max_examples=150, deadline=None)
@given(ids_lists, stop_lists)
def test_num_tokens_counts_tokens_whose_text_was_given(ids: list[int], stops: list[str]) -> None:
    stream, text, before = TextStream(TABLE, stops=stops), "", 0
    for token_id in ids:
        text += stream.feed([token_id])
        if stream.ended:
            break
        assert before <= stream.num_tokens <= stream.num_fed
        before = stream.num_tokens
        assert text.startswith(TextStream(TABLE).feed(ids[:before]))
        further = TextStream(TABLE)
        held = len(further.feed(ids[: before + 1])) + bool(further.flush())
        assert before == stream.num_fed or held > len(text)


@settings(max_examples=150, deadline=None)
@given(ids_lists, stop_lists, st.booleans(), st.integers(0, 40))
def test_rebuilt_state_equals_uninterrupted(ids: list[int], stops: list[str], include: bool, cut: int) -> None:
    first = TextStream(TABLE, stops=stops, include_stop=include)
    given_chars = len(first.feed(ids[:cut]))
    rebuilt = TextStream(TABLE, stops=stops, include_stop=include, num_prior_chars=given_chars)
    assert rebuilt.feed(ids[:cut]) == ""
    assert rebuilt.num_tokens == first.num_tokens
    assert rebuilt.feed(ids[cut:]) == first.feed(ids[cut:])
    assert rebuilt.flush() == first.flush()
    assert (rebuilt.num_tokens, rebuilt.ended) == (first.num_tokens, first.ended)


def test_held_back_exactly_as_long_as_needed() -> None:
    stream = TextStream(TABLE, stops=["abab!"])
    assert [stream.feed([ord(letter)]) for letter in "xabac"] == ["x", "", "", "", "abac"]
    assert stream.num_tokens == 5
    assert [stream.feed([byte]) for byte in "é".encode()] == ["", "é"]
    assert [stream.feed([0xE6]), stream.feed([ord("z")])] == ["", "�z"]
    assert (stream.feed([ord("a")]), stream.num_tokens) == ("", 9)
    assert (stream.flush(), stream.num_tokens) == ("a", 10)


def test_a_first_space_is_kept() -> None:
    assert TextStream(TABLE).feed([256 + PIECES.index(b" the")]) == " the"


def test_the_string_that_ends_first_wins() -> None:
    stops = StopStrings(["bcd", "c", "bc"], include=False)
    assert (stops.feed("ab"), stops.feed("cd")) == ("a", "")
    assert stops.hit == 2


def packed(ids: list[int]) -> bytes:
    return array("I", ids).tobytes()


def test_columns() -> None:
    streams = Detokenizer(TABLE, SPECIAL)
    special = len(TABLE) - 1
    request = pb.DecodeRequest(
        open=[
            pb.OpenDecode(stream=1, stop=["b\n"], skip_special=True, echo_token_ids=packed([ord("e"), 0xC3])),
            pb.OpenDecode(stream=2, prior_token_ids=packed([256, 256]), num_prior_chars=3),
        ],
        stream=[2, 1, 2],
        count=[1, 3, 0],
        token_ids=[special, 0xA9, special, ord("b")],
    )
    reply = streams.step(request)
    assert dict(zip(reply.stream, reply.text, strict=True)) == {1: "eé", 2: "b<x>"}
    assert dict(zip(reply.stream, reply.num_tokens, strict=True)) == {1: 2, 2: 3}
    reply = streams.step(pb.DecodeRequest(stream=[1], count=[2], token_ids=[ord("\n"), 65], flush=[1, 2], close=[1, 2]))
    assert (list(reply.stream), list(reply.text)) == ([1, 2], ["", ""])
    assert [(one.stream, one.num_tokens, one.stop_index) for one in reply.stopped] == [(1, 4, 0)]
    assert list(streams.step(pb.DecodeRequest(flush=[1])).refused) == [1]


def test_a_stop_is_told_once_and_later_tokens_are_dropped() -> None:
    streams = Detokenizer(TABLE, SPECIAL)
    first = streams.step(pb.DecodeRequest(open=[pb.OpenDecode(stream=1, stop=["a"])], stream=[1], count=[1], token_ids=[97]))
    later = streams.step(pb.DecodeRequest(stream=[1], count=[1], token_ids=[98], flush=[1]))
    assert [one.num_tokens for one in first.stopped] == [1]
    assert (list(later.stream), list(later.text), len(later.stopped)) == ([1], [""], 0)


def test_a_faulty_stream_disturbs_no_other() -> None:
    streams = Detokenizer(TABLE, SPECIAL)
    streams.step(pb.DecodeRequest(open=[pb.OpenDecode(stream=1)]))
    request = pb.DecodeRequest(
        open=[pb.OpenDecode(stream=1), pb.OpenDecode(stream=3, stop=[""]), pb.OpenDecode(stream=4, prior_token_ids=b"123")],
        stream=[3, 1, 7],
        count=[1, 1, 1],
        token_ids=[97, 98, 99],
        flush=[8],
    )
    reply = streams.step(request)
    assert (list(reply.stream), list(reply.text)) == ([1], ["b"])
    assert sorted(reply.refused) == [1, 3, 4, 7, 8]


@pytest.mark.parametrize(("count", "ids"), [([2], [1]), ([1, 1], [1, 1]), ([], [1])])
def test_columns_that_do_not_fit(count: list[int], ids: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="do not fit"):
        Detokenizer(TABLE, SPECIAL).step(pb.DecodeRequest(stream=[1], count=count, token_ids=ids))


def test_time_is_linear() -> None:
    def seconds(num_tokens: int) -> float:
        best = 1e9
        for _ in range(3):
            stream = TextStream(TABLE, stops=["a" * 255 + "b", "a" * 200 + "c"])
            start = time.process_time()
            for _ in range(num_tokens):
                stream.feed([97])
            best = min(best, time.process_time() - start)
        return best

    seconds(1000)
    assert seconds(20_000) / seconds(10_000) < 3


def test_text_is_given_by_whole_tokens_and_can_be_taken_up_at_any() -> None:
    """At each count of tokens given, a stream that is told so gives exactly the rest, whatever it held back there."""
    ids = [*b"xab", *"aé".encode(), *b"aabc", *"é€".encode(), *b"abab"]

    def feed(stream: TextStream, step: int) -> list[tuple[str, int]]:
        given = [(stream.feed(ids[at : at + step]), stream.num_tokens) for at in range(0, len(ids), step)]
        return [*given, (stream.flush(), stream.num_tokens)]

    for stops in ([], ["abx", "c€"], ["ababab"]):
        whole = "".join(text for text, _ in feed(TextStream(TABLE, stops=stops), 1))
        for step in (1, 2, 5):
            seen = ""
            for text, num_tokens in feed(TextStream(TABLE, stops=stops), step):
                seen += text
                rest = "".join(text for text, _ in feed(TextStream(TABLE, stops=stops, num_given_tokens=num_tokens), step))
                assert seen + rest == whole
