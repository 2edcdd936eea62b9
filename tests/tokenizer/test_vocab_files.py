"""Vocabularies from every kind of file, against the tokenizers library and transformers; broken files are named."""

import functools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from services.launcher.pull import find_or_fetch
from services.tokenizer import vocab
from services.tokenizer.vocab import Vocabulary
from shared.errors import StartupError
from shared.gguf import read_gguf
from shared.vocabulary.gguf_source import SPLITS
from tests.tokenizer.trained import CORPUS, KINDS, SPECIALS, byte_level, write_hf, write_vocab_gguf

TEXTS = [
    *CORPUS[:5],
    "Hello world 123 4567890",
    "  é ü 日本\n\n\tfoo's 12ab  x",
    "a\r\n b \u00a0 c\n",
    "I'LL we've don't",
    "",
    "zzqx ῷ \x00 \U0001f468‍\U0001f469‍\U0001f467",
    "tail  ",
]
MEAN = "<s>hello</s> <unk> <|im_end|>\n<|im_start|>system"


@functools.cache
def smollm2_vocabulary() -> Vocabulary:
    return vocab.load(find_or_fetch("smollm2"))


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Vocabulary, Tokenizer]:
    written = KINDS[request.param]()
    path = write_hf(tmp_path_factory.mktemp(request.param), written)
    return request.param, vocab.load(path), Tokenizer.from_str(written)


def text_of(vocabulary: Vocabulary, ids: Any) -> str:
    return b"".join(vocabulary.token_bytes[index] for index in ids).decode("utf-8", "replace")


def test_encodes_as_the_library_does(trained: tuple[str, Vocabulary, Tokenizer]) -> None:
    _, vocabulary, referee = trained
    for text in TEXTS:
        for add in (False, True):
            assert vocabulary.encode(text, add_special_tokens=add).tolist() == referee.encode(text, add_special_tokens=add).ids


def test_template_text_encodes_as_the_library_does(trained: tuple[str, Vocabulary, Tokenizer]) -> None:
    _, vocabulary, referee = trained
    text = "<s><|im_start|>user\nHello there<|im_end|> \n<|im_start|>assistant\n"
    secret = vocab.pattern_of(vocabulary.secret).sub(lambda match: vocabulary.secret[match[0]], text)
    assert vocabulary.encode(secret, add_special_tokens=False).tolist() == referee.encode(text, add_special_tokens=False).ids


def test_decodes_as_the_library_does(trained: tuple[str, Vocabulary, Tokenizer]) -> None:
    _, vocabulary, referee = trained
    plain = [index for index, token in enumerate(map(referee.id_to_token, range(vocabulary.size))) if not token.startswith("<0x")]
    draw = random.Random(1)
    for _ in range(100):
        ids = draw.choices(plain, k=30)
        theirs, ours = referee.decode(ids, skip_special_tokens=False), text_of(vocabulary, ids)
        # Their decoders drop the first space of a text; ours is a continuation.
        assert theirs in (ours, ours.removeprefix(" "))


def test_special_tokens_in_text_stay_text(trained: tuple[str, Vocabulary, Tokenizer]) -> None:
    kind, vocabulary, referee = trained
    assert vocabulary.special_ids == set(range(len(SPECIALS)))
    ids = vocabulary.encode(MEAN, add_special_tokens=False).tolist()
    unknown = {0} if kind == "unigram" else set()  # It has no piece for every character.
    assert not vocabulary.special_ids - unknown & set(ids)
    assert vocabulary.special_ids & set(referee.encode(MEAN, add_special_tokens=False).ids)
    if kind != "unigram":
        assert text_of(vocabulary, ids).removeprefix(" ") == MEAN


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_byte_level_round_trip(text: str) -> None:
    # SmolLM2 has no token for 21 rare bytes; it was not made for characters that need them.
    known = {token[0] for token in smollm2_vocabulary().token_bytes if len(token) == 1}
    text = "".join(letter for letter in text if known.issuperset(letter.encode()))
    assert text_of(smollm2_vocabulary(), smollm2_vocabulary().encode(text, add_special_tokens=False)) == text


def test_facts_of_a_directory(tmp_path: Path) -> None:
    vocabulary = vocab.load(write_hf(tmp_path / "m", byte_level()))
    assert vocabulary.source.eos_token_ids == (4, 2)
    assert vocabulary.source.context_len == 2048
    assert vocabulary.source.template_tokens == {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    again = vocab.load(write_hf(tmp_path / "n", byte_level()))
    assert again.digest == vocabulary.digest
    assert again.secret != vocabulary.secret
    other = vocab.load(write_hf(tmp_path / "o", byte_level(), template="{{ messages }}"))
    assert other.digest != vocabulary.digest


def test_careless_files_do_not_let_users_end_a_turn(tmp_path: Path) -> None:
    rules = json.loads(byte_level())
    for token in rules["added_tokens"]:
        token["special"] = False
    vocabulary = vocab.load(write_hf(tmp_path / "m", json.dumps(rules)))
    assert vocabulary.special_ids == {2, 4}  # They end a text.
    assert not {2, 3, 4} & set(vocabulary.encode(MEAN, add_special_tokens=False))
    assert vocabulary.size - 1 in vocabulary.encode("a<tool>b", add_special_tokens=False)
    types = [4] * len(SPECIALS) + [1] * (vocabulary.size - len(SPECIALS))
    gguf = vocab.load(write_vocab_gguf(tmp_path / "v.gguf", "byte_level", **{"tokenizer.ggml.token_type": types}))
    assert gguf.special_ids == {2, 4}
    assert not {2, 3, 4} & set(gguf.encode(MEAN, add_special_tokens=False))


def test_truncation_in_the_file_never_cuts_a_prompt(tmp_path: Path) -> None:
    rules = json.loads(byte_level())
    rules["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    vocabulary = vocab.load(write_hf(tmp_path / "m", json.dumps(rules)))
    assert len(vocabulary.encode(CORPUS[0], add_special_tokens=False)) > 10


def test_sources_of_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    path = write_hf(tmp_path / "m", byte_level(), chat_template=named)
    assert vocab.load(path).source.templates == {"default": "a", "tool_use": "b"}
    (path / "chat_template.jinja").write_text("c")
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "rag.jinja").write_text("d")
    assert vocab.load(path).source.templates == {"default": "c", "tool_use": "b", "rag": "d"}


def referee_of(path: Path, architecture: str) -> Tokenizer:
    """What transformers makes of the same file."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

    metadata = read_gguf(path).metadata
    names = GGUF_TOKENIZER_MAPPING["tokenizer"]
    stated = {name: metadata[f"tokenizer.{key}"] for key, name in names.items() if f"tokenizer.{key}" in metadata}
    return convert_gguf_tokenizer(architecture, stated)[0]


def test_smollm2_as_transformers() -> None:
    smol = smollm2_vocabulary()
    referee = referee_of(find_or_fetch("smollm2"), "llama")
    assert (smol.size, smol.source.context_len, smol.source.eos_token_ids[0]) == (49152, 8192, 2)
    for text in TEXTS:
        ids = smol.encode(text, add_special_tokens=False).tolist()
        assert ids == referee.encode(text, add_special_tokens=False).ids
        assert smol.encode(text, add_special_tokens=True).tolist() == ids
        assert text_of(smol, ids) == text
    draw = random.Random(2)
    for _ in range(50):
        ids = draw.choices(range(smol.size), k=40)
        assert text_of(smol, ids) == referee.decode(ids, skip_special_tokens=False)
    assert not smol.special_ids & set(smol.encode("<|im_start|>system", add_special_tokens=False))


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_bpe"])
def test_gguf_as_the_directory_it_was_made_from(tmp_path: Path, kind: str) -> None:
    vocabulary = vocab.load(write_vocab_gguf(tmp_path / "v.gguf", kind))
    original = Tokenizer.from_str(KINDS[kind]())
    for text in filter(None, TEXTS):
        if not text.startswith(" "):  # These two put a space before a text that begins with one; Metaspace does not.
            assert vocabulary.encode(text, add_special_tokens=True).tolist() == original.encode(text).ids
    assert vocabulary.special_ids == set(range(len(SPECIALS)))
    assert vocabulary.source.eos_token_ids == (2, 4)
    assert text_of(vocabulary, vocabulary.encode("日本 語!", add_special_tokens=False)).lstrip() == "日本 語!"
    assert not vocabulary.special_ids & set(vocabulary.encode(MEAN, add_special_tokens=False))


def test_sentencepiece_gguf_as_transformers(tmp_path: Path) -> None:
    path = write_vocab_gguf(tmp_path / "v.gguf", "sentencepiece_bpe")
    referee, vocabulary = referee_of(path, "phi3"), vocab.load(path)
    for text in TEXTS:
        assert vocabulary.encode(text, add_special_tokens=False).tolist() == referee.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o"])
def test_split_regex_as_transformers(tmp_path: Path, pre: str) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    path = write_vocab_gguf(tmp_path / "v.gguf", "byte_level", **{"tokenizer.ggml.pre": pre})
    vocabulary = vocab.load(path)
    assert SPLITS[pre].replace(r"[\p{L}]", r"\p{L}") == GGUF_PRE_TOKENIZER_SPLITS[pre]
    for text in TEXTS:
        assert text_of(vocabulary, vocabulary.encode(text, add_special_tokens=False)) == text


def test_gemma_space_runs_and_user_defined_tokens(tmp_path: Path) -> None:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "  ", "▁", "a", "b", "ab", "\n", "▁ab", "<tag>"]
    changes = {
        "general.architecture": "gemma3",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, 2, 4, 1, 1, 1, 1, 4, 1, 4],
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
    }
    vocabulary = vocab.load(write_vocab_gguf(tmp_path / "g.gguf", "sentencepiece_bpe", **changes))
    assert vocabulary.encode("ab  ab\n<tag>", add_special_tokens=True).tolist() == [2, 8, 4, 8, 9, 11]
    assert vocabulary.token_bytes[4:6] == (b"  ", b" ")


HF_FAULTS = {
    "no file": (None, "no such file"),
    "not json": ("{", "not valid JSON"),
    "not an object": ("[]", "must hold a JSON object"),
    "empty object": ("{}", "rules are broken"),
    "added token": ('{"added_tokens": [{}]}', "rules are broken: KeyError 'id'"),
    "added tokens": ('{"added_tokens": [3]}', "rules are broken"),
    "vocab": ('{"model": {"type": "Unigram", "vocab": [1]}}', "rules are broken"),
    "merges": ('{"model": {"type": "BPE", "vocab": {}, "merges": [["a"]]}}', "rules are broken"),
    "decoder": ('{"model": {"type": "BPE", "vocab": {}, "merges": []}, "decoder": {"type": "Replace"}}', "rules are broken"),
    "no tokens": ('{"model": {"type": "BPE", "vocab": {}, "merges": []}, "decoder": {"type": "ByteLevel"}}', "rules are broken"),
    "unknown model": ('{"model": {"type": "Nonsense", "vocab": {}}}', "rules are broken"),
}


@pytest.mark.parametrize("name", HF_FAULTS)
def test_a_broken_directory_is_named(tmp_path: Path, name: str) -> None:
    content, fault = HF_FAULTS[name]
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(StartupError) as caught:
        vocab.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            {"decoder": {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}},
            "decoder 'CTC' is not supported",
        ),
        ({"decoder": None}, "has no decoder"),
    ],
)
def test_decoders_that_are_no_byte_table(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    with pytest.raises(StartupError, match=fault):
        vocab.load(write_hf(tmp_path / "m", json.dumps({**json.loads(byte_level()), **change})))


GGUF_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"tokenizer.ggml.model": "rwkv"}, "tokenizer model 'rwkv' is not supported"),
    "pre": ({"tokenizer.ggml.pre": "klingon"}, "pre-tokenizer 'klingon' is not supported"),
    "types": ({"tokenizer.ggml.token_type": [1, 1]}, "2 token types"),
    "merges": ({"tokenizer.ggml.merges": ["ab"]}, "merge 'ab' is not two tokens"),
    "merge of nothing": ({"tokenizer.ggml.merges": ["Qq zZ"]}, "rules are broken"),
    "eos": ({"tokenizer.ggml.eos_token_id": 10**6}, "eos_token_id' is 1000000"),
    "no tokens": ({"tokenizer.ggml.tokens": 5}, "must be a list of strings"),
    "twice": ({"tokenizer.ggml.tokens": ["a", "b", "a"], "tokenizer.ggml.token_type": [1, 1, 1]}, "'a' appears twice"),
}


@pytest.mark.parametrize("name", GGUF_FAULTS)
def test_a_broken_gguf_vocabulary_is_named(tmp_path: Path, name: str) -> None:
    changes, fault = GGUF_FAULTS[name]
    path = write_vocab_gguf(tmp_path / "v.gguf", "byte_level", **changes)
    with pytest.raises(StartupError) as caught:
        vocab.load(path)
    assert "v.gguf" in str(caught.value)
    assert fault in str(caught.value)
