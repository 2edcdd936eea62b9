"""Structural tags as a grammar, and bad words as token ids: what the translations mean. It knows nothing of doors."""

from typing import Any

from llguidance import LLMatcher, LLTokenizer

from services.router.bad_words import spellings_of, texts_of
from services.router.structural_tags import lark_of_tags
from shared.grammars import Grammar

STRUCTURES: list[dict[str, Any]] = [
    {"begin": "<f=a>", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}, "end": "</f>"},
    {"begin": "<g>", "schema": {"type": "integer"}, "end": "</g>"},
]


def test_structural_tags_leave_text_free_and_bind_what_follows_a_trigger() -> None:
    lark = lark_of_tags({"structures": STRUCTURES, "triggers": ["<f=", "<g>"]}, "x")

    def taken(text: str) -> tuple[int, bool]:
        matcher = LLMatcher(LLTokenizer("byte"), Grammar("lark", lark).for_llguidance(), log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return matcher.try_consume_tokens(list(text.encode())), matcher.is_accepting()

    for text in ("", "free < text > of any kind\n", 'so <f=a>{"a": 1}</f> and <g>7</g> on', "<g>7</g>"):
        assert taken(text) == (len(text), True), text
    assert taken("so <g>") == (6, False)
    assert taken("so <g>x") == (6, False)
    assert taken("<f=b>") == (3, False)
    assert taken('<f=a>{"a": 1}</g>') == (15, False)


def test_bad_words_are_spelled_as_vllm_spells_them() -> None:
    texts = texts_of(["cat", " dog"])
    assert [text.text for text in texts] == ["cat", " cat", "dog", " dog"]
    assert not any(text.add_special_tokens for text in texts)
    assert spellings_of([[5, 6], [7, 6], [8], [9, 8]]) == ((5, 6), (7, 6), (8,))
    assert spellings_of([[5], [5], [5], [7]]) == ((5,), (7,))
