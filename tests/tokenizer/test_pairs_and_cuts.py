"""Texts of encoders: WordPiece, pairs and cuts, by MiniLM's own tokenizer.json, against the `tokenizers` library itself."""

import pytest
from tokenizers import Tokenizer

from services.launcher.pull import find_or_fetch
from services.tokenizer import vocab
from services.tokenizer.vocab import Vocabulary

QUESTION = "How many people live in Berlin?"
ANSWER = "Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers."


@pytest.fixture(scope="module")
def minilm() -> Vocabulary:
    return vocab.load(find_or_fetch("all-minilm"))


def library(max_tokens: int = 0) -> Tokenizer:
    """The file's own rules; its truncation and padding, which are for training, left out."""
    tokenizer = Tokenizer.from_file(str(find_or_fetch("all-minilm") / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if max_tokens:
        tokenizer.enable_truncation(max_tokens)
    return tokenizer


def test_word_pieces(minilm: Vocabulary) -> None:
    for text in (ANSWER, "Zürich, naïve 北京!", "unaffable " * 200, ""):
        assert list(minilm.encode(text, add_special_tokens=True)) == library().encode(text).ids
    spelled = list(minilm.encode("[CLS] a [SEP]", add_special_tokens=True))
    assert spelled[0] == 101
    assert spelled[-1] == 102
    # What a user spells is no special token: such a text would otherwise end where its writer wants.
    assert not {101, 102} & set(spelled[1:-1])


def test_bytes_of_pieces(minilm: Vocabulary) -> None:
    ids = minilm.encode("unaffable cats", add_special_tokens=False)
    assert b"".join(minilm.token_bytes[token_id] for token_id in ids) == b" unaffable cats"


@pytest.mark.parametrize("max_tokens", [0, 4, 9, 10, 11, 12, 20, 31, 200])
def test_pairs_are_cut_as_the_library_cuts_them(minilm: Vocabulary, max_tokens: int) -> None:
    for first, second in ((QUESTION, ANSWER), (ANSWER, QUESTION), (QUESTION, QUESTION), ("a", ANSWER)):
        ids, num_first = minilm.encode_pair(first, second, add_special_tokens=True, max_tokens=max_tokens)
        expected = library(max_tokens).encode(first, second)
        assert list(ids) == expected.ids
        assert num_first == expected.type_ids.index(1)


@pytest.mark.parametrize("max_tokens", [3, 7, 100])
def test_one_text_is_cut_as_the_library_cuts_it(minilm: Vocabulary, max_tokens: int) -> None:
    ids, num_first = minilm.encode_pair(ANSWER, None, add_special_tokens=True, max_tokens=max_tokens)
    assert (list(ids), num_first) == (library(max_tokens).encode(ANSWER).ids, 0)
